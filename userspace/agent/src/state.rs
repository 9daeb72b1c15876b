//! The node's view of the mesh: workloads, services, policies. One writer (`reconcile`), many cheap readers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use signet_identity::SpiffeId;

use crate::addr::WorkloadUid;
use crate::policy::{AuthorizationPolicy, Denial, Flow, PeerAuthentication, Permit};

/// What has one identity: a pod, or on a VM a systemd unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Unique for its lifetime.
    pub uid: WorkloadUid,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `spec.serviceAccountName`, `default` where elided.
    pub service_account: Arc<str>,
    /// The SPIFFE ID it must present.
    pub identity: SpiffeId,
    /// `spec.nodeName` (empty where not bound).
    pub node: Arc<str>,
    /// `topology.kubernetes.io/zone` of its node or itself; empty where unknown.
    pub zone: Arc<str>,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
    /// It shares the node's network namespace and address.
    pub host_network: bool,
    /// In the mesh: peers reach it by HBONE, its own node captures it.
    pub enrolled: bool,
    /// `metadata.labels`; the replicas of one template share them.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Declared container ports, by name where they have one; shared like the labels.
    pub ports: Arc<[ContainerPort]>,
    /// The controller's name (Deployment, Job, …), or the pod's.
    pub workload_name: Arc<str>,
    /// `deployment`, `cronjob`, `job`, `pod`: the baggage key.
    pub workload_type: Arc<str>,
    /// `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, or the workload's name.
    pub canonical_name: Arc<str>,
    /// `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, or `latest`.
    pub canonical_revision: Arc<str>,
    /// Where this node finds it: the cgroup below the cgroup root, from `signet.dev/cgroup` or `signet.dev/unit`.
    pub cgroup: Option<Arc<str>>,
}

/// One declared port of a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ContainerPort {
    /// Its name, where it has one.
    pub name: Option<Arc<str>>,
    /// Its number.
    pub port: u16,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `<name>.<namespace>.svc.<cluster domain>`.
    pub hostname: Arc<str>,
    /// `spec.clusterIPs`; empty when headless.
    pub vips: Vec<IpAddr>,
    /// `spec.ports`, TCP only.
    pub ports: Vec<ServicePort>,
}

/// One TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// Its name; EndpointSlices refer to it. Empty for the single unnamed port.
    pub name: Arc<str>,
    /// The port on the VIP.
    pub port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointSlice {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The label `kubernetes.io/service-name`.
    pub service: Arc<str>,
    /// Port name to target port.
    pub ports: Vec<ServicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Where.
    pub address: IpAddr,
    /// `conditions.ready`, true where elided.
    pub ready: bool,
    /// `zone`, empty where unknown.
    pub zone: Arc<str>,
}

/// What a source tells. Upserts carry the whole object; a source's first pass ends with `Synced`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A workload is new or changed.
    Workload(Box<Workload>),
    /// A workload is gone.
    WorkloadGone(WorkloadUid),
    /// A Service is new or changed.
    Service(Service),
    /// A Service is gone (namespace, name).
    ServiceGone(Arc<str>, Arc<str>),
    /// An EndpointSlice is new or changed.
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice is gone (namespace, name).
    EndpointSliceGone(Arc<str>, Arc<str>),
    /// An AuthorizationPolicy is new or changed.
    Authorization(Box<AuthorizationPolicy>),
    /// An AuthorizationPolicy is gone (namespace, name).
    AuthorizationGone(Arc<str>, Arc<str>),
    /// A PeerAuthentication is new or changed.
    PeerAuthentication(Box<PeerAuthentication>),
    /// A PeerAuthentication is gone (namespace, name).
    PeerAuthenticationGone(Arc<str>, Arc<str>),
    /// The source has told all it had.
    Synced,
}

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
pub struct State {}

impl State {
    /// An empty view of a mesh with that root namespace.
    #[must_use]
    pub fn new(root_namespace: &str) -> Self {
        let _ = root_namespace;
        todo!("H4")
    }
    /// Applies one event; the only way in. Called by `reconcile` alone. True when policy answers may have changed.
    pub fn apply(&self, event: &Event) -> bool {
        let _ = event;
        todo!("H4")
    }
    /// A workload by uid.
    #[must_use]
    pub fn workload(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        let _ = uid;
        todo!("H4")
    }
    /// The workloads that have an address: one, except for hostNetwork workloads that share a node's.
    #[must_use]
    pub fn workloads_at(&self, address: IpAddr) -> Vec<Arc<Workload>> {
        let _ = address;
        todo!("H4")
    }
    /// Every workload, for views.
    #[must_use]
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        todo!("H4")
    }
    /// Every service, for views.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Service>> {
        todo!("H4")
    }
    /// Every policy, for views.
    #[must_use]
    pub fn policies(&self) -> (Vec<Arc<AuthorizationPolicy>>, Vec<Arc<PeerAuthentication>>) {
        todo!("H4")
    }
    /// Resolves a destination: VIPs to a ready endpoint (same zone as `zone` first, then any; random among equals), pod
    /// addresses to their workload. Endpoints in `except` have just failed and are passed over (VIPs only).
    #[must_use]
    pub fn resolve(&self, address: IpAddr, port: u16, zone: &str, except: &[SocketAddr]) -> Target {
        let _ = (address, port, zone, except);
        todo!("H4")
    }
    /// The application's port at `endpoint` behind `port` of the Service with that hostname; `None` where there is no such
    /// Service or port, or `endpoint` is not one of its endpoints (ready or not). For CONNECTs to `<hostname>:<port>`.
    #[must_use]
    pub fn target_port(&self, hostname: &str, port: u16, endpoint: IpAddr) -> Option<u16> {
        let _ = (hostname, port, endpoint);
        todo!("H4")
    }
    /// Asks the policy tables.
    ///
    /// # Errors
    /// The denial, naming the policy.
    pub fn authorize(&self, flow: &Flow<'_>) -> Result<Permit, Denial> {
        let _ = flow;
        todo!("H4")
    }
    /// The policy epoch. `reconcile` tells the live connections when [`State::apply`] has changed it.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        todo!("H4")
    }
}
