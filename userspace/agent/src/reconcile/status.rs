//! How far each workload of this node is, for readiness and views.
//!
//! Written by the reconciler alone, read by `admin`; the lock is held for a map operation, never across an await.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::addr::WorkloadUid;
use crate::state::Workload;

/// A rung of the ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Known, not in the mesh.
    Bypassed,
    /// The source has not told all it had yet; connects are denied.
    WaitingForSource,
    /// It is enrolled, and its manifest does not say which cgroup is its: it cannot be captured.
    CgroupUnknown,
    /// Its cgroup does not exist yet.
    WaitingForCgroup,
    /// Its cgroup has no process in a network namespace of its own yet; connects are denied.
    WaitingForProcess,
    /// In the mesh and captured.
    Captured,
    /// A step failed; connects are denied, and it is retried.
    Failed(String),
}

/// One workload of this node.
#[derive(Clone, Debug)]
pub struct LocalStatus {
    /// The workload.
    pub workload: Arc<Workload>,
    /// How far it is.
    pub phase: Phase,
}

/// All of this node's workloads. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Statuses {
    locals: Arc<RwLock<BTreeMap<WorkloadUid, LocalStatus>>>,
    attached: Arc<AtomicBool>,
}

impl Phase {
    /// Nothing more is to be done until something changes.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Bypassed | Self::WaitingForSource | Self::CgroupUnknown | Self::Captured)
    }

    /// Its name in logs and tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bypassed => "bypassed",
            Self::WaitingForSource => "waiting for source",
            Self::CgroupUnknown => "cgroup unknown",
            Self::WaitingForCgroup => "waiting for cgroup",
            Self::WaitingForProcess => "waiting for process",
            Self::Captured => "captured",
            Self::Failed(_) => "failed",
        }
    }

    /// What somebody has to mend so that it goes on; `None` where nobody has to.
    #[must_use]
    pub fn missing(&self) -> Option<&str> {
        match self {
            Self::CgroupUnknown => {
                Some("its manifest names no cgroup: annotate it with signet.dev/cgroup or signet.dev/unit")
            }
            Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl Statuses {
    /// All workloads of this node.
    #[must_use]
    pub fn all(&self) -> Vec<LocalStatus> {
        self.locals.read().values().cloned().collect()
    }

    /// The programs are attached and the sources have told all they had.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    pub(super) fn set_attached(&self) {
        self.attached.store(true, Ordering::Release);
    }

    pub(super) fn set<E: ToString>(&self, workload: &Arc<Workload>, reached: &Result<Phase, E>) {
        let phase = match reached {
            Ok(phase) => phase.clone(),
            Err(e) => Phase::Failed(e.to_string()),
        };
        self.locals.write().insert(workload.uid.clone(), LocalStatus { workload: workload.clone(), phase });
    }

    pub(super) fn remove(&self, uid: &WorkloadUid) {
        self.locals.write().remove(uid);
    }
}
