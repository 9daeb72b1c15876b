//! SPIFFE IDs, X.509-SVID rules and trust bundles: pure, used by all three binaries.
//!
//! Everything that decides who a peer is lives here, without I/O, clock or TLS library, so that the node engine and the
//! CA hold certificates to the same rules and a test needs no socket. Values are checked by their only constructor: who
//! holds a [`SpiffeId`], a [`TrustBundle`] or an [`X509Svid`] need not check it again, except for the passing of time.
//!
//! | file | what |
//! |---|---|
//! | `trust_domain`, `spiffe_id` | names (SPIFFE-ID.md) |
//! | `certificate` | what one certificate must and must not have (X509-SVID.md §2, §4) |
//! | `verify` | a chain to the roots of its own trust domain (RFC 5280 §6) |
//! | `bundle` | roots, by trust domain, from PEM and from SPIFFE bundles |
//! | `key`, `svid` | an SVID of our own: chain, private key, bundles |
//!
//! It does not check revocation, and it fetches nothing.

mod bundle;
mod certificate;
mod key;
mod spiffe_id;
mod svid;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod trust_domain;
mod verify;

pub use bundle::{BundleError, BundleSet, TrustBundle};
pub use certificate::SvidError;
pub use key::{KeyError, PrivateKey};
pub use spiffe_id::{SpiffeId, SpiffeIdError};
pub use svid::X509Svid;
pub use trust_domain::TrustDomain;
pub use verify::{MAX_CHAIN_CERTIFICATES, VerifiedLeaf, read_verified, verify_peer};
