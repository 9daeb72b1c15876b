//! One connection from accept to outcome.

pub mod hbone;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::addr::{CgroupId, NetnsCookie};
use crate::kernel::Origins;
use crate::net::{Listeners, Netns};
use crate::state::{State, Workload};
use crate::svid::Credentials;

/// What every connection needs: shared, built once by `app`.
pub struct Context {
    /// The node's view.
    pub state: Arc<State>,
    /// The kernel's records.
    pub origins: Origins,
    // H6: metrics, connections registry, timeouts, node zone, policy epoch receiver, HBONE pool, …
}

/// One enrolled workload of this node.
pub struct LocalWorkload {
    /// As the mesh knows it. Replaced when labels change.
    pub workload: Arc<Workload>,
    /// Its SVID.
    pub credentials: Credentials,
}

/// One network namespace with the engine's listeners in it: a pod's (one workload), or the node's own (several).
pub struct Sandbox {
    /// Where.
    pub netns: Netns,
    /// The same, as the kernel calls it.
    pub cookie: NetnsCookie,
    /// The node's own namespace: inbound is told apart by port.
    pub host: bool,
    /// Who lives there, by cgroup. Written by `reconcile`, read per connection.
    pub workloads: RwLock<HashMap<CgroupId, Arc<LocalWorkload>>>,
}

/// Accept loops of one sandbox; dropping it stops accepting and closes its connections.
pub struct Running {}

/// Starts the accept loops of a sandbox.
#[must_use]
pub fn start(context: Arc<Context>, sandbox: Arc<Sandbox>, listeners: Listeners) -> Running {
    let _ = (context, sandbox, listeners);
    todo!("H6")
}
