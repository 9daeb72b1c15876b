//! The chart installed, upgraded, rolled back and removed by helm on a cluster, as people do it.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use signet_testkit::cluster::release::NAMESPACE;
use signet_testkit::cluster::{Cluster, Kubectl, Node, Release, Wire};
use signet_testkit::need::Need;
use signet_testkit::process::stdout;
use signet_testkit::{binaries, cgroup, wait};

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(
    &[Need::Cluster, Need::Engine, Need::Program("tcpdump"), Need::Program("bpftool")] =>
    upgrade_and_rollback_lose_no_request_and_uninstall_leaves_nothing,
    a_node_that_lacks_bpffs_says_so_in_the_pods_last_words_and_in_readiness,
    the_demo_on_a_cluster_keeps_every_promise,
);

/// A client asks all the time, a connection for each request: none is refused or cut off while engines change.
fn upgrade_and_rollback_lose_no_request_and_uninstall_leaves_nothing() -> Result<()> {
    let cluster = Cluster::start()?;
    let kubectl = cluster.kubectl();
    let signet = Release::install(&cluster, &[])?;
    pair(&cluster, "load")?;
    signet.wait_for_pods(cluster.nodes(), "load", "captured")?;
    let address = wait::until("the client is served", WITHIN, || {
        let address = server_address(kubectl, "load")?;
        kubectl.exec("load", "client", &["curl", "-sS", "--fail", "--max-time", "10", &url(&address)])?;
        Ok(address)
    })?;
    for node in ["n1", "n2"] {
        let findings = signet.signet(node, &["check"]).context("signet check in the pod")?;
        let findings = findings.as_array().context("findings")?;
        ensure!(findings.iter().all(|finding| finding["ok"] == true) && findings.len() > 10, "{findings:?}");
    }
    let wire = Wire::record(&cluster, &cluster.nodes()[1])?;
    let load = start_load(kubectl, &address)?;
    signet.upgrade(&["signetd.log.filter=debug\\,h2=info"])?;
    ensure!(config(kubectl)?.contains("debug"), "the upgrade changed nothing");
    signet.rollback()?;
    ensure!(!config(kubectl)?.contains("debug"), "the rollback changed nothing");
    kubectl.exec("load", "client", &["touch", "/tmp/enough"])?;
    let said = stdout(&load.wait_with_output()?)?;
    ensure!(said.lines().all(|line| line == "served") && said.lines().count() > 10, "requests: {said}");
    let packets = wire.stop()?;
    ensure!(!packets.contain(SECRET.as_bytes()), "an answer crossed the link in clear");
    ensure!(packets.tls_records_of_port(15008) > 0, "no mTLS on the link");
    signet.uninstall()?;
    let answer =
        kubectl.exec("load", "client", &["curl", "-sS", "--fail", "--max-time", "10", &url(&address)])?;
    ensure!(answer == SECRET, "without Signet the client got {answer:?}");
    cluster.nodes().iter().try_for_each(nothing_is_left_on)?;
    nothing_is_left_in(kubectl)
}

/// The engine must not mount one of its container's own: the pins would end with the container.
fn a_node_that_lacks_bpffs_says_so_in_the_pods_last_words_and_in_readiness() -> Result<()> {
    let cluster = Cluster::start()?;
    let kubectl = cluster.kubectl();
    let signet = Release::install(&cluster, &[])?;
    let node = &cluster.nodes()[0];
    let pod = signet.pod("n1")?;
    stdout(&node.exec(&["mount", "-t", "tmpfs", "none", "/sys/fs/bpf"])?)?;
    kubectl.run(&["delete", "--namespace", NAMESPACE, &pod])?;
    let ask = ["curl", "--silent", "--max-time", "5", "http://127.0.0.1:15021/healthz/ready"];
    wait::until("readiness names bpffs", WITHIN, || {
        let said = stdout(&node.exec(&ask)?)?;
        ensure!(said.contains("\"ready\":false") && said.contains("no bpffs"), "{said}");
        Ok(())
    })?;
    wait::until("the pod's last words name bpffs", WITHIN, || {
        let last = "--output=jsonpath={.items[*].status.containerStatuses[0]..terminated.message}";
        let on_node = "--field-selector=spec.nodeName=n1";
        let said = kubectl.run(&["get", "pods", "--namespace", NAMESPACE, SELECTOR, on_node, last])?;
        ensure!(said.contains("no bpffs") && said.contains("mount -t bpf"), "{said:?}");
        Ok(())
    })?;
    stdout(&node.exec(&["umount", "--lazy", "/sys/fs/bpf"])?)?;
    kubectl.run(&[
        "delete",
        "pods",
        "--namespace",
        NAMESPACE,
        SELECTOR,
        "--field-selector=spec.nodeName=n1",
    ])?;
    kubectl
        .run(&["rollout", "status", "--namespace", NAMESPACE, "daemonset/signetd", "--timeout=60s"])
        .map(drop)
}

fn the_demo_on_a_cluster_keeps_every_promise() -> Result<()> {
    let output = Command::new(binaries::path("signet-demo")?).args(["--kubernetes", "--json"]).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    ensure!(output.status.success() && report["ok"] == true, "{report:#}");
    let checks = report["checks"].as_array().context("checks")?;
    ensure!(checks.len() >= 12, "only {} checks", checks.len());
    ensure!(checks.iter().all(|check| check["ok"] == true && check["detail"] != ""), "{report:#}");
    Ok(())
}

/// An enrolled namespace with a server on n2 and a client on n1.
fn pair(cluster: &Cluster, namespace: &str) -> Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.create_namespace(namespace)?;
    kubectl.run(&["label", "namespace", namespace, "istio.io/dataplane-mode=ambient"])?;
    let serve = format!("mkdir /www && printf {SECRET} >/www/page && exec httpd -f -p 8080 -h /www");
    kubectl.apply(&shared::pod(namespace, "server", "n2", IMAGE, &["sh", "-c", &serve]))?;
    kubectl.apply(&shared::pod(namespace, "client", "n1", IMAGE, &["sleep", "3600"]))?;
    ["server", "client"].iter().try_for_each(|pod| kubectl.wait_ready(namespace, pod, WITHIN))
}

fn server_address(kubectl: &Kubectl, namespace: &str) -> Result<String> {
    let address = "--output=jsonpath={.status.podIP}";
    kubectl.run(&["get", "pod/server", "--namespace", namespace, address])
}

fn url(address: &str) -> String {
    format!("http://{address}:8080/page")
}

/// Asks until `/tmp/enough` is there, and writes a line for each request.
fn start_load(kubectl: &Kubectl, address: &str) -> Result<Child> {
    let ask = "while [ ! -e /tmp/enough ]; do \
        if curl -s --fail --max-time 60 -o /dev/null \"$1\"; \
        then echo served; else echo \"lost: curl exit code $?\"; fi; done";
    let url = url(address);
    let mut command =
        kubectl.command(&["exec", "--namespace=load", "client", "--", "sh", "-c", ask, "ask", &url]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run kubectl")
}

/// What the engines that run now were started with.
fn config(kubectl: &Kubectl) -> Result<String> {
    let text = "--output=jsonpath={.data.signetd\\.yaml}";
    kubectl.run(&["get", "configmap/signetd", "--namespace", NAMESPACE, text])
}

/// No pin, no program on a cgroup, no rule in a pod's network namespace.
fn nothing_is_left_on(node: &Node) -> Result<()> {
    let pins = stdout(&node.exec(&["find", "/sys/fs/bpf", "-mindepth", "1", "-path", "*signet*"])?)?;
    ensure!(pins.is_empty(), "pins on {}:\n{pins}", node.name());
    let root = cgroup::mount()?.join(node.cgroup_root());
    let root = root.to_str().context("a path in UTF-8")?;
    let programs = stdout(&node.exec(&["bpftool", "cgroup", "tree", root])?)?;
    ensure!(!programs.contains("signet"), "programs on {}:\n{programs}", node.name());
    for (name, command) in [("rules", "ip rule"), ("rules", "ip -6 rule")] {
        let ask = format!(
            "for pid in $(cat $(find {root}/kubepods -name cgroup.procs)); do nsenter --net=/proc/$pid/ns/net {command}; done"
        );
        let said = stdout(&node.exec(&["sh", "-c", &ask])?)?;
        ensure!(
            said.contains("lookup main") && !said.contains("0x513"),
            "{name} on {}:\n{said}",
            node.name()
        );
    }
    Ok(())
}

/// What stays is what a new installation goes on with: the CA's root, and the roots where pods read them.
fn nothing_is_left_in(kubectl: &Kubectl) -> Result<()> {
    let kinds = "daemonsets,deployments,replicasets,jobs,pods,services,configmaps,secrets,serviceaccounts,roles,\
                 rolebindings,networkpolicies,poddisruptionbudgets,resourcequotas";
    let left = kubectl.run(&["get", kinds, "--namespace", NAMESPACE, "--output=name"])?;
    let stays = [
        "configmap/istio-ca-root-cert",
        "configmap/kube-root-ca.crt",
        "secret/signet-ca-root",
        "serviceaccount/default",
    ];
    let left: Vec<&str> = left.lines().filter(|name| !stays.contains(name)).collect();
    ensure!(left.is_empty(), "in {NAMESPACE}: {left:?}");
    let kinds = "clusterroles,clusterrolebindings";
    let left =
        kubectl.run(&["get", kinds, "--selector=app.kubernetes.io/part-of=signet", "--output=name"])?;
    ensure!(left.is_empty(), "in the cluster: {left}");
    let labels = kubectl.run(&["get", "nodes", "--output=jsonpath={.items[*].metadata.labels}"])?;
    ensure!(!labels.contains("signet"), "labels on nodes: {labels}");
    Ok(())
}

const IMAGE: &str = "signet-workload";
const SECRET: &str = "what-only-an-enrolled-client-may-read";
const SELECTOR: &str = "--selector=app.kubernetes.io/name=signetd";
