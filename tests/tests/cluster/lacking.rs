//! A node whose pods see no cgroup2: the engine says so, on the one node that the roll has come to, and stays away from the
//! others. That bpffs is missing is in `installed`, that the kernel is too old among the end-to-end tests.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::release::NAMESPACE;
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::days::{self, Installed};
use crate::shared::WITHIN;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    a_node_without_cgroup2_says_so_in_the_pods_last_words_and_in_readiness,
);

fn a_node_without_cgroup2_says_so_in_the_pods_last_words_and_in_readiness() -> Result<()> {
    let day = days::alone()?;
    show_as_cgroups(&day, "/var/lib/no-cgroups")?;
    let said = wait::until("readiness names cgroup2", WITHIN, || {
        let ask = ["curl", "--silent", "--max-time", "5", "http://127.0.0.1:15021/healthz/ready"];
        let all = day.cluster.nodes().iter().map(|node| node.exec(&ask));
        let all: Vec<String> =
            all.map(|said| Ok(String::from_utf8_lossy(&said?.stdout).into_owned())).collect::<Result<_>>()?;
        let unready = all.iter().find(|said| said.contains("\"ready\":false") && said.contains(LACKS));
        unready.cloned().ok_or_else(|| anyhow::anyhow!("{all:?}"))
    })?;
    let count = said.matches(LACKS).count();
    ensure!(count == 1 && said.contains("systemd.unified_cgroup_hierarchy=1"), "said {count} times: {said}");
    wait::until("the pod's last words name cgroup2", WITHIN, || {
        let last = "--output=jsonpath={.items[*].status.containerStatuses[0]..terminated.message}";
        let said = day.kubectl().run(&["get", "pods", "--namespace", NAMESPACE, SELECTOR, last])?;
        ensure!(said.contains(LACKS) && said.contains("mount -t cgroup2"), "{said:?}");
        Ok(())
    })?;
    let ready = "--output=jsonpath={.status.numberReady}";
    let ready = day.kubectl().run(&["get", "daemonset/signetd", "--namespace", NAMESPACE, ready])?;
    ensure!(ready == "1", "the roll went on to the other node: {ready} are ready");
    show_as_cgroups(&day, "/sys/fs/cgroup")?;
    day.wait_rolled()
}

/// What the engines' pods see of the node as `/sys/fs/cgroup`.
fn show_as_cgroups(day: &Installed, path: &str) -> Result<()> {
    let folder = json!({"name": "cgroup", "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    let patch: Value = json!({"spec": {"template": {"spec": {"volumes": [folder]}}}});
    let patch = ["patch", "daemonset/signetd", "--namespace", NAMESPACE, "--patch", &patch.to_string()];
    day.kubectl().run(&patch).map(drop)
}

const LACKS: &str = "no cgroup2 file system is mounted";
const SELECTOR: &str = "--selector=app.kubernetes.io/name=signetd";
