//! What a workload's owner and its connections hold of the store.
//!
//! [`Tracked`] is the claim: while it lives the store keeps an SVID, and when it is dropped the SVID and its key go, for
//! every holder of [`Credentials`] too. Credentials are handles: cheap, many, and keeping nothing alive.

use std::sync::Arc;

use rustls::pki_types::UnixTime;
use signet_identity::X509Svid;
use tokio::sync::watch;

use super::FetchError;
use super::store::Shared;
use crate::addr::WorkloadUid;

/// A workload's claim on the store: dropped, its key is gone. Held by `reconcile`'s local workload.
#[derive(Debug)]
pub struct Tracked {
    credentials: Credentials,
}

/// A handle on a workload's SVID; cheap to clone, does not keep it alive.
#[derive(Clone, Debug)]
pub struct Credentials {
    workload: WorkloadUid,
    generation: u64,
    /// Written by the store's task; closed when the workload is not tracked any more, or the store is gone.
    published: watch::Receiver<Published>,
    store: Arc<Shared>,
}

/// What the store tells of one workload.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    pub(super) svid: Option<Arc<X509Svid>>,
    /// Why the last attempt failed, if it did.
    pub(super) error: Option<FetchError>,
}

impl Tracked {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials }
    }

    /// A cheap handle for connections of this workload.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let Credentials { workload, generation, store, .. } = &self.credentials;
        store.forget(workload, *generation);
    }
}

impl Credentials {
    pub(super) fn new(
        workload: WorkloadUid,
        generation: u64,
        published: watch::Receiver<Published>,
        store: Arc<Shared>,
    ) -> Self {
        Self { workload, generation, published, store }
    }

    /// The current SVID if it has not expired; otherwise asks for one ahead of background work and waits. It waits on
    /// where the CA is unreachable or slow, since that may pass: the caller bounds the wait, and finds the reason in
    /// [`last_error`](Self::last_error).
    ///
    /// # Errors
    /// Why there will be none without somebody changing something: the CA refuses or lies, a file is missing, or the
    /// workload is gone.
    pub async fn get(&mut self) -> Result<Arc<X509Svid>, FetchError> {
        loop {
            if let Some(svid) = self.usable(self.store.now()) {
                return Ok(svid);
            }
            self.store.demand(&self.workload, self.generation);
            self.published.changed().await.map_err(|_| FetchError::Gone)?;
            match self.last_error() {
                Some(error) if !error.is_transient() && self.usable(self.store.now()).is_none() => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }

    /// Why the last attempt to fetch an SVID failed, if it did.
    #[must_use]
    pub fn last_error(&self) -> Option<FetchError> {
        self.published.borrow().error.clone()
    }

    fn usable(&mut self, now: UnixTime) -> Option<Arc<X509Svid>> {
        self.published.borrow_and_update().svid.clone().filter(|svid| !svid.is_expired(now))
    }
}
