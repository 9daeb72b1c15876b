//! Direct flows at the kernel's door: permits and Services go in, live flows and their ends come out, and a flow that has
//! lost its permit is ended.
//!
//! Only a [`Permit`] from the policy tables can be written into the verdict map, and it carries its epoch along: one that
//! was made before the last change is written and does not hold. The kernel's epochs begin where the predecessor's ended,
//! so that nothing it permitted holds after a restart until it has been asked for again.
//!
//! | file | what |
//! |---|---|
//! | `events` | the ring in which the programs tell of ends |
//! | `flows` | live flows: who, and how many bytes |
//! | `namespaces` | the clients' network namespaces, in which a socket is looked up and ended |

use std::io;
use std::net::SocketAddr;

use aya::maps::{Array, HashMap, MapData};
use signet_common::abi::Flow;
use signet_common::direct::{self as abi, Permitted, Vip};

use super::error::KernelError;
use super::maps::{absent_is_fine, address, remove_where};
use super::object::Pins;
use crate::addr::{CgroupId, NetnsCookie};
use crate::policy::Permit;

pub(super) mod events;
mod flows;
mod namespaces;

pub use self::flows::{DirectBytes, DirectEnd, DirectFlow, DirectFlows};

use self::namespaces::Namespaces;

/// Who may connect where, past the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectRoute {
    /// The client workload's cgroup.
    pub client: CgroupId,
    /// The server's address and port.
    pub to: SocketAddr,
}

/// Where a permitted server lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectServer {
    /// The workload's cgroup.
    pub cgroup: CgroupId,
    /// Its network namespace.
    pub netns: NetnsCookie,
    /// It shares that with others.
    pub host_network: bool,
}

/// A Service's port as the kernel should resolve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectService {
    /// `sessionAffinity: ClientIP`.
    pub affinity: bool,
    /// From which one is chosen, as the engine would.
    pub backends: Vec<SocketAddr>,
}

/// The writer's side. Owned by [`super::Kernel`].
pub struct Direct {
    epoch: Array<MapData, u64>,
    /// What the kernel's epoch is where the policy's is 0.
    base: u64,
    policy_epoch: u64,
    permits: HashMap<MapData, Permitted, abi::Permit>,
    services: HashMap<MapData, Vip, abi::Service>,
    flows: DirectFlows,
}

impl Direct {
    /// Takes the maps over. What a predecessor has permitted does not hold any more.
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let mut epoch: Array<MapData, u64> = pins.open("EPOCH")?;
        let base = epoch.get(&0, 0).map_err(KernelError::map("read", "EPOCH"))? + 1;
        epoch.set(0, base, 0).map_err(KernelError::map("write", "EPOCH"))?;
        let mut permits = pins.open("PERMITS")?;
        remove_where(&mut permits, |_, _| true).map_err(KernelError::map("clear", "PERMITS"))?;
        let mut services = pins.open("SERVICES")?;
        remove_where(&mut services, |_, _| true).map_err(KernelError::map("clear", "SERVICES"))?;
        let flows = DirectFlows::open(pins, Namespaces::default())?;
        Ok(Self { epoch, base, policy_epoch: 0, permits, services, flows })
    }

    /// Whether this kernel lets a flow be ended. Where not, nothing may be direct.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        super::diag::can_destroy().is_ok()
    }

    /// Takes back every permit of another policy epoch.
    ///
    /// # Errors
    /// What failed: permits of the old epoch still hold.
    pub fn set_epoch(&mut self, policy_epoch: u64) -> Result<(), KernelError> {
        self.policy_epoch = policy_epoch;
        let epoch = self.base + policy_epoch;
        self.epoch.set(0, epoch, 0).map_err(KernelError::map("write", "EPOCH"))
    }

    /// Lets new connections of a client go to a server by themselves, while the permit's epoch is the one set.
    ///
    /// # Errors
    /// What failed: they go through the engine.
    pub fn permit(
        &mut self,
        route: DirectRoute,
        server: DirectServer,
        permit: &Permit,
    ) -> Result<(), KernelError> {
        let value = abi::Permit {
            epoch: self.base + permit.epoch(),
            server: server.cgroup.0,
            netns: server.netns.0,
            host_network: u32::from(server.host_network),
            used: 0,
        };
        let inserted = self.permits.insert(permitted(route), value, 0);
        inserted.map_err(KernelError::map("add a permit to", "PERMITS"))
    }

    /// Whether a connection has used a permit since it was written.
    #[must_use]
    pub fn is_used(&self, route: DirectRoute) -> bool {
        self.permits.get(&permitted(route), 0).is_ok_and(|permit| permit.used != 0)
    }

    /// Takes a permit back.
    ///
    /// # Errors
    /// What failed: every permit was taken back instead.
    pub fn forbid(&mut self, route: DirectRoute) -> Result<(), KernelError> {
        let removed = absent_is_fine(self.permits.remove(&permitted(route)));
        if removed.is_err() {
            self.base += 1;
            self.set_epoch(self.policy_epoch)?;
        }
        removed.map_err(KernelError::map("remove a permit from", "PERMITS"))
    }

    /// Lets the kernel resolve a Service's port. False where it has more endpoints than fit: it is left to the engine.
    ///
    /// # Errors
    /// What failed: the engine resolves it.
    pub fn put_service(&mut self, vip: SocketAddr, service: &DirectService) -> Result<bool, KernelError> {
        let mut value = abi::Service { affinity: u32::from(service.affinity), ..abi::Service::default() };
        if service.backends.len() > value.backends.len() {
            self.remove_service(vip)?;
            return Ok(false);
        }
        for (slot, backend) in value.backends.iter_mut().zip(&service.backends) {
            (slot.address, slot.port) = (address(backend.ip()), backend.port());
            value.count += 1;
        }
        let inserted = self.services.insert(vip_key(vip), value, 0);
        inserted.map(|()| true).map_err(KernelError::map("add a Service to", "SERVICES"))
    }

    /// Leaves a Service's port to the engine.
    ///
    /// # Errors
    /// What failed: the kernel goes on resolving it.
    pub fn remove_service(&mut self, vip: SocketAddr) -> Result<(), KernelError> {
        absent_is_fine(self.services.remove(&vip_key(vip)))
            .map_err(KernelError::map("remove a Service from", "SERVICES"))
    }

    /// Every live flow.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn live(&self) -> Result<Vec<DirectFlow>, KernelError> {
        self.flows.live()
    }

    /// Ends a flow; its client's socket breaks, and its server's is reset. False where it has ended already, and its record
    /// goes with it.
    ///
    /// # Errors
    /// Its client's namespace is not known, or the kernel refused.
    pub fn destroy(&mut self, flow: &DirectFlow) -> io::Result<bool> {
        self.flows.destroy(flow)
    }

    /// A handle for the proxies.
    #[must_use]
    pub fn flows(&self) -> DirectFlows {
        self.flows.clone()
    }

    pub(super) fn namespaces(&self) -> &Namespaces {
        self.flows.namespaces()
    }
}

fn permitted(route: DirectRoute) -> Permitted {
    let server = address(route.to.ip());
    Permitted { client: route.client.0, server, port: route.to.port(), padding: [0; 3] }
}

fn vip_key(vip: SocketAddr) -> Vip {
    Vip { address: address(vip.ip()), port: vip.port(), padding: [0; 3] }
}

/// The key of a flow.
fn flow_key(flow: &DirectFlow) -> Flow {
    super::maps::flow_key(NetnsCookie(0), flow.source, flow.destination)
}
