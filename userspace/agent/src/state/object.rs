//! What the node knows of the mesh: plain data, as the sources tell it.
//!
//! Every text is shared (`Arc<str>`), so that a clone is cheap and `intern` can keep one copy of what many say.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use signet_identity::SpiffeId;
use smallvec::SmallVec;

use crate::addr::WorkloadUid;
use crate::config::SameNode;
use crate::policy::{AuthorizationPolicy, PeerAuthentication};

/// What has one identity: a pod, or on a VM a systemd unit. Read as one with its template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique for its lifetime.
    pub uid: WorkloadUid,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// What it says as all replicas do.
    pub template: Arc<Template>,
    /// `spec.nodeName` (empty where not bound).
    pub node: Arc<str>,
    /// `topology.kubernetes.io/zone` of its node or itself; empty where unknown.
    pub zone: Arc<str>,
    /// All its addresses.
    pub addresses: Addresses,
    /// It shares the node's network namespace and address.
    pub host_network: bool,
    /// In the mesh: peers reach it by HBONE, its own node captures it.
    pub enrolled: bool,
    /// How it talks to workloads of its own node; both must say `direct`.
    pub same_node: SameNode,
    /// Where this node finds it; `None` for those of other nodes, and where nothing says it.
    pub cgroup: Option<CgroupName>,
}

/// Nearly always one, which then lies in its workload.
pub type Addresses = SmallVec<[IpAddr; 1]>;

/// What the replicas of one template have in common: a mesh of 100,000 pods has a few hundred.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `spec.serviceAccountName`, `default` where elided.
    pub service_account: Arc<str>,
    /// The SPIFFE ID it must present.
    pub identity: SpiffeId,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Declared container ports, by name where they have one.
    pub ports: Ports,
    /// The controller's name (Deployment, Job, …); `None` where each pod goes by its own.
    pub workload_name: Option<Arc<str>>,
    /// `deployment`, `cronjob`, `job`, `pod`: the baggage key.
    pub workload_type: &'static str,
    /// `service.istio.io/canonical-name`, `app.kubernetes.io/name` or `app`; `None` where the workload's name stands for it.
    pub canonical_name: Option<Arc<str>>,
    /// `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, or `latest`.
    pub canonical_revision: Arc<str>,
}

/// A few lie in their template: on an address that several workloads share, connections ask for them.
pub type Ports = SmallVec<[ContainerPort; 2]>;

/// How a workload's cgroup is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupName {
    /// By its path below the cgroup root, from `signet.dev/cgroup` or `signet.dev/unit`.
    Path(Arc<str>),
    /// It is the one that kubelet has made for the pod with this uid.
    Pod(Arc<str>),
}

impl From<&str> for CgroupName {
    fn from(path: &str) -> Self {
        Self::Path(path.into())
    }
}

impl fmt::Display for CgroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Pod(uid) => write!(f, "the cgroup of pod {uid}"),
        }
    }
}

impl Deref for Workload {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

impl Workload {
    /// The controller's name, or the workload's own.
    #[must_use]
    pub fn workload_name(&self) -> &Arc<str> {
        self.template.workload_name.as_ref().unwrap_or(&self.name)
    }

    /// The name of the service that it is a part of, as telemetry has it.
    #[must_use]
    pub fn canonical_name(&self) -> &Arc<str> {
        self.template.canonical_name.as_ref().unwrap_or_else(|| self.workload_name())
    }

    /// The ports of its node's addresses that lead to a port of its own, where it has addresses of its own.
    pub(super) fn ports_at_node(&self) -> impl Iterator<Item = (u16, u16)> {
        let ports = self.ports.iter().filter(|_| !self.host_network);
        ports.filter_map(|declared| Some((declared.at_node?, declared.port)))
    }

    /// It declares the port, by whatever name.
    pub(super) fn declares(&self, port: u16) -> bool {
        self.ports.iter().any(|declared| declared.port == port)
    }
}

/// One declared port of a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ContainerPort {
    /// Its name, where it has one.
    pub name: Option<Arc<str>>,
    /// Its number.
    pub port: u16,
    /// `hostPort`: where it is reached at its node's addresses. `None` too where only some of those are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_node: Option<u16>,
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
    /// `spec.sessionAffinity: ClientIP`: a client gets the same endpoint each time.
    pub affinity: bool,
    /// `spec.internalTrafficPolicy: Local`: a client gets an endpoint of its own node, or none.
    pub local: bool,
    /// Where else it is reached, from outside of the cluster and by pods too.
    pub external: External,
}

/// What a node's kube-proxy answers for beside the VIPs, also to the node's own pods, from all endpoints of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct External {
    /// `spec.externalIPs`, and a load balancer's addresses, with the Service's ports.
    pub addresses: Vec<IpAddr>,
    /// Ports on every node's addresses, TCP only.
    pub node_ports: Vec<ServicePort>,
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
    /// It serves while it ends: for when nothing is ready.
    pub draining: bool,
    /// `zone`, empty where unknown.
    pub zone: Arc<str>,
    /// `targetRef` says that it is a pod's.
    pub pod: bool,
    /// It is on this node.
    pub here: bool,
    /// `hints.forNodes`, as seen from this node.
    pub node_hint: Hint,
    /// `hints.forZones`, as seen from this node's zone.
    pub zone_hint: Hint,
}

/// For whom an endpoint is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Hint {
    /// Nothing is said.
    #[default]
    None,
    /// For this node, or its zone.
    Here,
    /// For others.
    Elsewhere,
}

impl Endpoint {
    /// A ready one of which nothing else is said.
    #[must_use]
    pub fn at(address: IpAddr) -> Self {
        Self {
            address,
            ready: true,
            draining: false,
            zone: "".into(),
            pod: false,
            here: false,
            node_hint: Hint::None,
            zone_hint: Hint::None,
        }
    }
}

/// Blocks of addresses that one object tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// What the addresses are for.
    pub kind: RangeKind,
    /// The object's name; empty for what the configuration says.
    pub owner: Arc<str>,
    /// The blocks.
    pub blocks: Vec<IpNet>,
    /// Of a Node: its own addresses.
    pub node: Vec<IpAddr>,
}

/// What a range of addresses is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeKind {
    /// Services' virtual addresses.
    Services,
    /// Pods.
    Pods,
    /// What lies in a range and is neither: outside of the mesh.
    Outside,
}

/// What a source tells. Upserts carry the whole object; a source's first pass ends with `Synced`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A workload is new or changed.
    Workload(Arc<Workload>),
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
    /// Ranges are new or changed.
    Ranges(Ranges),
    /// The ranges of an object are gone.
    RangesGone(RangeKind, Arc<str>),
    /// The source has told all it had.
    Synced,
}
