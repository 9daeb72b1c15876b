//! Which identities have a workload on which node, from a watched directory of manifests.
//!
//! A Pod counts from the moment it is bound to a node until it has finished: its SVID may have to be there before it
//! has an address, and rotated while it is being deleted. A WorkloadEntry counts on the node that the label or
//! annotation `signet.dev/node` names. A broken document keeps what was last known of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use signet_manifests::{
    Directory, Document, DocumentError, ObjectKey, OpenError, Snapshot, Watch, WatchError,
};
use tokio::sync::watch;
use tracing::{error, info};

/// A namespace and a service account.
type Account = (Arc<str>, Arc<str>);

/// The answers of one moment.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    nodes: HashMap<Arc<str>, HashSet<Account>>,
}

/// Reads the directory and publishes inventories. Owned by its task; ends with the watch.
#[derive(Debug)]
pub(crate) struct Source {
    watch: Watch,
    known: BTreeMap<ObjectKey, Placement>,
    /// What the log has been told.
    logged: BTreeSet<String>,
    /// Written here alone; the service reads.
    published: watch::Sender<Arc<Inventory>>,
}

/// The reading side.
#[derive(Clone, Debug)]
pub(crate) struct Reader(watch::Receiver<Arc<Inventory>>);

/// A workload's account, on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placement {
    node: Arc<str>,
    account: Account,
}

impl Inventory {
    /// Whether a workload of that service account is on that node.
    fn has(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let account = (namespace.into(), service_account.into());
        self.nodes.get(node).is_some_and(|accounts| accounts.contains(&account))
    }
}

impl Reader {
    /// Whether a workload of that service account is on that node, now or within [`LAG`]: a node may hear of a pod a
    /// moment before the CA does.
    pub(crate) async fn finds(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let mut published = self.0.clone();
        let found = published.wait_for(|inventory| inventory.has(node, namespace, service_account));
        // An error means that the source is gone and with it the process, soon.
        tokio::time::timeout(LAG, found).await.is_ok_and(|found| found.is_ok())
    }
}

impl Source {
    /// Opens the directory and reads it for the first time.
    pub(crate) async fn open(directory: PathBuf) -> Result<(Self, Reader), InventoryError> {
        let mut watch = Directory::open(directory)?.watch()?;
        let first = watch.next().await?;
        let (published, reader) = watch::channel(Arc::default());
        let mut source = Self { watch, known: BTreeMap::new(), logged: BTreeSet::new(), published };
        source.update(&first);
        Ok((source, Reader(reader)))
    }

    /// Follows the directory until its watch breaks.
    pub(crate) async fn run(mut self) -> Result<(), WatchError> {
        loop {
            let snapshot = self.watch.next().await?;
            self.update(&snapshot);
        }
    }

    fn update(&mut self, snapshot: &Snapshot) {
        let faults = update(&mut self.known, snapshot);
        let files = snapshot.faults.iter().map(|fault| fault.error.to_string());
        let faults: BTreeSet<String> = files.chain(faults.iter().map(ToString::to_string)).collect();
        for fault in faults.difference(&self.logged) {
            error!(fault, "manifest not taken");
        }
        for fault in self.logged.difference(&faults) {
            info!(fault, "manifest fault ended");
        }
        self.logged = faults;
        self.published.send_replace(Arc::new(inventory(self.known.values())));
    }
}

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    /// The directory.
    #[error("inventory.files.directory: {0}")]
    Open(#[from] OpenError),
    /// Its watch.
    #[error("inventory.files.directory: {0}")]
    Watch(#[from] WatchError),
}

fn update(known: &mut BTreeMap<ObjectKey, Placement>, snapshot: &Snapshot) -> Vec<DocumentError> {
    let mut before = std::mem::take(known);
    let mut faults = Vec::new();
    for document in &snapshot.documents {
        let placement = placement(document).unwrap_or_else(|fault| {
            faults.push(fault);
            before.remove(document.key())
        });
        if let Some(placement) = placement {
            known.insert(document.key().clone(), placement);
        }
    }
    faults
}

fn inventory<'p>(placements: impl Iterator<Item = &'p Placement>) -> Inventory {
    let mut nodes: HashMap<Arc<str>, HashSet<Account>> = HashMap::new();
    for placement in placements {
        nodes.entry(placement.node.clone()).or_default().insert(placement.account.clone());
    }
    Inventory { nodes }
}

/// What of a Pod or WorkloadEntry matters here. That the rest of it is right is no concern of the CA's.
#[derive(Debug, Deserialize)]
struct Workload {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    service_account: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
}

fn placement(document: &Document) -> Result<Option<Placement>, DocumentError> {
    let pod = document.is("", "Pod");
    if !pod && !document.is("networking.istio.io", "WorkloadEntry") {
        return Ok(None);
    }
    let Workload { metadata, spec, status } = document.parse()?;
    let node = match pod {
        true => spec.node_name,
        false => metadata.annotations.get(NODE).or_else(|| metadata.labels.get(NODE)).cloned(),
    };
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let Some(node) = node.filter(|node| !node.is_empty() && !finished) else { return Ok(None) };
    // A Pod's `serviceAccount` is the deprecated alias of `serviceAccountName`; a WorkloadEntry has only the former.
    let name = spec.service_account_name.or(spec.service_account).filter(|name| !name.is_empty());
    let name = name.as_deref().unwrap_or("default");
    Ok(Some(Placement { node: node.into(), account: (document.key().namespace.clone(), name.into()) }))
}

/// Where a WorkloadEntry runs.
const NODE: &str = "signet.dev/node";
/// How far the CA's view may be behind a node's. Longer than a scan takes, shorter than a node's patience.
const LAG: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
