//! SPIFFE IDs, X.509-SVID rules and trust bundles: pure, used by all three binaries.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

mod spiffe_id;
mod trust_domain;

pub use spiffe_id::{SpiffeId, SpiffeIdError};
pub use trust_domain::TrustDomain;

use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};

/// Why a chain is no acceptable X.509-SVID (H2: one variant per rule, carrying data).
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// H2.
    #[error("H2")]
    Todo,
}

/// The roots of one trust domain. Never pooled with another's (SPIFFE_Federation.md §7.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose roots these are.
    pub trust_domain: TrustDomain,
    /// DER certificates.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Bundles by trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleSet {
    /// One bundle per trust domain.
    pub bundles: BTreeMap<TrustDomain, TrustBundle>,
}

/// An X.509-SVID with its key, and the bundles to judge peers by. The key is zeroized on drop and never printed.
pub struct X509Svid {
    /// Who.
    pub id: SpiffeId,
    /// DER chain, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key. H2: wrap so that it is zeroized on drop and Debug prints nothing of it.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// Validity, seconds since 1970.
    pub not_before: u64,
    /// Validity, seconds since 1970.
    pub not_after: u64,
    /// Hex serial number of the leaf.
    pub serial: String,
    /// The roots to judge peers by.
    pub bundles: Arc<BundleSet>,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid").field("id", &self.id).field("serial", &self.serial).finish_non_exhaustive()
    }
}

impl X509Svid {
    /// Checks the whole: leaf rules, chain to the bundle of its own trust domain, key matches leaf, id as expected, time.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn new(
        expected: &SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        key: PrivatePkcs8KeyDer<'static>,
        bundles: Arc<BundleSet>,
        now: UnixTime,
    ) -> Result<Self, SvidError> {
        let _ = (expected, chain, key, bundles, now);
        todo!("H2")
    }
}

/// Which end of the handshake the peer is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    /// The peer is a TLS client.
    Client,
    /// The peer is a TLS server.
    Server,
}

/// Verifies a peer's chain (leaf first) by the X.509-SVID rules against the bundle of the leaf's trust domain.
///
/// # Errors
/// The rule that was broken.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    role: PeerRole,
    now: UnixTime,
) -> Result<SpiffeId, SvidError> {
    let _ = (chain, bundles, role, now);
    todo!("H2")
}
