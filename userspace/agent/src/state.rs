//! The node's view of the mesh: workloads, services, policies. One writer (`reconcile`), many cheap readers.
//!
//! What connections ask for is in sharded tables (`table`), so that a reader waits for one insertion at most; policies are
//! behind a lock of their own. [`State::apply`] alone writes, one event at a time; a reader gets an owned answer and holds
//! nothing afterwards. No call leaves this module while a lock is held. It does not fetch: what has not been told is
//! unknown, and `Target::Unknown` is an answer.

use std::cell::Cell;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};

use crate::addr::WorkloadUid;
use crate::policy::{AuthorizationPolicy, Denial, Flow, PeerAuthentication, Permit, PolicySet, Shadow};

use self::intern::ZonePool;
use self::services::{Asker, Choice, Services};
use self::table::AddressHasher;
use self::workloads::{BehindNode, Workloads};

pub use self::affinity::belonging;
pub use self::intern::WorkloadPool;
pub use self::object::{
    Addresses, CgroupName, ContainerPort, Endpoint, EndpointSlice, Event, External, Hint, Ports, RangeKind,
    Ranges, Service, ServicePort, Template, Workload,
};

mod affinity;
mod intern;
mod object;
mod ranges;
mod services;
mod table;
#[cfg(test)]
mod tests;
mod workloads;

/// Where a destination address leads.
#[derive(Clone, Debug)]
pub enum Target {
    /// A workload, and the port to reach there; the Service it was resolved from, where the address was a VIP.
    Workload {
        /// The endpoint.
        workload: Arc<Workload>,
        /// The address of it to dial.
        address: IpAddr,
        /// The application's port there.
        port: u16,
        /// The Service.
        service: Option<Arc<Service>>,
    },
    /// A Service endpoint that is no known workload.
    Endpoint {
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// The Service.
        service: Arc<Service>,
    },
    /// A VIP without a ready endpoint (or without that port).
    NoEndpoint {
        /// The Service.
        service: Arc<Service>,
    },
    /// Nothing is known of the address, which is inside the cluster: a Service or a pod that is still to be told of.
    Awaited {
        /// What it must be.
        kind: RangeKind,
        /// The address.
        address: IpAddr,
        /// The Service that led there.
        service: Option<Arc<Service>>,
    },
    /// Nothing is known of the address: outside the mesh.
    Unknown,
}

/// Who asks for a Service, as far as it matters to the choice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// The client's first address of the VIP's family.
    pub client: Option<IpAddr>,
    /// What the kernel has chosen for it.
    pub choice: Option<SocketAddr>,
}

/// The node's view. Interior locks, never held across an await; every answer is an owned, cheap clone.
#[derive(Debug)]
pub struct State {
    /// Held while an event is applied: there is one writer.
    pools: Mutex<Pools>,
    workloads: Workloads,
    services: Services,
    ranges: ranges::Ranges,
    policies: RwLock<PolicySet>,
}

/// What the writer alone needs.
#[derive(Debug, Default)]
struct Pools {
    workloads: WorkloadPool,
    zones: ZonePool,
}

impl State {
    /// An empty view of a mesh with that root namespace.
    #[must_use]
    pub fn new(root_namespace: &str) -> Self {
        Self {
            pools: Mutex::default(),
            workloads: Workloads::default(),
            services: Services::default(),
            ranges: ranges::Ranges::default(),
            policies: RwLock::new(PolicySet::new(root_namespace)),
        }
    }

    /// Applies one event; the only way in. Called by `reconcile` alone. True when policy answers may have changed.
    pub fn apply(&self, event: &Event) -> bool {
        let mut pools = self.pools.lock();
        let before = self.epoch();
        self.write(event, &mut pools);
        self.epoch() != before
    }

    /// A workload by uid.
    #[must_use]
    pub fn workload(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workloads that have an address: one, except for hostNetwork workloads that share a node's.
    #[must_use]
    pub fn workloads_at(&self, address: IpAddr) -> Vec<Arc<Workload>> {
        self.workloads.at(address)
    }

    /// The workloads that may be meant by an address and port, the one that [`State::resolve`] chooses among them: more
    /// than one only where hostNetwork workloads share the address and do not say, or say the same, of their ports.
    #[must_use]
    pub fn owners(&self, address: IpAddr, port: u16) -> Vec<Arc<Workload>> {
        self.workloads.owners(address, port)
    }

    /// Every workload, in no order, for views.
    #[must_use]
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        self.workloads.all()
    }

    /// Every service, in no order, for views.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.services.all()
    }

    /// Every policy, by namespace and name, for views.
    #[must_use]
    pub fn policies(&self) -> (Vec<Arc<AuthorizationPolicy>>, Vec<Arc<PeerAuthentication>>) {
        let policies = self.policies.read();
        (policies.authorizations(), policies.peer_authentications())
    }

    /// The range of pods' addresses whose first address this is: where the range is a bridge's, the bridge's own.
    #[must_use]
    pub fn pod_range_begun_by(&self, address: IpAddr) -> Option<IpNet> {
        self.ranges.begun_by(address)
    }

    /// Resolves a destination: VIPs, Services' ports of nodes and their external addresses to a ready endpoint (same zone as `zone` first, then any; random among equals), pod
    /// addresses and pods' ports of their nodes to their workload. Endpoints in `except` have just failed and are passed over (VIPs only).
    ///
    /// On an address that several workloads share, a port that none of them can be meant by leads to `Unknown`; an address
    /// that only the cluster can have, and of which nothing is known, to `Awaited`.
    #[must_use]
    pub fn resolve(&self, address: IpAddr, port: u16, zone: &str, except: &[SocketAddr]) -> Target {
        self.resolve_for(Wish::default(), SocketAddr::new(address, port), zone, except)
    }

    /// The same for a client: its Service's affinity is honoured, and the kernel's choice for it kept while it is ready.
    #[must_use]
    pub fn resolve_for(&self, wish: Wish, to: SocketAddr, zone: &str, except: &[SocketAddr]) -> Target {
        let asker = Asker { zone, except, wish, random: draw };
        let of_service = self.services.choose(to, asker).or_else(|| self.services.choose_at_node(to, asker));
        if let Some(choice) = of_service {
            return self.chosen(choice, to.ip());
        }
        let to = match self.behind_node(to) {
            None => to,
            Some(BehindNode::Pod(pod)) => pod,
            Some(BehindNode::Awaited) => {
                return Target::Awaited { kind: RangeKind::Pods, address: to.ip(), service: None };
            }
        };
        match self.workloads.owner(to.ip(), to.port()) {
            Some(workload) => workload_target(workload, to, None),
            None => self.unknown(to, asker),
        }
    }

    /// All that a connection to an address and port may lead to in the mesh, each with where: behind a VIP any of its endpoints
    /// that are enrolled.
    #[must_use]
    pub fn enrolled_behind(&self, to: SocketAddr) -> Vec<(Arc<Workload>, SocketAddr)> {
        let behind = match self.behind_node(to) {
            Some(BehindNode::Pod(pod)) => pod,
            Some(BehindNode::Awaited) | None => to,
        };
        let is_others =
            || behind != to || !self.workloads.at(to.ip()).is_empty() || self.ranges.of(to.ip()).is_some();
        let places = self.services.endpoints(to, is_others).unwrap_or_else(|| vec![behind]);
        let owners =
            |to: SocketAddr| self.owners(to.ip(), to.port()).into_iter().map(move |owner| (owner, to));
        places.into_iter().flat_map(owners).filter(|(owner, _)| owner.enrolled).collect()
    }

    /// The application's port at `endpoint` behind `port` of the Service with that hostname; `None` where there is no such
    /// Service or port, or `endpoint` is not one of its endpoints (ready or not). For CONNECTs to `<hostname>:<port>`.
    #[must_use]
    pub fn target_port(&self, hostname: &str, port: u16, endpoint: IpAddr) -> Option<u16> {
        self.services.target_port(hostname, port, endpoint)
    }

    /// The ports of all VIPs that may lead from this zone to one of the endpoints that `is_here` says: each with whether a
    /// client gets the same endpoint each time, and the endpoints from which one is chosen.
    #[must_use]
    pub fn candidates(
        &self,
        zone: &str,
        is_here: impl Fn(SocketAddr) -> bool,
    ) -> Vec<(SocketAddr, bool, Vec<SocketAddr>)> {
        self.services.candidates(zone, is_here)
    }

    /// Asks the policy tables.
    ///
    /// # Errors
    /// The denial, naming the policy.
    pub fn authorize(&self, flow: &Flow<'_>) -> Result<Permit, Denial> {
        self.policies.read().authorize(flow)
    }

    /// What the answer would be with the dry-run policies enforced, for the log of a flow that [`State::authorize`] has
    /// answered.
    #[must_use]
    pub fn shadow(&self, flow: &Flow<'_>) -> Shadow {
        self.policies.read().shadow(flow)
    }

    /// The policy epoch. `reconcile` tells the live connections when [`State::apply`] has changed it.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.policies.read().epoch()
    }

    fn write(&self, event: &Event, pools: &mut Pools) {
        match event {
            Event::Workload(workload) => self.put_workload(workload, &mut pools.workloads),
            Event::WorkloadGone(uid) => self.workloads.remove(uid, &mut pools.workloads),
            Event::Service(service) => self.services.put(service.clone()),
            Event::ServiceGone(namespace, name) => self.services.remove(namespace, name),
            Event::EndpointSlice(slice) => self.services.put_slice(slice.clone(), &mut pools.zones),
            Event::EndpointSliceGone(namespace, name) => {
                self.services.remove_slice(namespace, name, &mut pools.zones);
            }
            Event::Authorization(policy) => self.policies.write().upsert_authorization((**policy).clone()),
            Event::AuthorizationGone(namespace, name) => {
                self.policies.write().remove_authorization(namespace, name);
            }
            Event::PeerAuthentication(policy) => {
                self.policies.write().upsert_peer_authentication((**policy).clone());
            }
            Event::PeerAuthenticationGone(namespace, name) => {
                self.policies.write().remove_peer_authentication(namespace, name);
            }
            Event::Ranges(ranges) => {
                self.ranges.put(ranges);
                self.put_node(ranges.kind, &ranges.owner, &ranges.node);
            }
            Event::RangesGone(kind, owner) => {
                self.ranges.remove(*kind, owner);
                self.put_node(*kind, owner, &[]);
            }
            Event::Synced => {}
        }
    }

    /// A new workload has no connections whose answer could change; one that changes in what policies look at has. The
    /// epoch changes after the workload: whoever asks in between is asked again.
    fn put_workload(&self, workload: &Arc<Workload>, pool: &mut WorkloadPool) {
        let (old, new) = self.workloads.put(Arc::clone(workload), pool);
        if old.is_some_and(|old| seen_by_policies(&old) != seen_by_policies(&new)) {
            self.policies.write().invalidate();
        }
    }

    /// Pods' ranges are told of by their Node.
    fn put_node(&self, kind: RangeKind, name: &Arc<str>, addresses: &[IpAddr]) {
        if kind == RangeKind::Pods {
            self.services.put_node(name, addresses);
        }
    }

    /// Where a pod's port of a node leads; `None` for any other address, and where a workload of the mesh is meant that is on
    /// the node's own: whoever may make pods must not take that one's clients.
    fn behind_node(&self, to: SocketAddr) -> Option<BehindNode> {
        let nodes = self.services.nodes_at(to.ip());
        let behind = nodes.iter().find_map(|node| self.workloads.behind_node(node, to))?;
        let is_meshed = self.workloads.owner(to.ip(), to.port()).is_some_and(|owner| owner.enrolled);
        (!is_meshed).then_some(behind)
    }

    fn chosen(&self, choice: Choice, address: IpAddr) -> Target {
        match choice {
            Choice::Endpoint(service, endpoint) => self.endpoint(service, endpoint),
            Choice::None(service) => self.without_endpoint(service, address),
        }
    }

    fn endpoint(&self, service: Arc<Service>, endpoint: SocketAddr) -> Target {
        match self.workloads.owner(endpoint.ip(), endpoint.port()) {
            Some(workload) => workload_target(workload, endpoint, Some(service)),
            None if self.must_be_pod(&service, endpoint.ip()) => {
                Target::Awaited { kind: RangeKind::Pods, address: endpoint.ip(), service: Some(service) }
            }
            None => Target::Endpoint { address: endpoint.ip(), port: endpoint.port(), service },
        }
    }

    fn must_be_pod(&self, service: &Service, endpoint: IpAddr) -> bool {
        self.ranges.of(endpoint) == Some(RangeKind::Pods) || self.services.leads_to_pod(service, endpoint)
    }

    /// Its slices come by a watch of their own: one of which there is none yet is still to be told of.
    fn without_endpoint(&self, service: Arc<Service>, vip: IpAddr) -> Target {
        let is_new = self.ranges.of(vip).is_some() && !self.services.has_slices(&service);
        match is_new {
            true => Target::Awaited { kind: RangeKind::Services, address: vip, service: Some(service) },
            false => Target::NoEndpoint { service },
        }
    }

    /// An address that a hostNetwork workload has is a node's; one of the cluster's ranges is no external one.
    fn unknown(&self, to: SocketAddr, asker: Asker<'_>) -> Target {
        let address = to.ip();
        match self.ranges.of(address) {
            Some(kind) if self.workloads.at(address).is_empty() => {
                Target::Awaited { kind, address, service: None }
            }
            Some(_) => Target::Unknown,
            None => match self.services.choose_external(to, asker) {
                Some(choice) => self.chosen(choice, address),
                None => Target::Unknown,
            },
        }
    }
}

/// A number below `below`, which is not 0: good enough to spread connections, where nobody gains by guessing it.
fn draw(below: usize) -> usize {
    DRAWS.with(|(random, drawn)| {
        drawn.set(drawn.get().wrapping_add(1));
        let number = u128::from(random.hash_one(drawn.get()));
        ((number * below as u128) >> 64) as usize
    })
}

thread_local! {
    /// A hash with the thread's own key, and how often it was drawn from.
    static DRAWS: (AddressHasher, Cell<u64>) = Default::default();
}

fn workload_target(workload: Arc<Workload>, to: SocketAddr, service: Option<Arc<Service>>) -> Target {
    Target::Workload { workload, address: to.ip().to_canonical(), port: to.port(), service }
}

fn seen_by_policies(workload: &Workload) -> impl PartialEq + use<'_> {
    let Workload { template, enrolled, addresses, same_node, .. } = workload;
    let Template { namespace, labels, identity, .. } = &**template;
    (namespace, labels, identity, enrolled, addresses, same_node)
}
