//! One workload of this node, and how far up the ladder it is.
//!
//! Everything that must end with the workload is owned here (the SVID claim, the cgroup watcher), so dropping a
//! [`Local`] ends it. It decides nothing about others: sandboxes are shared, and belong to the reconciler.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::addr::{CgroupId, NetnsCookie, WorkloadUid};
use crate::kernel::{CapturedWorkload, Cgroup, KernelError, pod_cgroups};
use crate::net::NetError;
use crate::state::{CgroupName, Workload};
use crate::svid::{Credentials, Store, Tracked};

use super::NodeOptions;
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
    /// Two objects say that they are the same processes.
    #[error("{0} has its cgroup already: the two cannot be told apart, so it is not captured")]
    Taken(WorkloadUid),
}

/// A workload of this node.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) workload: Arc<Workload>,
    /// Where its cgroup can be; none where nothing says it.
    places: Vec<PathBuf>,
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
    pub(super) fn new(workload: Arc<Workload>, node: &NodeOptions) -> Self {
        Self {
            places: places(&workload, node.pods_root.as_deref()),
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
        self.places.iter().any(|place| place == path)
    }

    pub(super) fn cgroup_id(&self) -> Option<CgroupId> {
        self.cgroup.as_ref().map(|c| c.id())
    }

    /// Whether anything says which cgroup is its.
    pub(super) fn is_placed(&self) -> bool {
        !self.places.is_empty()
    }

    /// It may have a cgroup, and we do not know which: none is named, or the named one could not be opened.
    pub(super) fn is_unresolved(&self) -> bool {
        self.cgroup.is_none() && self.phase != Some(Phase::WaitingForCgroup)
    }

    /// Opens the cgroup and watches its population; `None` while it does not exist. `tenant` says whose it is already:
    /// it can be one workload's alone.
    pub(super) fn open_cgroup(
        &mut self,
        mount: &Path,
        wake: &mpsc::Sender<WorkloadUid>,
        tenant: impl Fn(CgroupId) -> Option<WorkloadUid>,
    ) -> Result<Option<Arc<Cgroup>>, ReconcileError> {
        if let Some(cgroup) = &self.cgroup {
            return Ok(Some(cgroup.clone()));
        }
        let Some(cgroup) = self.find_cgroup(mount)? else { return Ok(None) };
        if let Some(tenant) = tenant(cgroup.id()) {
            return Err(ReconcileError::Taken(tenant));
        }
        self.watcher = Some(Watcher::spawn(cgroup.clone(), self.workload.uid.clone(), wake.clone()));
        self.cgroup = Some(cgroup.clone());
        Ok(Some(cgroup))
    }

    fn find_cgroup(&self, mount: &Path) -> Result<Option<Arc<Cgroup>>, ReconcileError> {
        for place in &self.places {
            match Cgroup::open(mount, place) {
                Ok(cgroup) => return Ok(Some(Arc::new(cgroup))),
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Claims an SVID, once.
    pub(super) fn track(&mut self, store: &Store) -> Credentials {
        let workload = &self.workload;
        self.tracked
            .get_or_insert_with(|| store.track(workload.uid.clone(), workload.identity.clone()))
            .credentials()
    }

    /// The claim alone.
    pub(super) fn into_tracked(self) -> Option<Tracked> {
        self.tracked
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
        let (uid, identity) = (&self.workload.uid, &self.workload.identity);
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

fn places(workload: &Workload, pods_root: Option<&Path>) -> Vec<PathBuf> {
    match (&workload.cgroup, pods_root) {
        (Some(CgroupName::Path(path)), _) => vec![PathBuf::from(&**path)],
        (Some(CgroupName::Pod(uid)), Some(root)) => pod_cgroups(root, uid).into(),
        (Some(CgroupName::Pod(_)), None) | (None, _) => Vec::new(),
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
