//! Why a chain is no acceptable X.509-SVID: one variant per rule, with what is needed to find the certificate at fault.

use crate::spiffe_id::{SpiffeId, SpiffeIdError};
use crate::trust_domain::TrustDomain;

/// Why a chain is no acceptable X.509-SVID.
///
/// `position` counts certificates as they were given: in a chain 0 is the leaf. IDs in variants about the leaf are what
/// the certificate claims; only a chain that passed all checks proves one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The chain is empty.
    #[error("there is no certificate")]
    NoCertificate,
    /// More certificates than any sensible chain has.
    #[error("the chain has {certificates} certificates, at most {limit} are accepted")]
    ChainTooLong {
        /// How many there are.
        certificates: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A certificate larger than any sensible one.
    #[error("certificate {position} has {bytes} bytes, at most {limit} are accepted")]
    CertificateTooLarge {
        /// Which.
        position: usize,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// Not a well-formed X.509 v3 certificate.
    #[error("certificate {position} is malformed: {reason}")]
    Malformed {
        /// Which.
        position: usize,
        /// What the parser says.
        reason: String,
    },
    /// The leaf has no URI SAN (X509-SVID.md §2).
    #[error("the leaf has no URI SAN: an X.509-SVID carries its SPIFFE ID in exactly one")]
    NoUriSan,
    /// The leaf has more than one URI SAN (X509-SVID.md §2).
    #[error("the leaf has {count} URI SANs: an X.509-SVID carries its SPIFFE ID in exactly one")]
    SeveralUriSans {
        /// How many.
        count: usize,
    },
    /// A URI SAN is no SPIFFE ID.
    #[error("the URI SAN of certificate {position} is no SPIFFE ID: {error}")]
    InvalidId {
        /// Which certificate.
        position: usize,
        /// The rule that was broken.
        error: SpiffeIdError,
    },
    /// A leaf named like a trust domain (X509-SVID.md §4.1).
    #[error("the leaf's SPIFFE ID {id} has no path: that names a trust domain, not a workload")]
    LeafIdWithoutPath {
        /// The ID.
        id: SpiffeId,
    },
    /// The subject is empty and the SAN is not critical (RFC 5280 §4.2.1.6).
    #[error("the leaf of {id} has an empty subject, so its SAN must be critical, and is not")]
    UriSanNotCritical {
        /// Whose.
        id: SpiffeId,
    },
    /// The leaf is a CA certificate (X509-SVID.md §4.1).
    #[error("the leaf of {id} is a CA certificate: a CA must not serve as a workload")]
    LeafIsCa {
        /// Whose.
        id: SpiffeId,
    },
    /// The leaf's key usage (X509-SVID.md §4.3).
    #[error(
        "the leaf of {id} is not acceptable: {fault}; it must be critical, digitalSignature, and no signer's"
    )]
    LeafKeyUsage {
        /// Whose.
        id: SpiffeId,
        /// What is wrong.
        fault: &'static str,
    },
    /// The leaf's extended key usage lacks serverAuth or clientAuth (X509-SVID.md §4.4).
    #[error("the extended key usage of {id} must have both serverAuth and clientAuth")]
    LeafExtendedKeyUsage {
        /// Whose.
        id: SpiffeId,
    },
    /// A signing certificate without cA (X509-SVID.md §4.2).
    #[error("certificate {position} signs others and is no CA")]
    SignerIsNoCa {
        /// Which.
        position: usize,
    },
    /// A signing certificate without keyCertSign (X509-SVID.md §4.3).
    #[error("certificate {position} signs others, and its key usage lacks keyCertSign")]
    SignerMayNotSign {
        /// Which.
        position: usize,
    },
    /// A signing certificate named like a workload (X509-SVID.md §4.2).
    #[error("certificate {position} signs others and has the SPIFFE ID {id}: a signer's has no path")]
    SignerIdHasPath {
        /// Which.
        position: usize,
        /// Its ID.
        id: SpiffeId,
    },
    /// A signing certificate of another trust domain.
    #[error("certificate {position} has the SPIFFE ID {id} and signs for the trust domain {expected}")]
    SignerOfOtherTrustDomain {
        /// Which.
        position: usize,
        /// Its ID.
        id: SpiffeId,
        /// The trust domain it signs for here.
        expected: TrustDomain,
    },
    /// There are no roots for the leaf's trust domain.
    #[error("there is no bundle for the trust domain {trust_domain}: add its roots, or federate with it")]
    UnknownTrustDomain {
        /// Which.
        trust_domain: TrustDomain,
    },
    /// The leaf has expired.
    #[error(
        "the SVID of {id} expired at {not_after} (seconds since 1970): check its rotation and both clocks"
    )]
    Expired {
        /// Whose.
        id: SpiffeId,
        /// Seconds since 1970.
        not_after: u64,
    },
    /// The leaf is not valid yet.
    #[error("the SVID of {id} is not valid before {not_before} (seconds since 1970): check both clocks")]
    NotYetValid {
        /// Whose.
        id: SpiffeId,
        /// Seconds since 1970.
        not_before: u64,
    },
    /// A signing certificate is outside its validity.
    #[error("an intermediate of {id} is not valid now ({reason}): its CA must be renewed")]
    SignerNotValidNow {
        /// Whose chain.
        id: SpiffeId,
        /// What path validation says, with the times.
        reason: String,
    },
    /// No path to a root of the leaf's own trust domain.
    #[error(
        "the chain of {id} leads to no root of its trust domain ({reason}): was it issued by another CA?"
    )]
    Untrusted {
        /// Whose chain.
        id: SpiffeId,
        /// What path validation says.
        reason: String,
    },
    /// Another identity than the one that was asked for.
    #[error("the SVID is of {got}, expected {expected}")]
    UnexpectedId {
        /// Who was expected.
        expected: SpiffeId,
        /// Who it is.
        got: SpiffeId,
    },
    /// The private key is of a kind we cannot sign with, or none at all.
    #[error(
        "the private key of {id} cannot be used: give ECDSA P-256, P-384 or P-521, Ed25519 or RSA as PKCS#8"
    )]
    UnusableKey {
        /// Whose.
        id: SpiffeId,
    },
    /// The private key does not belong to the leaf.
    #[error("the leaf of {id} is for another key than ours")]
    WrongKey {
        /// Whose.
        id: SpiffeId,
    },
}
