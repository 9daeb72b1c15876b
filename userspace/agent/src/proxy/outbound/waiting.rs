//! A destination inside the cluster of which nobody has told yet: the connection waits for that, bounded, and is refused.
//!
//! kube-proxy may know a new Service, and a client a new pod, before this engine does: by minutes where its watch is cut
//! off. Taken for a destination outside of the mesh, its bytes would go out in clear. The wait ends with whatever the
//! source tells next that may be about it.
//!
//! Two kinds of address in the pods' ranges are no pod's and are not waited for. One is the node's own, such as its
//! bridge's: what goes there stays on the node. The other is that of another node's bridge, the first address of that
//! node's range. Which CNI keeps it for that cannot be asked; so it counts only where this node's own bridge has the first
//! address of its range, and with the range's prefix. A CNI that gives that address to pods (Calico, Cilium) has at most a
//! tunnel with such an address, and without the prefix.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio::time::timeout;

use super::route::{Expected, Missing, Route};
use super::{Identified, Resolved};
use crate::net::own_addresses;
use crate::proxy::awaited::Waited;
use crate::proxy::failure::Failure;
use crate::state::{RangeKind, State};

impl<'a> Identified<'a> {
    /// Finds the way to the destination, once it is known.
    pub(super) async fn resolve(self) -> Result<Resolved<'a>, Failure> {
        let route = match self.find() {
            Err(Missing::Told(expected)) => self.wait_for(expected).await?,
            found => found.map_err(|missing| self.failure(missing))?,
        };
        Ok(self.leading(route))
    }

    async fn wait_for(&self, expected: Expected) -> Result<Route, Failure> {
        let Expected { kind, address, .. } = expected;
        if kind == RangeKind::Pods && is_a_nodes(&self.session.context.state, address) {
            return Ok(Route::outside(self.destination.socket()));
        }
        let context = self.session.context;
        let Ok(_place) = self.local.waiting.try_acquire() else {
            context.awaited.ended(kind, address, Waited::Refused);
            return Err(Failure::TooManyWait);
        };
        let waited = timeout(context.timeouts.discovery, self.told()).await;
        let found = waited.unwrap_or_else(|_| Err(self.failure(Missing::Told(expected))));
        let is_known = !matches!(found, Err(Failure::NotTold { .. }));
        context.awaited.ended(kind, address, if is_known { Waited::Known } else { Waited::Refused });
        found
    }

    /// Asks again whenever the source has told something.
    async fn told(&self) -> Result<Route, Failure> {
        let mut discovered = self.session.context.discovered.clone();
        loop {
            discovered.changed().await.map_err(|_| Failure::Closed)?;
            match self.find() {
                Err(Missing::Told(_)) => {}
                found => return found.map_err(|missing| self.failure(missing)),
            }
        }
    }
}

/// Whether an address in the pods' ranges is a node's own, and so no pod's.
fn is_a_nodes(state: &State, address: IpAddr) -> bool {
    let own = own_addresses();
    let has_the_first = |own: &IpNet| state.pod_range_begun_by(own.addr()) == Some(own.trunc());
    own.iter().any(|own| own.addr() == address.to_canonical())
        || (state.pod_range_begun_by(address).is_some() && own.iter().any(has_the_first))
}
