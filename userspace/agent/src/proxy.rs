//! One connection from accept to outcome.

pub mod connections;
pub mod hbone;
pub mod metrics;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::addr::{CgroupId, NetnsCookie};
use crate::config::Timeouts;
use crate::drain::Watch;
use crate::kernel::{Origin, Origins};
use crate::net::{Listeners, Netns};
use crate::state::{State, Workload};
use crate::svid::Credentials;
use connections::Connections;
use hbone::Pool;
use metrics::Metrics;

/// What every connection needs: shared, built once by `app`.
pub struct Context {
    /// The node's view.
    pub state: Arc<State>,
    /// The kernel's records: [`Origins`], or a table in tests.
    pub origins: Arc<dyn OriginLookup>,
    /// HBONE client connections of the whole node.
    pub pool: Pool,
    /// Istio's TCP metrics.
    pub metrics: Arc<Metrics>,
    /// Every live connection.
    pub connections: Arc<Connections>,
    /// Bounds of each step.
    pub timeouts: Timeouts,
    /// This node's zone: endpoints in it are preferred.
    pub zone: Arc<str>,
    /// This cluster's name.
    pub cluster: Arc<str>,
    /// The policy epoch, sent by `reconcile` after each [`State::apply`] that may have changed an answer. Live connections
    /// are authorised anew when it changes.
    pub policy_epoch: watch::Receiver<u64>,
    /// Asked to stop: accept loops end, live connections finish. Whoever drains drops the `Context` too, since the drain
    /// waits for this watch as well.
    pub drain: Watch,
}

/// What the kernel recorded about flows, as the proxies ask for it.
pub trait OriginLookup: Send + Sync {
    /// The record of an outbound flow, see [`Origins::lookup`].
    fn lookup(&self, netns: NetnsCookie, client: SocketAddr, listener: SocketAddr) -> Option<Origin>;
    /// The enrolled cgroup behind a listening port, see [`Origins::port_owner`].
    fn port_owner(&self, netns: NetnsCookie, port: u16) -> Option<CgroupId>;
}

impl OriginLookup for Origins {
    fn lookup(&self, netns: NetnsCookie, client: SocketAddr, listener: SocketAddr) -> Option<Origin> {
        Self::lookup(self, netns, client, listener)
    }
    fn port_owner(&self, netns: NetnsCookie, port: u16) -> Option<CgroupId> {
        Self::port_owner(self, netns, port)
    }
}

/// One enrolled workload of this node.
pub struct LocalWorkload {
    /// As the mesh knows it. The whole `LocalWorkload` is replaced when labels change.
    pub workload: Arc<Workload>,
    credentials: Credentials,
}

impl LocalWorkload {
    /// A workload and its claim on an SVID.
    #[must_use]
    pub fn new(workload: Arc<Workload>, credentials: Credentials) -> Self {
        Self { workload, credentials }
    }
    /// Its SVID.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }
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

impl Running {
    /// Resolves when the drain has begun and the last connection has ended. Whoever waits bounds the wait, and then drops.
    pub async fn finished(&mut self) {
        todo!("H6")
    }
}

/// Starts the accept loops of a sandbox. Call it from within the runtime.
#[must_use]
pub fn start(context: Arc<Context>, sandbox: Arc<Sandbox>, listeners: Listeners) -> Running {
    let _ = (context, sandbox, listeners);
    todo!("H6")
}
