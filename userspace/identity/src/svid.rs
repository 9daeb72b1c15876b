//! An X.509-SVID of our own: the chain we present, its private key, and the bundles we judge peers by.
//!
//! The only constructor checks everything a peer will check, and that the key is the leaf's, so a CA that lies is found
//! when its answer arrives and not when the first connection fails. Time passes after that: [`X509Svid::is_expired`] is
//! for whoever uses one later.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::bundle::BundleSet;
use crate::certificate::{Leaf, SvidError};
use crate::key::PrivateKey;
use crate::spiffe_id::SpiffeId;
use crate::verify::{parse_leaf, verify_path};

/// An X.509-SVID with its key, and the bundles to judge peers by. The key is zeroized on drop and never printed.
pub struct X509Svid {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    bundles: Arc<BundleSet>,
}

impl X509Svid {
    /// Checks the whole: leaf rules, the ID that was asked for, time, chain to the bundle of its own trust domain, and
    /// that the key belongs to the leaf.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn new(
        expected: &SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
        bundles: Arc<BundleSet>,
        now: UnixTime,
    ) -> Result<Self, SvidError> {
        let leaf = parse_leaf(&chain)?;
        if leaf.id != *expected {
            return Err(SvidError::UnexpectedId { expected: expected.clone(), got: leaf.id });
        }
        verify_path(&leaf, &chain, &bundles, now)?;
        check_key(&leaf, &key)?;
        Ok(Self { leaf, chain, key, bundles })
    }

    /// Who.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// DER chain, leaf first, without the root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's private key.
    #[must_use]
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Start of its validity, seconds since 1970.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.leaf.not_before
    }

    /// End of its validity, seconds since 1970, included.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.leaf.not_after
    }

    /// Past its validity.
    #[must_use]
    pub fn is_expired(&self, now: UnixTime) -> bool {
        now.as_secs() > self.not_after()
    }

    /// Serial number of the leaf, lower-case hex without separators.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// The roots to judge peers by.
    #[must_use]
    pub fn bundles(&self) -> &Arc<BundleSet> {
        &self.bundles
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("id", self.id())
            .field("serial", &self.serial())
            .finish_non_exhaustive()
    }
}

fn check_key(leaf: &Leaf, key: &PrivateKey) -> Result<(), SvidError> {
    match key.public_bits() {
        None => Err(SvidError::UnusableKey { id: leaf.id.clone() }),
        Some(bits) if bits != leaf.public_bits => Err(SvidError::WrongKey { id: leaf.id.clone() }),
        Some(_) => Ok(()),
    }
}
