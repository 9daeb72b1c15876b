//! An engine that cannot serve: one that is rolled out leaves the engines that can alone and says why in its pod's events;
//! where there is none beside it, readiness and the pod's last words say it. Here its pod sees no cgroup2; that bpffs is
//! missing is in `installed`, that the kernel is too old among the end-to-end tests.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::Node;
use signet_testkit::cluster::release::NAMESPACE;
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::days::{self, Installed};
use crate::shared::WITHIN;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    a_roll_that_cannot_work_leaves_the_engines_alone_and_says_why,
    a_node_without_cgroup2_says_so_in_the_pods_last_words_and_in_readiness,
);

fn a_roll_that_cannot_work_leaves_the_engines_alone_and_says_why() -> Result<()> {
    let day = days::alone()?;
    let before = engines(&day)?;
    show_as_cgroups(&day, "/var/lib/no-cgroups")?;
    let node = standing_by(&day)?;
    let pods = day.signet.pods(node.name())?;
    let new = pods.iter().find(|pod| before.iter().all(|(_, engine)| engine != *pod)).context("a new pod")?;
    let of_it = format!("--field-selector=involvedObject.name={}", new.trim_start_matches("pod/"));
    wait::until("the new pod's events name cgroup2", WITHIN, || {
        let messages = "--output=jsonpath={.items[*].message}";
        let said = day.kubectl().run(&["get", "events", "--namespace", NAMESPACE, &of_it, messages])?;
        ensure!(said.contains("Startup probe failed") && said.contains(LACKS), "{said}");
        Ok(())
    })?;
    for (node, engine) in &before {
        ensure!(
            day.signet.pods(node)?.contains(engine),
            "the engine of {node} has gone for one that cannot serve"
        );
    }
    ensure!(ready(&day)? == "2", "an engine has become unready");
    show_as_cgroups(&day, "/sys/fs/cgroup")?;
    day.wait_rolled()
}

fn a_node_without_cgroup2_says_so_in_the_pods_last_words_and_in_readiness() -> Result<()> {
    let day = days::alone()?;
    let before = engines(&day)?;
    show_as_cgroups(&day, "/var/lib/no-cgroups")?;
    let node = standing_by(&day)?;
    let engine = before.iter().find(|(on, _)| on == node.name()).context("an engine of that node")?;
    day.kubectl().run(&["delete", "--namespace", NAMESPACE, &engine.1])?;
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
    ensure!(ready(&day)? == "1", "the roll went on to the other node");
    show_as_cgroups(&day, "/sys/fs/cgroup")?;
    day.wait_rolled()
}

/// The node that the roll has come to.
fn standing_by(day: &Installed) -> Result<&Node> {
    wait::until("one stands by", WITHIN, || {
        let mut nodes = day.cluster.nodes().iter();
        let two = nodes.find(|node| day.signet.pods(node.name()).is_ok_and(|pods| pods.len() == 2));
        two.context("on none")
    })
}

/// The engines' pods, by node.
fn engines(day: &Installed) -> Result<Vec<(String, String)>> {
    let of = |node: &Node| Ok((node.name().to_owned(), day.signet.pod(node.name())?));
    day.cluster.nodes().iter().map(of).collect()
}

fn ready(day: &Installed) -> Result<String> {
    let ready = "--output=jsonpath={.status.numberReady}";
    day.kubectl().run(&["get", "daemonset/signetd", "--namespace", NAMESPACE, ready])
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
