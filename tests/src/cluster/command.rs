//! `signet-cluster up | status | down`: a cluster that stays, by a name that people chose.
//!
//! One lock for each name: a second `up` waits for the first, and finds it up. A cluster whose `up` was killed has no
//! mark, and is taken down before the next one starts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use super::layout::{self, CONTROL, Layout, NODES};
use super::{Cluster, Kubectl, machine, removal};

/// Brings the cluster up, or finds it up, and says what to try.
///
/// # Errors
/// A part is missing or did not come up.
pub fn up(name: &str, with_istiod: bool) -> Result<()> {
    let layout = Layout::of(name)?;
    let _lock = lock(&layout)?;
    let has_istiod = || runs(&layout, ISTIOD) || !with_istiod;
    let found = layout.up_mark().exists() && down_parts(&layout).is_empty() && has_istiod();
    if !found {
        eprintln!("cluster {name}: starting");
        start(name, with_istiod)?;
    }
    println!(
        "cluster {name}: {}\n\n{}",
        if found { "is up already" } else { "is up" },
        what_to_try(&layout)?
    );
    Ok(())
}

fn start(name: &str, with_istiod: bool) -> Result<()> {
    let cluster = Cluster::start_named(name)?;
    if with_istiod {
        std::mem::forget(cluster.start_istiod()?);
    }
    cluster.keep()
}

/// Says what of the cluster runs; `false` where it is not up whole.
///
/// # Errors
/// The API server does not answer.
pub fn status(name: &str) -> Result<bool> {
    let layout = Layout::of(name)?;
    if !layout.directory().exists() {
        println!("cluster {name}: there is none");
        return Ok(false);
    }
    let down = down_parts(&layout);
    for part in parts().into_iter().chain(runs(&layout, ISTIOD).then(|| ISTIOD.to_owned())) {
        println!("{part:<24} {}", if down.contains(&part) { "does not run" } else { "runs" });
    }
    let up = down.is_empty() && layout.up_mark().exists();
    if up {
        println!(
            "\n{}\n\n{}",
            Kubectl::new(&layout.kubeconfig())?.run(&["get", "nodes", "-o", "wide"])?,
            what_to_try(&layout)?
        );
    }
    Ok(up)
}

/// Takes the cluster down, whatever state it is in.
///
/// # Errors
/// Something could not be removed.
pub fn down(name: &str) -> Result<()> {
    let layout = Layout::of(name)?;
    let lock = lock(&layout)?;
    let there = layout::names()?.iter().any(|name| name == layout.name());
    removal::remove(layout.name())?;
    fs::remove_file(layout.lock()).context("cannot remove the lock")?;
    drop(lock);
    println!("cluster {name}: {}", if there { "taken down" } else { "there was none" });
    Ok(())
}

/// Runs a command on a node of a cluster that is up, with this terminal.
///
/// # Errors
/// There is no such node.
pub fn exec(name: &str, node: &str, argv: &[String]) -> Result<ExitCode> {
    let layout = Layout::of(name)?;
    ensure!(NODES.contains(&node), "a cluster's nodes are {}: {node}", NODES.join(" and "));
    let holder = machine_cgroup(&layout, node).join("machine/cgroup.procs");
    let pids = fs::read_to_string(holder).with_context(|| format!("cluster {name} is not up"))?;
    let pid = pids.lines().next().with_context(|| format!("node {node} of cluster {name} is down"))?;
    let status = machine::spot(&machine_cgroup(&layout, node), pid)
        .command("login", argv)?
        .stdin(Stdio::inherit())
        .status()
        .with_context(|| format!("cannot run {}", argv.join(" ")))?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// Waits until nobody else brings it up or takes it down.
fn lock(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    fs::create_dir_all(path.parent().context("a lock lies in a directory")?)?;
    loop {
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        // Its holder may have removed it: then another file has that name, or none.
        if same_file(&file, &path) {
            return Ok(file);
        }
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().ok().map(inode) == fs::metadata(path).ok().map(inode)
}

/// Every process of a cluster.
fn parts() -> Vec<String> {
    let control = CONTROL_PARTS.map(str::to_owned);
    let of_nodes = NODES.iter().flat_map(|node| NODE_PARTS.map(|part| format!("{node}-{part}")));
    control.into_iter().chain(of_nodes).collect()
}

/// Those that do not run.
fn down_parts(layout: &Layout) -> Vec<String> {
    parts().into_iter().filter(|part| !runs(layout, part)).collect()
}

/// Each part has a cgroup of its own.
fn runs(layout: &Layout, part: &str) -> bool {
    let of_node = NODES.iter().find_map(|node| Some((node, part.strip_prefix(node)?.strip_prefix('-')?)));
    let cgroup = match of_node {
        Some((node, unit)) => machine_cgroup(layout, node).join(unit),
        None => layout.cgroup().join(CONTROL).join(part),
    };
    let events = cgroup.join("cgroup.events");
    fs::read_to_string(events).is_ok_and(|events| events.contains("populated 1"))
}

/// Where the processes of a node's machine are.
fn machine_cgroup(layout: &Layout, node: &str) -> PathBuf {
    layout.cgroup().join(node).join("system")
}

fn what_to_try(layout: &Layout) -> Result<String> {
    let tools = crate::binaries::target()?.join("tools/bin");
    let name = layout.chosen();
    let named = if name == DEFAULT_NAME { String::new() } else { format!(" --name {name}") };
    let ca = if runs(layout, ISTIOD) { ISTIODS_CA } else { "" };
    Ok(format!(
        "export KUBECONFIG={}\nexport PATH={}:$PATH\n\n\
         kubectl get nodes -o wide\n\
         kubectl run web --image=localhost/signet-workload:{VERSION} -- busybox httpd -f -p 8080\n\
         kubectl exec web -- curl -sk https://kubernetes.default/version\n\
         helm install signet deploy/chart --namespace signet-system --create-namespace{ca}\n\
         cargo xtask cluster exec{named} n1 -- ctr -n k8s.io containers ls\n\
         logs: {}\n\
         cargo xtask cluster down{named}",
        layout.kubeconfig().display(),
        tools.display(),
        layout.directory().join("logs").display(),
    ))
}

/// Where nobody chose one.
pub const DEFAULT_NAME: &str = "dev";
const CONTROL_PARTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "coredns", "forward"];
const NODE_PARTS: [&str; 4] = ["machine", "containerd", "kubelet", "kube-proxy"];
/// The part that is there only where it is asked for.
const ISTIOD: &str = "istiod";
/// Has Signet's engines ask it.
const ISTIODS_CA: &str = " --set ca.enabled=false --set ca.address=https://istiod.istio-system.svc:15012";
/// The tag of the images.
const VERSION: &str = env!("CARGO_PKG_VERSION");
