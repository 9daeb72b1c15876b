//! The sources of workloads, services and policy: each converts at its door into [`crate::state::Event`]s.
//!
//! Two sources, `files` and `kubernetes`, feed the same conversion ([`known`], [`convert`]) with changes of single
//! objects. Pods and Services are taken as Kubernetes defines them, unknown fields ignored; in policies an unknown field
//! is an error, because a misspelt `princpals` must not widen a policy. A policy that cannot be understood keeps its last
//! good version; without one, [`failsafe`] denies in its place.
//!
//! It decides nothing: which workload is captured where, and what a policy means for a flow, is for other floors.

mod addresses;
mod authorization;
mod cgroup;
mod condition;
mod convert;
mod endpoint_slice;
mod enrolment;
mod failsafe;
mod faults;
mod files;
mod istio;
mod known;
mod kubernetes;
mod matches;
mod naming;
mod owner;
mod peer_authentication;
mod pod;
mod ranges;
mod service;
mod surroundings;
#[cfg(test)]
mod testing;
mod workload_entry;

use signet_identity::TrustDomain;

use crate::config::SameNode;

pub use files::Files;
pub use kubernetes::{ApiServer, ClientError, Health, Kubernetes, WithdrawError, withdraw};

/// What a source needs to know, from `config`.
#[derive(Clone, Debug)]
pub struct DiscoveryOptions {
    /// The trust domain of workloads that do not name one.
    pub trust_domain: TrustDomain,
    /// The cluster's name in uids and baggage.
    pub cluster: String,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Whose policies are mesh-wide.
    pub root_namespace: String,
    /// How workloads of one node talk, where nobody says.
    pub same_node: SameNode,
    /// This node's name.
    pub node: String,
    /// This node's zone; empty where unknown.
    pub zone: String,
    /// Who has written the objects.
    pub origin: Origin,
}

/// Who has written the objects, as far as it matters for what they mean.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The owner of this machine: annotations name cgroups, and a Namespace that is not there enrols nobody.
    Directory,
    /// An API server's users. It has a Namespace for every pod, so a pod waits for it.
    Cluster {
        /// The node that is this one.
        node: String,
    },
}

impl Origin {
    /// Pods bound to `node` are run by this machine's kubelet.
    fn binds_to(&self, node: &str) -> bool {
        matches!(self, Self::Cluster { node: own } if own == node)
    }
}
