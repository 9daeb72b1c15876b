//! The sources of workloads, services and policy: each converts at its door into [`crate::state::Event`]s (H3).

use std::path::PathBuf;

use signet_identity::TrustDomain;
use tokio::sync::mpsc;

use crate::drain::Watch;
use crate::state::Event;
use crate::telemetry::Registry;

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

/// The `files` source: a directory of manifests, watched.
#[derive(Debug)]
pub struct Files {}

impl Files {
    /// Opens and watches the directory; call it within the runtime. Nothing is read yet.
    ///
    /// # Errors
    /// The directory cannot be read or watched: a mistake in the configuration, to be told at start.
    pub fn open(
        directory: PathBuf,
        options: DiscoveryOptions,
        registry: &mut Registry,
    ) -> Result<Self, signet_manifests::OpenError> {
        let _ = (directory, options, registry);
        todo!("H3")
    }

    /// Sends everything, then `Synced`, then changes as they happen, until the drain begins or nobody listens. A broken
    /// file is an error in the log and a metric, and leaves what was known of it in force.
    ///
    /// # Errors
    /// The watch broke; what was sent stays in force, but nothing new will come.
    pub async fn run(
        self,
        events: mpsc::Sender<Event>,
        drain: Watch,
    ) -> Result<(), signet_manifests::WatchError> {
        let _ = (events, drain);
        todo!("H3")
    }
}
