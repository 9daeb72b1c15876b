//! A peer's chain, held to the X.509-SVID rules and validated to the roots of the leaf's own trust domain.
//!
//! Cheap checks come first (count and size, then the leaf's own rules), signatures last, so that a stranger cannot make
//! us compute. The trust domain in the leaf picks the roots, and nothing else does: a root of one domain is never even
//! offered to a chain of another. Who the peer may be is the caller's decision; here is only established who it is.
//! Roots are trusted for as long as the bundle holds them, whatever their own validity says (RFC 5280 §6.1.1(d)).

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, VerifiedPath};

use crate::bundle::{BundleSet, TrustBundle};
use crate::certificate::{Leaf, SvidError, check_intermediate};
use crate::spiffe_id::SpiffeId;

/// More certificates than this are refused unseen. Real chains have two or three.
pub const MAX_CHAIN_CERTIFICATES: usize = 10;

/// Verifies a peer's chain (leaf first) by the X.509-SVID rules against the bundle of the leaf's trust domain, and tells
/// who it is. That the peer holds the leaf's key is shown by the handshake, not here.
///
/// # Errors
/// The rule that was broken.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<SpiffeId, SvidError> {
    let leaf = parse_leaf(chain)?;
    verify_path(&leaf, chain, bundles, now)?;
    Ok(leaf.id)
}

/// What is worth knowing of a leaf that [`verify_peer`] has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedLeaf {
    /// Who.
    pub id: SpiffeId,
    /// End of its validity, seconds since 1970, included.
    pub not_after: u64,
}

/// Reads a leaf again that [`verify_peer`] has accepted, without its signatures. A TLS library asks for a verdict and
/// keeps the chain, not the name. It proves nothing of a leaf that was not verified.
///
/// # Errors
/// The rule that was broken.
pub fn read_verified(leaf: &CertificateDer<'_>) -> Result<VerifiedLeaf, SvidError> {
    parse_leaf(std::slice::from_ref(leaf)).map(|leaf| VerifiedLeaf { id: leaf.id, not_after: leaf.not_after })
}

/// Bounds the chain and holds its leaf to the rules.
pub(crate) fn parse_leaf(chain: &[CertificateDer<'_>]) -> Result<Leaf, SvidError> {
    if chain.len() > MAX_CHAIN_CERTIFICATES {
        return Err(SvidError::ChainTooLong { certificates: chain.len(), limit: MAX_CHAIN_CERTIFICATES });
    }
    for (position, certificate) in chain.iter().enumerate() {
        if certificate.len() > MAX_CERTIFICATE_BYTES {
            let bytes = certificate.len();
            return Err(SvidError::CertificateTooLarge { position, bytes, limit: MAX_CERTIFICATE_BYTES });
        }
    }
    Leaf::parse(chain.first().ok_or(SvidError::NoCertificate)?)
}

/// Time, and the path to a root of the leaf's trust domain.
pub(crate) fn verify_path(
    leaf: &Leaf,
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<(), SvidError> {
    let trust_domain = leaf.id.trust_domain();
    let bundle = bundles
        .get(trust_domain)
        .ok_or_else(|| SvidError::UnknownTrustDomain { trust_domain: trust_domain.clone() })?;
    leaf.check_time(now)?;
    let (end_entity, intermediates) = chain.split_first().ok_or(SvidError::NoCertificate)?;
    let end_entity = EndEntityCert::try_from(end_entity)
        .map_err(|e| SvidError::Malformed { position: 0, reason: e.to_string() })?;
    let path = build_path(&end_entity, intermediates, bundle, now).map_err(|error| blame(error, &leaf.id))?;
    check_signers(&path, chain, bundle)
}

fn build_path<'p>(
    end_entity: &'p EndEntityCert<'p>,
    intermediates: &'p [CertificateDer<'p>],
    bundle: &'p TrustBundle,
    now: UnixTime,
) -> Result<VerifiedPath<'p>, webpki::Error> {
    end_entity.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        bundle.anchors(),
        intermediates,
        now,
        ServerAndClientAuth,
        None,
        None,
    )
}

fn check_signers(
    path: &VerifiedPath<'_>,
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
) -> Result<(), SvidError> {
    for signer in path.intermediate_certificates() {
        let der = signer.der();
        let position = chain.iter().position(|given| *given == der).unwrap_or(chain.len());
        check_intermediate(&der, position, bundle.trust_domain())?;
    }
    Ok(())
}

fn blame(error: webpki::Error, id: &SpiffeId) -> SvidError {
    let (id, reason) = (id.clone(), error.to_string());
    match error {
        // The leaf's own time was checked before.
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
            SvidError::SignerNotValidNow { id, reason }
        }
        _ => SvidError::Untrusted { id, reason },
    }
}

/// X509-SVID.md §4.4: where an extended key usage is present it has both, since a workload is client and server. webpki
/// asks for every certificate of the path; the leaf has been held to the strict rule before, and a signer may say "any".
struct ServerAndClientAuth;

impl ExtendedKeyUsageValidator for ServerAndClientAuth {
    fn validate(&self, iter: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let present = iter.map(|id| Ok(id?.to_decoded_oid())).collect::<Result<Vec<_>, webpki::Error>>()?;
        let has = |oid: &[usize]| present.iter().any(|id| id == oid);
        let both = has(KeyUsage::SERVER_AUTH_REPR) && has(KeyUsage::CLIENT_AUTH_REPR);
        if present.is_empty() || both || has(ANY_EXTENDED_KEY_USAGE) {
            return Ok(());
        }
        let required = match has(KeyUsage::SERVER_AUTH_REPR) {
            true => KeyUsage::client_auth(),
            false => KeyUsage::server_auth(),
        };
        Err(webpki::Error::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext {
            required,
            present,
        }))
    }
}

/// `anyExtendedKeyUsage` (RFC 5280 §4.2.1.12).
const ANY_EXTENDED_KEY_USAGE: &[usize] = &[2, 5, 29, 37, 0];

/// Real certificates have 0.5 to 2 KiB, with post-quantum keys up to 10 KiB.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests;
