//! The cluster is one: its nodes are ready, and pods on both talk as pods do anywhere.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use signet_testkit::cluster::{Cluster, Kubectl};
use signet_testkit::need::Need;
use signet_testkit::process::stdout;
use signet_testkit::wait;

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster] =>
    both_nodes_are_ready_and_run_the_pinned_kubelet,
    pods_talk_across_and_on_nodes_by_address_service_and_name,
    exec_and_logs_reach_pods_on_both_nodes,
    a_pods_cgroup_is_below_its_nodes_root,
);

fn both_nodes_are_ready_and_run_the_pinned_kubelet() -> Result<()> {
    let cluster = shared::cluster()?;
    let nodes = cluster.kubectl().json(&["get", "nodes"])?;
    let nodes = nodes["items"].as_array().context("a list")?;
    ensure!(nodes.len() == 2, "{} nodes", nodes.len());
    let pinned = include_str!("../../cluster/kubernetes/go.mod");
    for node in nodes {
        let ready = node["status"]["conditions"].as_array().context("conditions")?.iter();
        ensure!(ready.clone().any(|c| c["type"] == "Ready" && c["status"] == "True"), "not ready: {node}");
        let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().context("a version")?;
        let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
        ensure!(pinned.contains(&format!("k8s.io/kubernetes {minor}.")), "{version} is not the pinned one");
    }
    Ok(())
}

fn pods_talk_across_and_on_nodes_by_address_service_and_name() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    kubectl.create_namespace("talk")?;
    kubectl.apply(&shared::pod("talk", "server", "n1", IMAGE, &["sh", "-c", SERVE]))?;
    kubectl.apply(SERVICE)?;
    for node in ["n1", "n2"] {
        kubectl.apply(&shared::pod("talk", node, node, IMAGE, &["sleep", "3600"]))?;
    }
    for pod in ["server", "n1", "n2"] {
        kubectl.wait_ready("talk", pod, WITHIN)?;
    }
    let server = kubectl.json(&["get", "--namespace=talk", "pod/server"])?;
    let service = kubectl.json(&["get", "--namespace=talk", "service/server"])?;
    let address = server["status"]["podIP"].as_str().context("an address")?;
    let virtual_address = service["spec"]["clusterIP"].as_str().context("an address")?;
    for client in ["n1", "n2"] {
        fetch(kubectl, client, &format!("http://{address}:8080/"))?;
        fetch(kubectl, client, &format!("http://{virtual_address}/"))?;
        fetch(kubectl, client, "http://server.talk.svc.cluster.local/")?;
    }
    from_outside(&cluster)
}

/// kube-proxy learns of a Service a moment after the API server.
fn fetch(kubectl: &Kubectl, client: &str, url: &str) -> Result<()> {
    wait::until(&format!("{client} gets {url}"), WITHIN, || {
        let said =
            kubectl.exec("talk", client, &["curl", "--silent", "--show-error", "--max-time", "5", url])?;
        ensure!(said == "from the server", "it got {said:?}");
        Ok(())
    })
}

fn from_outside(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let url = format!("http://{}:30080/", node.ip());
        let said = wait::until(&format!("{url} answers"), WITHIN, || {
            stdout(
                &cluster.outside(&["curl", "--silent", "--show-error", "--max-time", "5", &url])?.output()?,
            )
        })?;
        ensure!(said == "from the server", "{url}: {said:?}");
    }
    Ok(())
}

fn exec_and_logs_reach_pods_on_both_nodes() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    kubectl.create_namespace("reach")?;
    for node in ["n1", "n2"] {
        let says = format!("echo I am on {node}; sleep 3600");
        kubectl.apply(&shared::pod("reach", node, node, IMAGE, &["sh", "-c", &says]))?;
    }
    for node in ["n1", "n2"] {
        kubectl.wait_ready("reach", node, WITHIN)?;
        let logged = wait::until("its log is there", WITHIN, || {
            let log = kubectl.logs("reach", node)?;
            ensure!(!log.is_empty(), "the log is empty");
            Ok(log)
        })?;
        ensure!(logged == format!("I am on {node}"), "{node} logged {logged:?}");
        let said = kubectl.exec("reach", node, &["hostname"])?;
        ensure!(said == node, "{node} said {said:?}");
    }
    Ok(())
}

/// What every node engine of a cluster on one kernel relies on.
fn a_pods_cgroup_is_below_its_nodes_root() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    kubectl.create_namespace("rooted")?;
    for node in cluster.nodes() {
        kubectl.apply(&shared::pod("rooted", node.name(), node.name(), IMAGE, &["sleep", "3600"]))?;
        kubectl.wait_ready("rooted", node.name(), WITHIN)?;
        let pod: Value = kubectl.json(&["get", "--namespace=rooted", "pod", node.name()])?;
        let uid = pod["metadata"]["uid"].as_str().context("a UID")?;
        let pods = signet_testkit::cgroup::mount()?.join(node.cgroup_root()).join("kubepods");
        let path = pods.join("besteffort").join(format!("pod{uid}"));
        ensure!(path.is_dir(), "no {}", path.display());
    }
    Ok(())
}

const IMAGE: &str = "signet-workload";
const SERVE: &str = "mkdir /www && echo from the server >/www/index.html && exec httpd -f -p 8080 -h /www";
const SERVICE: &str = r#"{
    "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": "talk"},
    "spec": {
        "type": "NodePort", "selector": {"app": "server"},
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]
    }
}"#;
