//! The sources of workloads, services and policy: each converts at its door into [`crate::state::Event`]s (H3).

use std::path::PathBuf;

use signet_identity::TrustDomain;
use tokio::sync::mpsc;

use crate::drain::Watch;
use crate::state::Event;

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
}

/// The `files` source: reads a directory of manifests, sends everything, then `Synced`, then changes as they happen. A
/// broken file is an error in the log and a metric, and leaves what was known of it in force.
pub async fn files(directory: PathBuf, options: DiscoveryOptions, events: mpsc::Sender<Event>, drain: Watch) {
    let _ = (directory, options, events, drain);
    todo!("H3")
}
