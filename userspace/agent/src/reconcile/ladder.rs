//! The ladder that a workload of this node climbs: cgroup, SVID, network namespace, listeners, capture.
//!
//! It can be climbed again from any rung: a step that was taken is not taken twice, and one that fails leaves the workload
//! on the rung before, where its connects wait.

use std::collections::HashSet;

use super::local::Local;
use super::status::Phase;
use super::{Door, Opened, ReconcileError, Reconciler, Sandbox, Sandboxes};
use crate::addr::{CgroupId, NetnsCookie, WorkloadUid};
use crate::kernel::{CaptureState, CapturedWorkload, Cgroup};
use crate::net::Netns;

impl<S: Sandboxes, K: Door> Reconciler<S, K> {
    /// Takes a workload as far up the ladder as it gets now.
    pub(super) fn advance(&mut self, uid: &WorkloadUid) {
        // Taken out while it climbs, so that the steps may borrow the rest of the reconciler.
        let Some(mut local) = self.locals.remove(uid) else { return };
        let reached = self.climb(&mut local);
        local.settle(&reached);
        self.statuses.set(&local.workload, &reached);
        self.locals.insert(uid.clone(), local);
        self.sweep_again();
    }

    fn climb(&mut self, local: &mut Local) -> Result<Phase, ReconcileError> {
        if !local.is_placed() {
            return Ok(Phase::CgroupUnknown);
        }
        let tenant = |cgroup| self.tenant_of(cgroup);
        let opened = local.open_cgroup(&self.options.cgroup_mount, &self.wake_tx, tenant)?;
        let Some(cgroup) = opened else { return Ok(Phase::WaitingForCgroup) };
        if !local.workload.enrolled {
            self.capture(local, cgroup.id(), CaptureState::Bypass)?;
            return Ok(Phase::Bypassed);
        }
        if local.sandbox().is_none() {
            self.capture(local, cgroup.id(), CaptureState::NotReady)?;
        }
        let credentials = local.track(&self.svids);
        if !self.synced {
            return Ok(Phase::WaitingForSource);
        }
        let Some(cookie) = self.enter_sandbox(local, &cgroup)? else {
            return Ok(Phase::WaitingForProcess);
        };
        self.sandboxes.put(cookie, cgroup.id(), local.workload.clone(), credentials);
        self.capture(local, cgroup.id(), CaptureState::Redirect)?;
        if self.statuses.attached() {
            self.sandboxes.captured(cookie, cgroup.id(), local.workload.clone());
        }
        Ok(Phase::Captured)
    }

    /// The programs are attached: those who are up the ladder already are captured now.
    pub(super) fn tell_captured(&mut self) {
        for local in self.locals.values() {
            if let (Some(cookie), Some(cgroup)) = (local.sandbox(), local.cgroup_id()) {
                self.sandboxes.captured(cookie, cgroup, local.workload.clone());
            }
        }
    }

    /// Finds the workload's network namespace and makes sure that the engine listens there.
    fn enter_sandbox(
        &mut self,
        local: &mut Local,
        cgroup: &Cgroup,
    ) -> Result<Option<NetnsCookie>, ReconcileError> {
        let host = local.workload.host_network;
        let Some((netns, cookie)) = self.kernel.netns_of(cgroup, host)? else {
            // A process that has just left keeps its sandbox: the pod's next container enters the same one.
            return Ok(local.sandbox());
        };
        if local.sandbox() == Some(cookie) {
            return Ok(Some(cookie));
        }
        self.leave_sandbox(local);
        if !self.open.contains_key(&cookie) {
            self.open_sandbox(netns, cookie, host)?;
        }
        let sandbox = self.open.get_mut(&cookie).expect("it was opened above");
        sandbox.tenants.insert(local.workload.uid.clone());
        local.enter(cookie);
        self.direct.outdate_services();
        Ok(Some(cookie))
    }

    fn open_sandbox(&mut self, netns: Netns, cookie: NetnsCookie, host: bool) -> Result<(), ReconcileError> {
        let listeners = self.kernel.listen(&netns, cookie, host)?;
        self.open.insert(cookie, Sandbox { netns: netns.clone(), tenants: HashSet::new() });
        self.sandboxes.open(Opened { netns, cookie, host, listeners });
        Ok(())
    }

    pub(super) fn capture(
        &mut self,
        local: &mut Local,
        cgroup: CgroupId,
        capture: CaptureState,
    ) -> Result<(), ReconcileError> {
        let wanted = CapturedWorkload {
            cgroup,
            addresses: local.workload.addresses.to_vec(),
            host_network: local.workload.host_network,
            capture,
        };
        if local.is_captured_as(&wanted) {
            return Ok(());
        }
        self.kernel.put_workload(&wanted)?;
        local.captured(wanted);
        Ok(())
    }
}
