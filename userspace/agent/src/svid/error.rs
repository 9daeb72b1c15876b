//! Why no SVID came, sorted by who is to blame: the way to the CA, the CA's verdict on us, its answer, or this node.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use signet_identity::{SpiffeId, SvidError};

use super::skew::Skew;

/// Why no SVID came. Cheap to clone, since every connection that waited gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection to the CA.
    #[error("cannot reach the CA at {address}: {reason}")]
    Unreachable {
        /// Where.
        address: Arc<str>,
        /// What the network says.
        reason: String,
    },
    /// Whoever answers at the CA's address does not prove to be the CA.
    #[error(
        "the server at {address} is not the CA we trust ({reason}): check ca.istio.roots and ca.istio.serverName"
    )]
    UntrustedCa {
        /// Where.
        address: Arc<str>,
        /// What TLS says.
        reason: String,
    },
    /// What the CA makes is not valid by this node's clock.
    #[error(
        "this node's clock is {skew} that of the CA at {address}: synchronise both (chrony, systemd-timesyncd)"
    )]
    Clock {
        /// Where.
        address: Arc<str>,
        /// How far.
        skew: Skew,
    },
    /// The CA did not answer in time.
    #[error("the CA at {address} did not answer within {after:?}")]
    Timeout {
        /// Where.
        address: Arc<str>,
        /// How long we waited.
        after: Duration,
    },
    /// The CA does not take our token, or not for this identity: the Istio API has one status for both.
    #[error(
        "the CA at {address} refuses to give this node an SVID for {id} ({message}): check the token's audience and \
         expiry, that its account is trusted by the CA, and that the workload is on this node in the CA's inventory"
    )]
    Unauthenticated {
        /// Where.
        address: Arc<str>,
        /// For whom we asked.
        id: SpiffeId,
        /// What the CA says.
        message: String,
    },
    /// The CA refuses for another reason, or has a fault of its own.
    #[error("the CA at {address} gives no SVID for {id}: {code}: {message}")]
    Refused {
        /// Where.
        address: Arc<str>,
        /// For whom we asked.
        id: SpiffeId,
        /// The gRPC status.
        code: String,
        /// What the CA says.
        message: String,
    },
    /// The answer cannot be read.
    #[error("the answer of the CA at {address} is malformed: {reason}")]
    Malformed {
        /// Where.
        address: Arc<str>,
        /// What is wrong.
        reason: String,
    },
    /// The answer is no SVID for what was asked: another identity or key, expired, of a foreign root. The CA is at
    /// fault, or is not who it should be.
    #[error("{source_of_it} does not give an SVID for {id}: {error}")]
    Lying {
        /// Which CA or directory.
        source_of_it: Arc<str>,
        /// For whom we asked.
        id: SpiffeId,
        /// The rule that was broken.
        error: SvidError,
    },
    /// A file of ours cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// An identity that this source cannot hold.
    #[error("{id} is no service account (spiffe://<trust domain>/ns/<namespace>/sa/<name>): {reason}")]
    NoServiceAccount {
        /// Which.
        id: SpiffeId,
        /// Why it must be one.
        reason: &'static str,
    },
    /// No key or signing request could be made.
    #[error("cannot make a key and a signing request for {id}: {reason}")]
    Key {
        /// For whom.
        id: SpiffeId,
        /// What failed.
        reason: String,
    },
    /// The attempt ended without an outcome: a bug.
    #[error("the attempt to fetch an SVID broke off: this is a bug, see the log above")]
    BrokenOff,
    /// The workload is not tracked any more.
    #[error("the workload is gone, and its SVID with it")]
    Gone,
}

impl FetchError {
    /// The label of `signet_ca_requests_total`.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::UntrustedCa { .. } => "untrusted_ca",
            Self::Clock { .. } => "clock",
            Self::Timeout { .. } => "timeout",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::Refused { .. } => "refused",
            Self::Malformed { .. } => "malformed",
            Self::Lying { .. } => "lying",
            Self::File { .. } | Self::NoServiceAccount { .. } | Self::Key { .. } => "local",
            Self::BrokenOff | Self::Gone => "bug",
        }
    }

    /// Likely to pass by itself soon: whoever waits for an SVID does better to go on waiting.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
    }
}
