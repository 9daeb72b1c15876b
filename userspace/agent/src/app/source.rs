//! From the configuration to the source of what the node knows: a directory of manifests, or the API server.

use anyhow::{Context as _, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::error;

use crate::config::{self, Config, Source};
use crate::discovery::{ApiServer, DiscoveryOptions, Files, Health, Kubernetes, Origin};
use crate::drain::Watch;
use crate::state::{Event, RangeKind, Ranges};
use crate::telemetry::Registry;

/// The source's task, what it says, and how it is where it can be cut off.
pub(super) struct Started {
    pub(super) task: JoinHandle<()>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) health: Option<Health>,
    pub(super) api_server: Option<ApiServer>,
}

/// Begins to read it.
///
/// # Errors
/// It cannot be opened.
pub(super) async fn start(config: &Config, registry: &mut Registry, drain: Watch) -> Result<Started> {
    let (events_tx, events) = mpsc::channel(1024);
    for ranges in configured_ranges(&config.mesh) {
        events_tx.try_send(Event::Ranges(ranges)).context("a new channel has room")?;
    }
    match &config.source {
        Source::Files { directory } => {
            let options = discovery_options(config, Origin::Directory);
            let files = Files::open(directory.clone(), options, registry)?;
            let task = tokio::spawn(run_files(files, events_tx, drain));
            Ok(Started { task, events, health: None, api_server: None })
        }
        Source::Kubernetes { kubeconfig } => {
            let options = discovery_options(config, Origin::Cluster { node: config.node.name.clone() });
            let source = Kubernetes::open(kubeconfig.as_deref(), options, registry).await?;
            let (health, api_server) = (Some(source.health()), Some(source.api_server()));
            Ok(Started { task: tokio::spawn(source.run(events_tx, drain)), events, health, api_server })
        }
    }
}

/// The configuration is one more that tells of ranges, and the first.
fn configured_ranges(mesh: &config::Mesh) -> Vec<Ranges> {
    let told = [
        (RangeKind::Services, &mesh.service_ranges),
        (RangeKind::Pods, &mesh.pod_ranges),
        (RangeKind::Outside, &mesh.outside_ranges),
    ];
    let ranges = |(kind, blocks): (RangeKind, &Vec<_>)| Ranges {
        kind,
        owner: "".into(),
        blocks: blocks.clone(),
        node: Vec::new(),
    };
    told.into_iter().filter(|(_, blocks)| !blocks.is_empty()).map(ranges).collect()
}

fn discovery_options(config: &Config, origin: Origin) -> DiscoveryOptions {
    DiscoveryOptions {
        trust_domain: config.mesh.trust_domain.clone(),
        cluster: config.mesh.cluster.clone(),
        cluster_domain: config.mesh.cluster_domain.clone(),
        root_namespace: config.mesh.root_namespace.clone(),
        same_node: config.mesh.same_node,
        node: config.node.name.clone(),
        zone: config.node.zone.clone(),
        origin,
    }
}

async fn run_files(files: Files, events: mpsc::Sender<Event>, drain: Watch) {
    if let Err(e) = files.run(events, drain).await {
        error!(error = %e, "source.files: what is known stays in force, changes are not seen: restart signetd");
    }
}
