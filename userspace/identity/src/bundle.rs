//! Trust bundles: the roots of one trust domain each, never pooled (SPIFFE_Federation.md §7.3).
//!
//! A set is keyed by trust domain and its bundles can only be asked for by it, so no code path can judge a chain by the
//! roots of another domain. Roots are checked when a bundle is made and kept as parsed trust anchors, since a handshake
//! must not parse them again. It fetches no bundle and keeps none fresh.

use std::collections::BTreeMap;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::certificate::{SvidError, check_root};
use crate::trust_domain::TrustDomain;

mod jwks;

/// The roots of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// Bundles by trust domain, one each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleSet(BTreeMap<TrustDomain, TrustBundle>);

/// Why there is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The PEM is broken.
    #[error("the roots of {trust_domain} are no PEM: {reason}")]
    Pem {
        /// Whose.
        trust_domain: TrustDomain,
        /// What the parser says.
        reason: String,
    },
    /// A file of roots without one.
    #[error("there is no CERTIFICATE section among the roots of {trust_domain}")]
    NoRoot {
        /// Whose.
        trust_domain: TrustDomain,
    },
    /// More roots than any sensible trust domain has.
    #[error("the bundle of {trust_domain} has more than {limit} roots")]
    TooManyRoots {
        /// Whose.
        trust_domain: TrustDomain,
        /// How many there may be.
        limit: usize,
    },
    /// A root that is no root.
    #[error("a root of {trust_domain} is not acceptable: {error}")]
    Root {
        /// Whose.
        trust_domain: TrustDomain,
        /// What is wrong; positions count from 0 among the roots.
        error: SvidError,
    },
    /// A second bundle for a trust domain.
    #[error("there are two bundles for the trust domain {trust_domain}: give one, with all its roots")]
    Duplicate {
        /// Which.
        trust_domain: TrustDomain,
    },
    /// Not a SPIFFE bundle document.
    #[error("not a SPIFFE bundle: {reason}")]
    Document {
        /// What the parser says.
        reason: String,
    },
}

impl TrustBundle {
    /// Checks the roots. None at all is a legal bundle, which trusts nobody (SPIFFE_Trust_Domain_and_Bundle.md §4.1.4).
    ///
    /// # Errors
    /// The root that is none, or too many of them.
    pub fn new(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if roots.len() > MAX_ROOTS {
            return Err(BundleError::TooManyRoots { trust_domain, limit: MAX_ROOTS });
        }
        let anchors = roots
            .iter()
            .enumerate()
            .map(|(position, root)| anchor(root, position, &trust_domain))
            .collect::<Result<_, _>>()
            .map_err(|error| BundleError::Root { trust_domain: trust_domain.clone(), error })?;
        Ok(Self { trust_domain, roots, anchors })
    }

    /// Reads every `CERTIFICATE` section; at least one. The caller bounds the text.
    ///
    /// # Errors
    /// Broken PEM, no root, or one that is none.
    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, BundleError> {
        let roots = CertificateDer::pem_slice_iter(pem)
            // One more than allowed shows that there are too many, without parsing all of them.
            .take(MAX_ROOTS + 1)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| BundleError::Pem { trust_domain: trust_domain.clone(), reason: e.to_string() })?;
        match roots.is_empty() {
            true => Err(BundleError::NoRoot { trust_domain }),
            false => Self::new(trust_domain, roots),
        }
    }

    /// Reads a SPIFFE bundle document, a JWK set (SPIFFE_Trust_Domain_and_Bundle.md §4). Entries of unknown use or
    /// type are ignored, as the standard asks. The caller bounds the text.
    ///
    /// # Errors
    /// No such document, or a root that is none.
    pub fn from_jwks(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, BundleError> {
        let roots = jwks::roots(json)?;
        Self::new(trust_domain, roots)
    }

    /// Whose roots these are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificates.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl BundleSet {
    /// The set of one bundle.
    #[must_use]
    pub fn of(bundle: TrustBundle) -> Self {
        Self(BTreeMap::from([(bundle.trust_domain.clone(), bundle)]))
    }

    /// Adds the bundle of a further trust domain.
    ///
    /// # Errors
    /// There is one already: two sets of roots for one domain are never merged silently.
    pub fn insert(&mut self, bundle: TrustBundle) -> Result<(), BundleError> {
        if self.0.contains_key(bundle.trust_domain()) {
            return Err(BundleError::Duplicate { trust_domain: bundle.trust_domain });
        }
        self.0.insert(bundle.trust_domain.clone(), bundle);
        Ok(())
    }

    /// Reads a map of SPIFFE bundle documents, `{"trust_domains": {"<name>": {…}}}`; a name that comes twice is refused.
    ///
    /// # Errors
    /// No such document, a name that is none or comes twice, a root that is none.
    pub fn from_jwks_map(json: &[u8]) -> Result<Self, BundleError> {
        let mut set = Self::default();
        for (trust_domain, roots) in jwks::roots_by_trust_domain(json)? {
            set.insert(TrustBundle::new(trust_domain, roots)?)?;
        }
        Ok(set)
    }

    /// The bundle of a trust domain.
    #[must_use]
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&TrustBundle> {
        self.0.get(trust_domain)
    }

    /// All bundles, by name.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.0.values()
    }
}

fn anchor(
    root: &CertificateDer<'_>,
    position: usize,
    trust_domain: &TrustDomain,
) -> Result<TrustAnchor<'static>, SvidError> {
    check_root(root, position, trust_domain)?;
    match webpki::anchor_from_trusted_cert(root) {
        Ok(anchor) => Ok(anchor.to_owned()),
        Err(error) => Err(SvidError::Malformed { position, reason: error.to_string() }),
    }
}

/// A trust domain rotates through a handful of roots; more is a mistake or an attack on our memory.
const MAX_ROOTS: usize = 64;

#[cfg(test)]
mod tests;
