//! The `kubernetes` source: the pods of the cluster, watched.
//!
//! Of a pod only its names, its node, its account and its phase are decoded. When the API server is away everything stays
//! as it was: nothing is signed then for want of token reviews, and no live view is lost.

use signet_apiserver::Keep::{self, All, Fields};
use signet_apiserver::{ApiServer, Follower, Health, Heard, Kind, Resource, Seen};
use signet_manifests::{Document, ObjectKey};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tracing::error;

use super::{Inventory, Live, Reader, placement};

/// Follows the pods and publishes where they are. Owned by its task.
#[derive(Debug)]
pub(crate) struct Pods {
    follower: Follower<()>,
    heard: mpsc::Receiver<((), Heard)>,
    /// What a list that runs now has had so far.
    seen: Option<Seen>,
    /// Written here alone; the service reads.
    published: watch::Sender<Inventory>,
}

#[derive(Debug)]
struct PodKind;

impl Kind for PodKind {
    const RESOURCE: Resource = Resource { group: "", kind: "Pod", plural: "pods" };
    const KEEP: Keep = Fields(&[
        ("metadata", Fields(&[("name", All), ("namespace", All), ("uid", All), ("resourceVersion", All)])),
        ("spec", Fields(&[("nodeName", All), ("serviceAccountName", All)])),
        ("status", Fields(&[("phase", All)])),
    ]);
}

impl Pods {
    /// Nothing is asked yet.
    pub(crate) fn open(api_server: &ApiServer, health: &Health) -> (Self, Reader) {
        let (to, heard) = mpsc::channel(WAITING);
        let follower = Follower {
            api_server: api_server.clone(),
            resource: PodKind::RESOURCE,
            version: "v1".to_owned(),
            name: None,
            tag: (),
            to,
            health: health.kind("Pod"),
        };
        let (published, known) = watch::channel(Inventory::default());
        let reader = Reader::of(known, Some(Arc::new(Live::new(api_server))));
        (Self { follower, heard, seen: None, published }, reader)
    }

    /// Follows for ever.
    pub(crate) async fn run(self) {
        let Self { follower, mut heard, mut seen, published } = self;
        let hear = async {
            while let Some(((), heard)) = heard.recv().await {
                hear(heard, &mut seen, &published);
            }
        };
        tokio::join!(follower.run::<PodKind>(), hear);
    }
}

fn hear(heard: Heard, seen: &mut Option<Seen>, published: &watch::Sender<Inventory>) {
    match heard {
        Heard::Listing => *seen = Some(Seen::default()),
        Heard::Put(value) => {
            let Some(pod) = document(value) else { return };
            if let Some(seen) = seen {
                seen.note(pod.key());
            }
            published.send_modify(|inventory| put(inventory, &pod));
        }
        Heard::Gone(value) => {
            let Some(pod) = document(value) else { return };
            published.send_modify(|inventory| inventory.remove(pod.key()));
        }
        Heard::Listed => {
            let Some(seen) = seen.take() else { return };
            published.send_modify(|inventory| retain(inventory, &seen));
        }
    }
}

fn document(value: serde_json::Value) -> Option<Document> {
    let document = Document::received("v1", "Pod", value);
    document.inspect_err(|fault| error!(%fault, "pod not taken")).ok()
}

/// A pod that cannot be understood counts nowhere: the API server does not serve such.
fn put(inventory: &mut Inventory, pod: &Document) {
    match placement(pod) {
        Ok(Some(placement)) => inventory.put(pod.key().clone(), placement),
        Ok(None) => inventory.remove(pod.key()),
        Err(fault) => {
            error!(%fault, "pod not taken");
            inventory.remove(pod.key());
        }
    }
}

fn retain(inventory: &mut Inventory, seen: &Seen) {
    let gone: Vec<ObjectKey> = inventory.placements.keys().filter(|key| !seen.has(*key)).cloned().collect();
    gone.iter().for_each(|key| inventory.remove(key));
}

/// What waits to be taken in.
const WAITING: usize = 256;

#[cfg(test)]
mod tests;
