//! Clusters come and go: side by side, killed half-way, brought up twice, and nothing of them stays.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use signet_testkit::cluster::{self, Cluster};
use signet_testkit::need::Need;
use signet_testkit::process::{Process, stdout};
use signet_testkit::{binaries, cgroup, wait};

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster] =>
    a_cluster_that_is_down_leaves_nothing,
    a_killed_up_is_replaced_and_a_second_up_finds_the_first,
    a_killed_api_server_starts_again_and_the_pods_have_run_on,
    a_component_that_does_not_start_is_named_with_its_last_words,
);

/// Beside another cluster, which is not disturbed.
fn a_cluster_that_is_down_leaves_nothing() -> Result<()> {
    let other = shared::cluster()?;
    let before = traces()?;
    let cluster = Cluster::start()?;
    let kubectl = cluster.kubectl();
    kubectl.create_namespace("gone")?;
    for node in cluster.nodes() {
        kubectl.apply(&shared::pod(
            "gone",
            node.name(),
            node.name(),
            "signet-workload",
            &["sleep", "3600"],
        ))?;
        kubectl.wait_ready("gone", node.name(), WITHIN)?;
    }
    let name = cluster.name().to_owned();
    let seen = traces()? != before && !processes_of(&name).is_empty();
    ensure!(seen, "a running cluster leaves no trace: the test looks at the wrong things");
    drop(cluster);
    ensure!(processes_of(&name).is_empty(), "processes are left: {:?}", processes_of(&name));
    let after = traces()?;
    // Other tests' clusters come and go meanwhile.
    let is_anothers = |trace: &&String| trace.contains(OF_A_TEST) && !names(trace, &name);
    let left: Vec<_> = after.symmetric_difference(&before).filter(|trace| !is_anothers(trace)).collect();
    ensure!(left.is_empty(), "not as it was before: {left:#?}");
    other.kubectl().run(&["get", "nodes"]).map(drop)
}

fn a_killed_up_is_replaced_and_a_second_up_finds_the_first() -> Result<()> {
    let name = Named(format!("killed-{}", std::process::id()));
    let log = tempfile::NamedTempFile::new()?;
    let mut command = signet_cluster()?;
    command.args(["up", "--name", &name.0]);
    let up = Process::start(command, log.path())?;
    let api_server = cgroup::mount()?.join(format!("signetk-{}/ctl/kube-apiserver", name.0));
    wait::until("up has come half-way", WITHIN, || {
        ensure!(api_server.exists(), "no {}", api_server.display());
        Ok(())
    })?;
    // A guard that is dropped kills it as the kernel would.
    drop(up);
    ensure!(!succeeds(&name.run("status")?), "a half-started cluster is not up");
    let first = stdout(&name.run("up")?)?;
    ensure!(first.contains("is up\n"), "the first up: {first}");
    let second = stdout(&name.run("up")?)?;
    ensure!(second.contains("is up already"), "the second up: {second}");
    let status = stdout(&name.run("status")?)?;
    ensure!(status.contains("n2-kubelet") && status.contains("v1."), "the status: {status}");
    stdout(&name.run("down")?)?;
    ensure!(!api_server.exists(), "down has left {}", api_server.display());
    ensure!(stdout(&name.run("down")?)?.contains("there was none"), "a second down finds something");
    Ok(())
}

fn a_killed_api_server_starts_again_and_the_pods_have_run_on() -> Result<()> {
    let cluster = Cluster::start()?;
    let kubectl = cluster.kubectl();
    kubectl.apply(&shared::pod("default", "on", "n1", "signet-workload", &["sleep", "3600"]))?;
    kubectl.wait_ready("default", "on", WITHIN)?;
    let started =
        || kubectl.run(&["get", "pod/on", "--output=jsonpath={.status.containerStatuses[0].containerID}"]);
    let before = started()?;
    let api_server = cluster.component("kube-apiserver")?;
    api_server.kill()?;
    ensure!(started().is_err(), "kubectl gets an answer without an API server");
    api_server.start()?;
    cluster.wait_for_api_server()?;
    ensure!(started()? == before, "the pod's container is another one");
    kubectl.exec("default", "on", &["true"]).map(drop)
}

fn a_component_that_does_not_start_is_named_with_its_last_words() -> Result<()> {
    let cluster = Cluster::start()?;
    let kubelet = cluster.component("n1-kubelet")?;
    stdout(&cluster.nodes()[0].exec(&[
        "sh",
        "-c",
        "echo '{\"kind\": \"Nonsense\"}' >/etc/kubernetes/kubelet.json",
    ])?)?;
    kubelet.kill()?;
    kubelet.start()?;
    let Err(error) = kubelet.wait_for_line(&["a line that never comes"], WITHIN) else {
        bail!("a kubelet without a configuration said it")
    };
    let text = format!("{error:#}");
    ensure!(text.contains("n1-kubelet") && text.contains("ended") && text.contains("Nonsense"), "{text}");
    Ok(())
}

/// A cluster that people named; taken down at the end of the test, whatever happened.
struct Named(String);

impl Named {
    fn run(&self, action: &str) -> Result<Output> {
        signet_cluster()?.args([action, "--name", &self.0]).output().context("cannot run signet-cluster")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Err(error) = cluster::take_down(&self.0) {
            eprintln!("cannot take down {}: {error:#}", self.0);
        }
    }
}

fn signet_cluster() -> Result<Command> {
    Ok(Command::new(binaries::path("signet-cluster")?))
}

fn succeeds(output: &Output) -> bool {
    output.status.success()
}

/// Where a cluster could leave something on the machine. Other tests come and go meanwhile: their names are not looked at.
fn traces() -> Result<BTreeSet<String>> {
    let mut traces: BTreeSet<String> =
        FOLDERS.iter().flat_map(|folder| named_like_a_cluster(folder)).collect();
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    traces.extend(mounts.lines().filter(|line| is_of_a_cluster(line)).map(|line| format!("mount {line}")));
    traces.extend(KERNEL_SETTINGS.map(|setting| {
        format!(
            "{setting} = {}",
            fs::read_to_string(Path::new("/proc/sys").join(setting)).unwrap_or_default()
        )
    }));
    let links = stdout(&Command::new("ip").args(["-brief", "link"]).output()?)?;
    traces.extend(links.lines().map(|line| format!("link {}", line.split(' ').next().unwrap_or_default())));
    let rules = Command::new("iptables-save").output().context("cannot run iptables-save")?;
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    traces.extend(rules.lines().filter(|line| line.contains("KUBE")).map(|line| format!("rule {line}")));
    for hierarchy in named_folders("/sys/fs/cgroup") {
        traces.extend(named_like_a_cluster(&hierarchy));
    }
    Ok(traces)
}

/// Whether a trace is of that cluster: `signetk-1-1` is no name of `signetk-1-10`.
fn names(trace: &str, cluster: &str) -> bool {
    let follows = trace.split(cluster).skip(1);
    follows.into_iter().any(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

/// Processes below a cluster's cgroup. One that was killed has no command line until init has taken note of its end.
fn processes_of(cluster: &str) -> Vec<String> {
    let below = format!(":/{cluster}/");
    let runs = |pid: &String| {
        let read = |file| fs::read_to_string(Path::new(pid).join(file)).unwrap_or_default();
        read("cgroup").contains(&below) && !read("cmdline").is_empty()
    };
    named_folders("/proc").into_iter().filter(runs).collect()
}

fn named_like_a_cluster(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path().display().to_string());
    paths.filter(|path| path.rsplit('/').next().is_some_and(is_of_a_cluster)).collect()
}

fn named_folders(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// Of this test run's clusters, or without a name of its own: what kubelet, containerd or a plugin makes.
fn is_of_a_cluster(text: &str) -> bool {
    let ours = format!("signetk-{}-", std::process::id());
    text.contains(&ours) || ["kube", "cni", "containerd", "runc"].iter().any(|word| text.contains(word))
}

/// Begins the names of clusters that tests make.
const OF_A_TEST: &str = "signetk-";
const FOLDERS: [&str; 12] = [
    "/etc",
    "/etc/cni",
    "/opt",
    "/opt/cni",
    "/run",
    "/run/netns",
    "/tmp",
    "/usr/libexec",
    "/var/lib",
    "/var/lib/cni",
    "/var/log",
    "/sys/fs/bpf",
];
const KERNEL_SETTINGS: [&str; 7] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
];
