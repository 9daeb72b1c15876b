//! What the watch does not know yet, asked of the API server once.
//!
//! The first request for a pod may come before the watch has told of it, and a node that is refused then would keep the
//! pod's connections waiting. It costs a list of one node's pods in one namespace; only nodes that have proved who they
//! are get that far, and so many at a time.

use std::sync::Arc;

use serde::Deserialize;
use signet_apiserver::{ApiServer, Fault, Place, Resource};

use super::BoundPod;

/// Asks the API server.
#[derive(Debug)]
pub(crate) struct Live {
    api_server: ApiServer,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    uid: Arc<str>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<Arc<str>>,
    service_account_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

impl Live {
    pub(crate) fn new(api_server: &ApiServer) -> Self {
        Self { api_server: api_server.with_room_for(AT_A_TIME) }
    }

    /// Whether a pod of that service account is on that node.
    pub(super) async fn has(&self, node: &str, namespace: &str, account: &str) -> Result<bool, Fault> {
        // Names of both come from tokens and SPIFFE IDs; what cannot be an object's name is nowhere.
        if !is_name(node) || !is_name(namespace) {
            return Ok(false);
        }
        let pods: Vec<Pod> = self.api_server.list(pods(namespace), &format!("spec.nodeName={node}")).await?;
        Ok(pods.iter().any(|pod| pod.counts_on(node) && pod.account() == account))
    }

    /// The node of that very pod.
    pub(super) async fn node_of(&self, pod: &BoundPod) -> Result<Option<Arc<str>>, Fault> {
        if !is_name(&pod.namespace) || !is_name(&pod.name) {
            return Ok(None);
        }
        let found: Option<Pod> = self.api_server.get(pods(&pod.namespace), &pod.name).await?;
        let found = found.filter(|found| found.metadata.uid == pod.uid);
        Ok(found.and_then(|found| found.spec.node_name).filter(|node| !node.is_empty()))
    }
}

impl Pod {
    fn counts_on(&self, node: &str) -> bool {
        self.spec.node_name.as_deref() == Some(node)
            && !["Succeeded", "Failed"].contains(&&*self.status.phase)
    }

    fn account(&self) -> &str {
        self.spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
    }
}

fn pods(namespace: &str) -> Place<'_> {
    let resource = Resource { group: "", kind: "Pod", plural: "pods" };
    Place { resource, version: "v1", namespace: Some(namespace) }
}

/// Nothing that would change the meaning of a path or a selector.
fn is_name(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    !text.is_empty()
        && text.len() <= 253
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(legal)
}

/// Lists at a time.
const AT_A_TIME: usize = 8;
