//! The way down the ladder: the kernel first, so that nothing new arrives, then the sandbox, then the SVID.
//!
//! What fails here is logged and does not stop the rest: an entry that could not be removed is swept later, and denies
//! until then, since its listeners are gone.

use tracing::{error, warn};

use super::local::Local;
use super::{Door, ReconcileError, Reconciler, Sandboxes};
use crate::addr::{CgroupId, NetnsCookie, WorkloadUid};
use crate::kernel::CaptureState;

/// Why a workload goes down the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// For good: no map entry may outlive it.
    Gone,
    /// To climb again under other terms.
    Changed,
}

impl<S: Sandboxes, K: Door> Reconciler<S, K> {
    /// Takes a workload down the ladder: kernel first, so that nothing new arrives, then the sandbox, then the SVID.
    pub(super) fn drop_local(&mut self, uid: &WorkloadUid, leaving: Leaving) {
        let Some(mut local) = self.locals.remove(uid) else { return };
        self.release_cgroup(&mut local, leaving);
        self.leave_sandbox(&mut local);
        self.statuses.remove(uid);
    }

    /// The workload whose cgroup this is.
    pub(super) fn tenant_of(&self, cgroup: CgroupId) -> Option<WorkloadUid> {
        let tenant = self.locals.values().find(|local| local.cgroup_id() == Some(cgroup));
        tenant.map(|local| local.workload.uid.clone())
    }

    fn release_cgroup(&mut self, local: &mut Local, leaving: Leaving) {
        let Some(cgroup) = local.cgroup_id() else { return };
        let done = match leaving {
            Leaving::Gone => self.kernel.remove_workload(cgroup).map_err(ReconcileError::from),
            // It comes back in a moment under other terms: until then its connects wait.
            Leaving::Changed => self.capture(local, cgroup, CaptureState::NotReady),
        };
        if let Err(e) = done {
            error!(workload = %local.workload.uid, error = %e, "release");
            // Nobody's now: it goes with the next sweep.
            self.entries_swept = false;
        }
    }

    pub(super) fn leave_sandbox(&mut self, local: &mut Local) {
        let Some(cookie) = local.leave() else { return };
        self.direct.outdate_services();
        if let Some(cgroup) = local.cgroup_id() {
            // While its namespace is still served: its flows are ended in there.
            self.withdraw_direct(&local.workload, cgroup);
            self.sandboxes.remove(cookie, cgroup);
        }
        let Some(sandbox) = self.open.get_mut(&cookie) else { return };
        sandbox.tenants.remove(&local.workload.uid);
        if sandbox.tenants.is_empty() {
            self.close_sandbox(cookie);
        }
    }

    fn close_sandbox(&mut self, cookie: NetnsCookie) {
        let Some(sandbox) = self.open.remove(&cookie) else { return };
        if let Err(e) = self.kernel.unsteer(cookie) {
            error!(netns = %cookie, error = %e, "unsteer");
        }
        self.sandboxes.close(cookie);
        if let Err(e) = self.kernel.restore(&sandbox.netns) {
            warn!(netns = %cookie, error = %e, "restore");
        }
    }
}
