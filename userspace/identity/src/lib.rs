//! SPIFFE IDs, X.509-SVID rules and trust bundles: pure, used by all three binaries.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};

/// A trust domain name: lower case `[a-z0-9.-_]`, at most 255 bytes (SPIFFE-ID.md §2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID, checked and canonical (scheme and trust domain in lower case).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

/// Why a text is no SPIFFE ID (H2: one variant per rule).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpiffeIdError {
    /// H2.
    #[error("H2")]
    Todo,
}

/// Why a chain is no acceptable X.509-SVID (H2: one variant per rule, carrying data).
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// H2.
    #[error("H2")]
    Todo,
}

impl TrustDomain {
    /// Parses and lower-cases.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        let _ = name;
        todo!("H2")
    }
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// Parses `spiffe://<trust domain>/<path>`; a path is not required (SPIFFE-ID.md §2).
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn parse(uri: &str) -> Result<Self, SpiffeIdError> {
        let _ = uri;
        todo!("H2")
    }
    /// Istio's shape: `spiffe://<td>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// A namespace or name that is no legal path segment.
    pub fn for_service_account(
        td: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        let _ = (td, namespace, service_account);
        todo!("H2")
    }
    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }
    /// Its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
    /// The path, with its leading `/`, or empty.
    #[must_use]
    pub fn path(&self) -> &str {
        todo!("H2")
    }
    /// (namespace, service account) where the path has Istio's shape.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        todo!("H2")
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
// H2: serde Serialize/Deserialize for both, as text.
impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.uri)
    }
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
