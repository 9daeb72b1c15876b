//! `mesh`: the trust domain, the names of the mesh, and how its connections travel.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use signet_identity::TrustDomain;

/// `mesh`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mesh {
    /// The trust domain of workloads that do not name one.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: TrustDomain,
    /// The cluster's name in uids and baggage.
    pub cluster: String,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Whose policies are mesh-wide.
    pub root_namespace: String,
    /// What is spoken between nodes.
    pub tunnel: Tunnel,
    /// How workloads of one node talk to each other, where neither they nor their namespaces say.
    pub same_node: SameNode,
    /// What a workload may reach that is nobody's of the mesh.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// Addresses of Services, beside those of ServiceCIDR objects.
    pub service_ranges: Vec<IpNet>,
    /// Addresses of pods, beside those of `spec.podCIDRs` of Nodes.
    pub pod_ranges: Vec<IpNet>,
    /// Addresses in those ranges that are nobody's of the mesh.
    pub outside_ranges: Vec<IpNet>,
}

/// `mesh.tunnel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// The native tunnel where the peer knows it, HBONE with everybody else.
    Auto,
    /// HBONE with everybody.
    Hbone,
}

/// `mesh.outboundTrafficPolicy`, as Istio calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundTrafficPolicy {
    /// Everything, in clear.
    AllowAny,
    /// Nothing but Services and workloads that are known.
    RegistryOnly,
}

/// `mesh.sameNode`, and the label of that name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// Authorised in the kernel, then by themselves: not encrypted, and not on any wire.
    #[default]
    Direct,
    /// By mTLS through the engine, as across nodes.
    Mtls,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::parse("cluster.local").expect("a legal name"),
            cluster: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            tunnel: Tunnel::Auto,
            same_node: SameNode::Direct,
            outbound_traffic_policy: OutboundTrafficPolicy::AllowAny,
            service_ranges: Vec::new(),
            pod_ranges: Vec::new(),
            outside_ranges: Vec::new(),
        }
    }
}

fn trust_domain<'de, D: serde::Deserializer<'de>>(d: D) -> Result<TrustDomain, D::Error> {
    TrustDomain::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
}
