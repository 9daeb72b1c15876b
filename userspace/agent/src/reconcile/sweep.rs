//! What a predecessor has left in the kernel and nobody claims: removed, but only once it is known to be nobody's.
//!
//! Both sweeps are tried at the end of start-up, after each step of a workload and at each heartbeat until they have been
//! done once; what cannot be told apart yet stays, and goes on denying.

use std::collections::HashSet;

use tracing::error;

use super::local::Local;
use super::{Door, Reconciler, Sandboxes};
use crate::addr::CgroupId;
use crate::kernel;

impl<S: Sandboxes, K: Door> Reconciler<S, K> {
    /// Removes what a predecessor has left and nobody claims, as far as that can be told by now.
    pub(super) fn sweep(&mut self) -> Result<(), kernel::KernelError> {
        self.sweep_entries()?;
        self.sweep_links()
    }

    /// What could not be swept before, maybe can be now.
    pub(super) fn sweep_again(&mut self) {
        if self.statuses.attached()
            && let Err(e) = self.sweep()
        {
            error!(error = %e, "sweep of what a predecessor has left");
        }
    }

    /// While it is not known which cgroup an enrolled workload has, any entry may be its: without the entry it would be
    /// captured no more.
    fn sweep_entries(&mut self) -> Result<(), kernel::KernelError> {
        let unresolved = |local: &Local| local.workload.enrolled && local.is_unresolved();
        if self.entries_swept || self.locals.values().any(unresolved) {
            return Ok(());
        }
        let known: HashSet<CgroupId> = self.locals.values().filter_map(Local::cgroup_id).collect();
        for cgroup in self.kernel.workloads()? {
            if !known.contains(&cgroup) {
                self.kernel.remove_workload(cgroup)?;
            }
        }
        self.entries_swept = true;
        Ok(())
    }

    /// While the network namespace of an enrolled workload is not found, any link may be its: without the link, plaintext
    /// would reach it past its policies.
    fn sweep_links(&mut self) -> Result<(), kernel::KernelError> {
        let homeless = |local: &Local| local.workload.enrolled && local.sandbox().is_none();
        if self.links_swept || self.locals.values().any(homeless) {
            return Ok(());
        }
        for cookie in self.kernel.steered() {
            if !self.open.contains_key(&cookie) {
                self.kernel.unsteer(cookie)?;
            }
        }
        self.links_swept = true;
        Ok(())
    }
}
