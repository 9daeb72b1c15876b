//! The doors to the CAs: one trait, one store that keeps one SVID per workload fresh.

use std::sync::Arc;

use signet_identity::{SpiffeId, X509Svid};
use tokio::sync::watch;

use crate::addr::WorkloadUid;

/// Where SVIDs come from. One implementation per CA protocol.
pub trait Authority: Send + Sync + 'static {
    /// Fetches one SVID with a fresh key.
    fn fetch(
        &self,
        workload: &WorkloadUid,
        id: &SpiffeId,
    ) -> impl Future<Output = Result<X509Svid, FetchError>> + Send;
}

/// Why no SVID came (H2: sorted by blame: unreachable, refused, lying (wrong SAN, wrong key, expired, foreign root), …).
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// H2.
    #[error("H2")]
    Todo,
}

/// Keeps one SVID per tracked workload: fetch on demand ahead of background, rotate at half-life with jitter, retry with
/// capped backoff, drop with the guard.
#[derive(Clone)]
pub struct Store {}

/// A workload's claim on the store: dropped, its key is gone. Held by `reconcile`'s local workload.
#[derive(Debug)]
pub struct Tracked {}

/// What `signet certificates` shows.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CertificateView {
    /// Whose.
    pub workload: WorkloadUid,
    /// Who.
    pub id: SpiffeId,
    /// `valid`, `pending`, `expired`, `failing`.
    pub status: Arc<str>,
    /// Hex serial.
    pub serial: Option<String>,
    /// Seconds since 1970.
    pub not_before: Option<u64>,
    /// Seconds since 1970.
    pub not_after: Option<u64>,
    /// Seconds since 1970 of the next attempt.
    pub next_attempt: Option<u64>,
    /// The last error, if the last attempt failed.
    pub error: Option<String>,
}

impl Store {
    /// A store over an authority; registers `signet_svid_*` and `signet_ca_*` metrics.
    pub fn new<A: Authority>(authority: A, registry: &mut crate::telemetry::Registry) -> Self {
        let _ = (authority, registry);
        todo!("H2")
    }
    /// Starts keeping an SVID for a workload.
    #[must_use]
    pub fn track(&self, workload: WorkloadUid, id: SpiffeId) -> Tracked {
        let _ = (workload, id);
        todo!("H2")
    }
    /// All that is tracked, for views.
    #[must_use]
    pub fn certificates(&self) -> Vec<CertificateView> {
        todo!("H2")
    }
}

impl Tracked {
    /// A cheap handle for connections of this workload.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        todo!("H2")
    }
}

/// A handle on a workload's SVID; cheap to clone, does not keep it alive.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The current SVID; `None` before the first.
    pub current: watch::Receiver<Option<Arc<X509Svid>>>,
    // H2: a way to raise priority (on demand ahead of background)
}

impl Credentials {
    /// The current SVID if it has not expired; otherwise asks for one ahead of background work and waits (the caller bounds the wait).
    ///
    /// # Errors
    /// Why there is none: the last fetch error, or that the workload is gone.
    pub async fn get(&mut self) -> Result<Arc<X509Svid>, FetchError> {
        todo!("H2")
    }
}
