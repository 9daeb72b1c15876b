//! The node's view of the mesh: workloads, services, policies. One writer (`reconcile`), many cheap readers.
//!
//! Everything is behind one `RwLock`. [`State::apply`] alone takes it for writing, once per event; a reader takes it once
//! per question, gets an owned answer, and holds nothing afterwards. No call leaves this module while it is held. It does
//! not fetch: what has not been told is unknown, and `Target::Unknown` is an answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::addr::WorkloadUid;
use crate::policy::{AuthorizationPolicy, Denial, Flow, PeerAuthentication, Permit, PolicySet, Shadow};

use self::services::{Choice, Services};
use self::workloads::Workloads;

pub use self::object::{ContainerPort, Endpoint, EndpointSlice, Event, Service, ServicePort, Workload};

mod intern;
mod object;
mod services;
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
    /// Nothing is known of the address: outside the mesh.
    Unknown,
}

/// The node's view. Interior lock, never held across an await; every answer is an owned, cheap clone.
#[derive(Debug)]
pub struct State {
    inner: RwLock<Inner>,
}

/// Written by [`State::apply`] alone.
#[derive(Debug)]
struct Inner {
    workloads: Workloads,
    services: Services,
    policies: PolicySet,
}

impl State {
    /// An empty view of a mesh with that root namespace.
    #[must_use]
    pub fn new(root_namespace: &str) -> Self {
        let inner = Inner {
            workloads: Workloads::default(),
            services: Services::default(),
            policies: PolicySet::new(root_namespace),
        };
        Self { inner: RwLock::new(inner) }
    }

    /// Applies one event; the only way in. Called by `reconcile` alone. True when policy answers may have changed.
    pub fn apply(&self, event: &Event) -> bool {
        let mut inner = self.inner.write();
        let before = inner.policies.epoch();
        inner.apply(event);
        inner.policies.epoch() != before
    }

    /// A workload by uid.
    #[must_use]
    pub fn workload(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        self.inner.read().workloads.get(uid).cloned()
    }

    /// The workloads that have an address: one, except for hostNetwork workloads that share a node's.
    #[must_use]
    pub fn workloads_at(&self, address: IpAddr) -> Vec<Arc<Workload>> {
        self.inner.read().workloads.at(address)
    }

    /// The workloads that may be meant by an address and port, the one that [`State::resolve`] chooses among them: more
    /// than one only where hostNetwork workloads share the address and do not say, or say the same, of their ports.
    #[must_use]
    pub fn owners(&self, address: IpAddr, port: u16) -> Vec<Arc<Workload>> {
        self.inner.read().workloads.owners(address, port)
    }

    /// Every workload, in no order, for views.
    #[must_use]
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        self.inner.read().workloads.all().cloned().collect()
    }

    /// Every service, in no order, for views.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.inner.read().services.all().cloned().collect()
    }

    /// Every policy, by namespace and name, for views.
    #[must_use]
    pub fn policies(&self) -> (Vec<Arc<AuthorizationPolicy>>, Vec<Arc<PeerAuthentication>>) {
        let inner = self.inner.read();
        (inner.policies.authorizations(), inner.policies.peer_authentications())
    }

    /// Resolves a destination: VIPs to a ready endpoint (same zone as `zone` first, then any; random among equals), pod
    /// addresses to their workload. Endpoints in `except` have just failed and are passed over (VIPs only).
    ///
    /// On an address that several workloads share, a port that none of them can be meant by leads to `Unknown`.
    #[must_use]
    pub fn resolve(&self, address: IpAddr, port: u16, zone: &str, except: &[SocketAddr]) -> Target {
        self.inner.read().resolve(SocketAddr::new(address, port), zone, except)
    }

    /// The application's port at `endpoint` behind `port` of the Service with that hostname; `None` where there is no such
    /// Service or port, or `endpoint` is not one of its endpoints (ready or not). For CONNECTs to `<hostname>:<port>`.
    #[must_use]
    pub fn target_port(&self, hostname: &str, port: u16, endpoint: IpAddr) -> Option<u16> {
        self.inner.read().services.target_port(hostname, port, endpoint)
    }

    /// Asks the policy tables.
    ///
    /// # Errors
    /// The denial, naming the policy.
    pub fn authorize(&self, flow: &Flow<'_>) -> Result<Permit, Denial> {
        self.inner.read().policies.authorize(flow)
    }

    /// What the answer would be with the dry-run policies enforced, for the log of a flow that [`State::authorize`] has
    /// answered.
    #[must_use]
    pub fn shadow(&self, flow: &Flow<'_>) -> Shadow {
        self.inner.read().policies.shadow(flow)
    }

    /// The policy epoch. `reconcile` tells the live connections when [`State::apply`] has changed it.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.read().policies.epoch()
    }
}

impl Inner {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Workload(workload) => self.put_workload(workload),
            Event::WorkloadGone(uid) => {
                self.workloads.remove(uid);
            }
            Event::Service(service) => self.services.put(service.clone()),
            Event::ServiceGone(namespace, name) => self.services.remove(namespace, name),
            Event::EndpointSlice(slice) => self.services.put_slice(slice.clone()),
            Event::EndpointSliceGone(namespace, name) => self.services.remove_slice(namespace, name),
            Event::Authorization(policy) => self.policies.upsert_authorization((**policy).clone()),
            Event::AuthorizationGone(namespace, name) => self.policies.remove_authorization(namespace, name),
            Event::PeerAuthentication(policy) => self.policies.upsert_peer_authentication((**policy).clone()),
            Event::PeerAuthenticationGone(namespace, name) => {
                self.policies.remove_peer_authentication(namespace, name);
            }
            Event::Synced => {}
        }
    }

    /// A new workload has no connections whose answer could change; one that changes in what policies look at has.
    fn put_workload(&mut self, workload: &Workload) {
        let (old, new) = self.workloads.put(workload.clone());
        if old.is_some_and(|old| seen_by_policies(&old) != seen_by_policies(&new)) {
            self.policies.invalidate();
        }
    }

    fn resolve(&self, to: SocketAddr, zone: &str, except: &[SocketAddr]) -> Target {
        let random = |below| rand::random_range(0..below);
        match self.services.choose(to, zone, except, random) {
            Some(Choice::Endpoint(service, endpoint)) => self.endpoint(service, endpoint),
            Some(Choice::None(service)) => Target::NoEndpoint { service: Arc::clone(service) },
            None => self.workload_target(to, None).unwrap_or(Target::Unknown),
        }
    }

    fn endpoint(&self, service: &Arc<Service>, endpoint: SocketAddr) -> Target {
        self.workload_target(endpoint, Some(service)).unwrap_or_else(|| Target::Endpoint {
            address: endpoint.ip(),
            port: endpoint.port(),
            service: Arc::clone(service),
        })
    }

    fn workload_target(&self, to: SocketAddr, service: Option<&Arc<Service>>) -> Option<Target> {
        Some(Target::Workload {
            workload: Arc::clone(self.workloads.owner(to.ip(), to.port())?),
            address: to.ip().to_canonical(),
            port: to.port(),
            service: service.cloned(),
        })
    }
}

fn seen_by_policies(workload: &Workload) -> impl PartialEq + use<'_> {
    (&workload.namespace, &workload.labels, &workload.identity, workload.enrolled, &workload.addresses)
}
