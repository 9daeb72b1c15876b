//! The sources of workloads, services and policy: each converts at its door into [`crate::state::Event`]s.
//!
//! One source so far, `files`. The conversion of the objects ([`convert`]) knows nothing of where they come from, so that
//! the API server can feed the same one. Pods and Services are taken as Kubernetes defines them, unknown fields
//! ignored; in policies an unknown field is an error, because a misspelt `princpals` must not widen a policy. A policy
//! that cannot be understood keeps its last good version; without one, [`failsafe`] denies in its place.
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
mod files;
mod istio;
mod known;
mod matches;
mod owner;
mod peer_authentication;
mod pod;
mod service;
mod surroundings;
#[cfg(test)]
mod testing;
mod workload_entry;

use signet_identity::TrustDomain;

use crate::config::SameNode;

pub use files::Files;

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
}
