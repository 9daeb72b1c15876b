//! Which Services the kernel resolves: those that have an endpoint captured on this node.
//!
//! Only these can lead to a direct connection; the others are the engine's, as are those with more endpoints than fit. The
//! kernel gets the very list from which the engine would choose here. Services, slices and workloads change in bursts, so
//! the lists are compared with what was written once a burst is over.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use tracing::debug;

use super::super::{Door, Local, Reconciler, Sandboxes};
use crate::kernel::DirectService;

/// What is written, by virtual address and port.
pub(in crate::reconcile) type Written = HashMap<SocketAddr, DirectService>;

impl<S: Sandboxes, K: Door> Reconciler<S, K> {
    /// Writes what has changed.
    pub(super) fn settle_services(&mut self) {
        let wanted = self.wanted_services();
        let gone: Vec<_> =
            self.direct.services.keys().filter(|vip| !wanted.contains_key(vip)).copied().collect();
        for vip in gone {
            self.direct.services.remove(&vip);
            if let Err(e) = self.kernel.direct().remove_service(vip) {
                debug!(%vip, error = %e, "a Service is resolved by the kernel that should not be");
            }
        }
        for (vip, service) in wanted {
            if self.direct.services.get(&vip) != Some(&service) {
                self.write_service(vip, service);
            }
        }
    }

    /// One that does not fit, and one that cannot be written, is the engine's.
    fn write_service(&mut self, vip: SocketAddr, service: DirectService) {
        match self.kernel.direct().put_service(vip, &service) {
            Ok(_) => {
                self.direct.services.insert(vip, service);
            }
            Err(e) => {
                debug!(%vip, error = %e, "a Service is left to the engine");
                let _ = self.kernel.direct().remove_service(vip);
                self.direct.services.remove(&vip);
            }
        }
    }

    fn wanted_services(&self) -> Written {
        let captured = |local: &&Local| local.sandbox().is_some() && local.workload.enrolled;
        let here: HashSet<IpAddr> = self
            .locals
            .values()
            .filter(captured)
            .flat_map(|local| local.workload.addresses.iter().copied())
            .collect();
        let is_here = |endpoint: SocketAddr| here.contains(&endpoint.ip());
        let candidates = self.state.candidates(&self.options.zone, is_here).into_iter();
        candidates.map(|(vip, affinity, backends)| (vip, DirectService { affinity, backends })).collect()
    }
}
