//! One workload of this node, and how far up the ladder it is.
//!
//! Everything that must end with the workload is owned here (the SVID claim, the cgroup watcher), so dropping a
//! [`Local`] ends it. It decides nothing about others: sandboxes are shared, and belong to the reconciler.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::addr::{CgroupId, NetnsCookie, WorkloadUid};
use crate::kernel::{CapturedWorkload, Cgroup, KernelError};
use crate::net::NetError;
use crate::state::Workload;
use crate::svid::{Credentials, Store, Tracked};

use super::status::Phase;

/// Why a workload did not get up a rung.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The kernel door.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Listeners or routes in its network namespace.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Its network namespace could not be told from others.
    #[error("cannot read the network namespace's cookie (SO_NETNS_COOKIE, Linux 5.14 or newer): {0}")]
    Cookie(std::io::Error),
}

/// A workload of this node.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) workload: Arc<Workload>,
    cgroup: Option<Arc<Cgroup>>,
    watcher: Option<Watcher>,
    tracked: Option<Tracked>,
    sandbox: Option<NetnsCookie>,
    captured: Option<CapturedWorkload>,
    phase: Option<Phase>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Local {
    pub(super) fn new(workload: Arc<Workload>) -> Self {
        Self {
            workload,
            cgroup: None,
            watcher: None,
            tracked: None,
            sandbox: None,
            captured: None,
            phase: None,
            failures: 0,
            retry_at: None,
        }
    }

    /// Changes that cannot be made in place: another identity means another key, another cgroup another entry.
    pub(super) fn must_restart(&self, new: &Workload) -> bool {
        let old = &self.workload;
        old.identity != new.identity
            || old.cgroup != new.cgroup
            || old.enrolled != new.enrolled
            || old.host_network != new.host_network
    }

    pub(super) fn lives_at(&self, path: &Path) -> bool {
        self.workload.cgroup.as_deref().is_some_and(|c| Path::new(c) == path)
    }

    pub(super) fn cgroup_id(&self) -> Option<CgroupId> {
        self.cgroup.as_ref().map(|c| c.id())
    }

    /// It may have a cgroup, and we do not know which: none is named, or the named one could not be opened.
    pub(super) fn is_unresolved(&self) -> bool {
        self.cgroup.is_none() && self.phase != Some(Phase::WaitingForCgroup)
    }

    /// Opens the cgroup and watches its population; `None` while it does not exist.
    pub(super) fn open_cgroup(
        &mut self,
        mount: &Path,
        wake: &mpsc::Sender<WorkloadUid>,
    ) -> Result<Option<Arc<Cgroup>>, ReconcileError> {
        if let Some(cgroup) = &self.cgroup {
            return Ok(Some(cgroup.clone()));
        }
        let Some(relative) = &self.workload.cgroup else { return Ok(None) };
        let cgroup = match Cgroup::open(mount, Path::new(&**relative)) {
            Ok(cgroup) => Arc::new(cgroup),
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.watcher = Some(Watcher::spawn(cgroup.clone(), self.workload.uid.clone(), wake.clone()));
        self.cgroup = Some(cgroup.clone());
        Ok(Some(cgroup))
    }

    /// Claims an SVID, once.
    pub(super) fn track(&mut self, store: &Store) -> Credentials {
        let workload = &self.workload;
        self.tracked
            .get_or_insert_with(|| store.track(workload.uid.clone(), workload.identity.clone()))
            .credentials()
    }

    pub(super) fn sandbox(&self) -> Option<NetnsCookie> {
        self.sandbox
    }

    pub(super) fn enter(&mut self, cookie: NetnsCookie) {
        self.sandbox = Some(cookie);
    }

    pub(super) fn leave(&mut self) -> Option<NetnsCookie> {
        self.sandbox.take()
    }

    pub(super) fn is_captured_as(&self, wanted: &CapturedWorkload) -> bool {
        self.captured.as_ref() == Some(wanted)
    }

    pub(super) fn captured(&mut self, entry: CapturedWorkload) {
        self.captured = Some(entry);
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn retry_now(&mut self) {
        self.failures = 0;
    }

    /// Notes how far it got, logs changes once, and sets the next attempt where nothing will wake it otherwise.
    pub(super) fn settle(&mut self, reached: &Result<Phase, ReconcileError>) {
        let phase = match reached {
            Ok(phase) => phase.clone(),
            Err(e) => Phase::Failed(e.to_string()),
        };
        self.failures = if phase.is_settled() { 0 } else { self.failures.saturating_add(1) };
        // A cgroup that is made, and one that gets a process, wake us; a process that changes its network namespace
        // after it entered the cgroup does not, so waiting is retried too.
        self.retry_at = (!phase.is_settled()).then(|| Instant::now() + backoff(self.failures));
        if self.phase.as_ref() != Some(&phase) {
            self.log(&phase);
            self.phase = Some(phase);
        }
    }

    fn log(&self, phase: &Phase) {
        let Workload { uid, identity, .. } = &*self.workload;
        match phase {
            Phase::Failed(error) => {
                warn!(workload = %uid, identity = %identity, %error, "workload not captured")
            }
            Phase::CgroupUnknown => {
                warn!(workload = %uid, identity = %identity, error = phase.missing(), "workload not captured")
            }
            phase => info!(workload = %uid, identity = %identity, phase = phase.name(), "workload"),
        }
    }
}

/// Wakes the reconciler at each change of a cgroup's population; ends with its owner.
#[derive(Debug)]
struct Watcher(JoinHandle<()>);

impl Watcher {
    fn spawn(cgroup: Arc<Cgroup>, uid: WorkloadUid, wake: mpsc::Sender<WorkloadUid>) -> Self {
        Self(tokio::spawn(async move {
            loop {
                cgroup.changed().await;
                if wake.send(uid.clone()).await.is_err() {
                    return;
                }
            }
        }))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// 20 ms doubling to 5 s: the first attempts cover a runtime that is just setting a pod up.
fn backoff(failures: u32) -> Duration {
    Duration::from_millis(20 << failures.min(8)).min(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_capped() {
        assert_eq!(backoff(0), Duration::from_millis(20));
        assert_eq!(backoff(u32::MAX), Duration::from_secs(5));
    }
}
