//! Which identities have a workload on which node: from a watched directory of manifests ([`files`]), or from the API
//! server ([`pods`]).
//!
//! A Pod counts from the moment it is bound to a node until it has finished: its SVID may have to be there before it
//! has an address, and rotated while it is being deleted. A WorkloadEntry counts on the node that the label or
//! annotation `signet.dev/node` names.

mod files;
mod live;
mod metrics;
mod pods;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use signet_apiserver::Fault;
use signet_manifests::{Document, DocumentError, ObjectKey};
use tokio::sync::watch;

pub(crate) use self::files::Files;
pub(crate) use self::live::Live;
pub(crate) use self::pods::Pods;

/// A namespace and a service account.
type Account = (Arc<str>, Arc<str>);

/// What is known now.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    placements: HashMap<ObjectKey, Placement>,
    /// How many workloads of an account a node has.
    nodes: HashMap<Arc<str>, HashMap<Account, u32>>,
}

/// The reading side. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    known: watch::Receiver<Inventory>,
    /// Who is asked for what is not known yet.
    live: Option<Arc<Live>>,
}

/// A pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BoundPod {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    /// Another pod of its name has another one.
    pub(crate) uid: Arc<str>,
}

/// A workload's account, on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placement {
    node: Arc<str>,
    account: Account,
    /// A WorkloadEntry in a file may have none.
    uid: Option<Arc<str>>,
}

impl Inventory {
    fn put(&mut self, key: ObjectKey, placement: Placement) {
        self.remove(&key);
        let accounts = self.nodes.entry(placement.node.clone()).or_default();
        *accounts.entry(placement.account.clone()).or_default() += 1;
        self.placements.insert(key, placement);
    }

    fn remove(&mut self, key: &ObjectKey) {
        let Some(Placement { node, account, .. }) = self.placements.remove(key) else { return };
        let Some(accounts) = self.nodes.get_mut(&node) else { return };
        if let Some(count) = accounts.get_mut(&account) {
            *count -= 1;
            if *count == 0 {
                accounts.remove(&account);
            }
        }
        if accounts.is_empty() {
            self.nodes.remove(&node);
        }
    }

    /// Whether a workload of that service account is on that node.
    fn has(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let account = (namespace.into(), service_account.into());
        self.nodes.get(node).is_some_and(|accounts| accounts.contains_key(&account))
    }

    /// The node of that very pod.
    fn node_of(&self, pod: &BoundPod) -> Option<&Arc<str>> {
        let placement = self.placements.get(&pod.key())?;
        (placement.uid.as_ref() == Some(&pod.uid)).then_some(&placement.node)
    }
}

impl Reader {
    fn of(known: watch::Receiver<Inventory>, live: Option<Arc<Live>>) -> Self {
        Self { known, live }
    }

    /// How many workloads, and how many pairs of an identity and a node that may ask for it.
    fn size(&self) -> (usize, usize) {
        let known = self.known.borrow();
        (known.placements.len(), known.nodes.values().map(HashMap::len).sum())
    }

    /// Whether a workload of that service account is on that node. A node may hear of a pod a moment before the CA does:
    /// what is not known is waited for, for [`LAG`], and then asked for.
    ///
    /// # Errors
    /// Nobody can say.
    pub(crate) async fn finds(
        &self,
        node: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<bool, Fault> {
        if self.hears(|inventory| inventory.has(node, namespace, service_account)).await {
            return Ok(true);
        }
        match &self.live {
            Some(live) => live.has(node, namespace, service_account).await,
            None => Ok(false),
        }
    }

    /// The node of a pod, as with [`Self::finds`].
    ///
    /// # Errors
    /// Nobody can say.
    pub(crate) async fn node_of(&self, pod: &BoundPod) -> Result<Option<Arc<str>>, Fault> {
        if self.hears(|inventory| inventory.node_of(pod).is_some()).await
            && let Some(node) = self.known.borrow().node_of(pod)
        {
            return Ok(Some(node.clone()));
        }
        match &self.live {
            Some(live) => live.node_of(pod).await,
            None => Ok(None),
        }
    }

    /// Whether that very pod is known to be there now.
    pub(crate) fn knows(&self, pod: &BoundPod) -> bool {
        self.known.borrow().node_of(pod).is_some()
    }

    async fn hears(&self, what: impl Fn(&Inventory) -> bool) -> bool {
        let mut known = self.known.clone();
        // An error means that the source is gone and with it the process, soon.
        let heard = known.wait_for(|inventory| what(inventory));
        tokio::time::timeout(LAG, heard).await.is_ok_and(|heard| heard.is_ok())
    }
}

impl BoundPod {
    fn key(&self) -> ObjectKey {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        ObjectKey { group: "".into(), kind: "Pod".into(), namespace, name }
    }
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
    uid: Option<Arc<str>>,
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
    let account = (document.key().namespace.clone(), name.into());
    Ok(Some(Placement { node: node.into(), account, uid: metadata.uid }))
}

/// Where a WorkloadEntry runs.
const NODE: &str = "signet.dev/node";
/// How far the CA's view may be behind a node's. Longer than a scan takes, shorter than a node's patience.
const LAG: Duration = Duration::from_millis(500);
