//! The cluster that every test may use that does not hurt its neighbours: its objects are in a namespace of their own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use signet_testkit::cluster::{Cluster, Kubectl, Node};
use signet_testkit::process::stdout;

/// The shared cluster; started by the first test that asks for it.
///
/// # Errors
/// It could not be started; asked again, it says the same at once.
pub(crate) fn cluster() -> Result<Arc<Cluster>> {
    let mut shared = SHARED.lock().map_err(|_| anyhow!("the shared cluster panicked while it started"))?;
    let start = || Cluster::start().map(Arc::new).map_err(|error| format!("{error:#}"));
    shared.get_or_insert_with(start).clone().map_err(|error| anyhow!("no shared cluster: {error}"))
}

/// Takes it down. Called once, after the last test.
pub(crate) fn end() {
    if let Ok(mut shared) = SHARED.lock() {
        shared.take();
    }
}

/// A pod of one container that runs `command` on a node of its own choice or of ours.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, image: &str, command: &[&str]) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": format!("localhost/{image}:{VERSION}"), "command": command}],
        },
    })
    .to_string()
}

/// The id of a pod's container.
pub(crate) fn container(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<String> {
    let pod = kubectl.json(&["get", "--namespace", namespace, "pod", pod])?;
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().context("a container")?;
    Ok(id.trim_start_matches("containerd://").to_owned())
}

/// What a container of a node gets from `url`. From a shell on the node: `kubectl exec` goes through the API server.
pub(crate) fn fetch_in(node: &Node, container: &str, url: &str) -> Result<String> {
    let exec = ["ctr", "--namespace=k8s.io", "tasks", "exec", "--exec-id=fetch", container];
    let argv = [&exec[..], &["curl", "--silent", "--fail", "--max-time", "10", url]].concat();
    stdout(&node.exec(&argv)?)
}

/// The tag of the images.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// For a machine that is busy with a build.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// Written by the first test that asks and by [`end`]; read by every test.
static SHARED: Mutex<Option<Result<Arc<Cluster>, String>>> = Mutex::new(None);
