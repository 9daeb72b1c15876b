//! The node engine in a pod of its node, as a DaemonSet runs it: privileged, in the node's network, with the node's paths.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::Node;
use signet_testkit::need::Need;
use signet_testkit::process::stdout;
use signet_testkit::{cgroup, wait};

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    an_engine_on_each_node_is_ready_and_pins_on_its_node_only,
);

/// Both nodes are on one kernel, and each engine captures below its own node's cgroup root.
fn an_engine_on_each_node_is_ready_and_pins_on_its_node_only() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    kubectl.create_namespace("engine")?;
    for node in cluster.nodes() {
        let name = node.name();
        kubectl.apply(&configuration(node)?.to_string())?;
        kubectl.apply(&engine(name)?.to_string())?;
        kubectl.wait_ready("engine", name, WITHIN)?;
        let status = ["signet", "--socket", "/run/signet/admin.sock", "status"];
        wait::until(&format!("the engine of {name} is ready"), WITHIN, || {
            let said = kubectl.exec("engine", name, &status)?;
            ensure!(said.lines().any(|line| line.starts_with("ready") && line.ends_with("yes")), "{said}");
            Ok(())
        })?;
        stdout(&node.exec(&["test", "-d", PINS])?)?;
        ensure!(!Path::new(PINS).exists(), "the engine of {name} pinned on the machine itself");
    }
    Ok(())
}

fn configuration(node: &Node) -> Result<Value> {
    let config = json!({
        "instance": INSTANCE, "node": {"name": node.name()},
        "source": {"files": {"directory": "/tmp"}}, "ca": {"file": {"directory": "/tmp"}},
        "capture": {"cgroupRoot": cgroup::mount()?.join(node.cgroup_root()), "podsRoot": "kubepods"},
        "listen": {"admin": "/run/signet/admin.sock"},
    });
    Ok(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": node.name(), "namespace": "engine"},
        "data": {"signetd.yaml": config.to_string()},
    }))
}

fn engine(node: &str) -> Result<Value> {
    let mut pod: Value = serde_json::from_str(&shared::pod("engine", node, node, "signetd", &[]))?;
    let container = &mut pod["spec"]["containers"][0];
    container["args"] = json!(["--config", "/etc/signet/signetd.yaml"]);
    container["securityContext"] = json!({"privileged": true});
    container["volumeMounts"] = json!([
        {"name": "config", "mountPath": "/etc/signet"}, {"name": "run", "mountPath": "/run/signet"},
        {"name": "bpf", "mountPath": "/sys/fs/bpf"}, {"name": "cgroup", "mountPath": "/sys/fs/cgroup"},
    ]);
    pod["spec"]["volumes"] = json!([
        {"name": "config", "configMap": {"name": node}},
        {"name": "run", "hostPath": {"path": "/run/signet", "type": "DirectoryOrCreate"}},
        {"name": "bpf", "hostPath": {"path": "/sys/fs/bpf"}}, {"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup"}},
    ]);
    pod["spec"]["hostNetwork"] = json!(true);
    pod["spec"]["hostPID"] = json!(true);
    Ok(pod)
}

/// One that no other test of this machine pins under.
const INSTANCE: &str = "cluster-engine";
const PINS: &str = "/sys/fs/bpf/signet/cluster-engine";
