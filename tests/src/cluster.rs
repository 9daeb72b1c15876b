//! A real two-node Kubernetes cluster on this machine, as a guard: etcd, kube-apiserver, kube-controller-manager,
//! kube-scheduler, CoreDNS, and two nodes with kubelet, containerd, runc, the bridge plugin and kube-proxy.
//!
//! Nothing in it is a stand-in. What is ours: the machines (network and mount namespaces of this kernel), the link
//! between them, and the order in which it all starts. As with a testbed, everything carries the cluster's name, and
//! [`take_down`] removes all of it by that name alone; several clusters share a kernel. Dual-stack, IPv4 first.

pub mod ca;
pub mod command;
mod component;
mod control;
pub mod forward;
pub mod istiod;
mod kubectl;
mod layout;
pub mod machine;
mod network;
mod node;
mod pki;
pub mod release;
mod removal;
mod signet;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use serde_json::json;

pub use ca::Ca;
pub use component::Component;
use control::{ControlPlane, READY_WITHIN};
pub use istiod::Istiod;
pub use kubectl::Kubectl;
use layout::Layout;
use network::Network;
pub use node::Node;
pub use release::{Helm, Release};
pub use signet::{Engine, Gate, Signet};
pub use wire::Wire;

use crate::netns::Netns;
use crate::{binaries, live};

/// A running cluster. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Cluster {
    layout: Layout,
    control: ControlPlane,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts a cluster for tests, with a name that no other has, after sweeping what dead tests have left.
    ///
    /// # Errors
    /// A part is missing, or did not come up; the text names it and has the end of its log.
    pub fn start() -> Result<Self> {
        removal::sweep()?;
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::start_named(&format!("{}-{count}", std::process::id()))
    }

    /// Starts a cluster with a name of one's own. What a cluster of that name has left is removed first.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_named(name: &str) -> Result<Self> {
        let layout = Layout::of(name)?;
        removal::remove(layout.name())?;
        live::register(layout.name(), removal::remove);
        let started = start(&layout);
        if started.is_err() {
            // The error has the ends of the logs.
            live::report(removal::remove(layout.name()));
            live::forget(layout.name());
        }
        started
    }

    /// The name that is on all it has.
    #[must_use]
    pub fn name(&self) -> &str {
        self.layout.name()
    }

    /// kubectl as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.control.kubectl()
    }

    /// The administrator's kubeconfig: it works from this machine's own network namespace.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// Its nodes, `n1` and `n2`.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A process of it by its name: `etcd`, `kube-apiserver`, `n1-kubelet`.
    ///
    /// # Errors
    /// It has none of that name.
    pub fn component(&self, name: &str) -> Result<&Component> {
        let of_nodes = self.nodes.iter().flat_map(Node::components);
        let mut all = self.control.components().iter().chain(of_nodes);
        all.find(|component| component.name() == name).with_context(|| format!("a cluster has no {name}"))
    }

    /// Waits until the API server is ready, after a test has started it again.
    ///
    /// # Errors
    /// It is not in time, or ended; carries the end of its log.
    pub fn wait_for_api_server(&self) -> Result<()> {
        control::wait_ready(self.component("kube-apiserver")?, self.kubectl())
    }

    /// Writes a kubeconfig that a service account's processes use on the nodes.
    ///
    /// # Errors
    /// There is no such account.
    pub fn write_account_kubeconfig(&self, namespace: &str, account: &str, path: &Path) -> Result<()> {
        let token = ["create", "token", account, "--namespace", namespace, "--duration=8h"];
        let token = self.kubectl().run(&token)?;
        let server = format!("https://{}:6443", network::CONTROL_IP);
        pki::write_kubeconfig(path, &server, &self.control.ca(), token.trim())
    }

    /// A command outside of the nodes, on the control plane's machine: a client of NodePorts, a stranger.
    ///
    /// # Errors
    /// Its cgroup cannot be made.
    pub fn outside(&self, argv: &[&str]) -> Result<Command> {
        self.control.command(argv)
    }

    /// The network namespace of that machine, for connections that a test holds itself.
    #[must_use]
    pub fn outside_netns(&self) -> &Netns {
        self.control.netns()
    }

    /// Leaves it up after this process has ended, until [`take_down`].
    ///
    /// # Errors
    /// The mark cannot be written.
    pub fn keep(self) -> Result<()> {
        fs::write(self.layout.up_mark(), "").context("cannot mark the cluster as kept")?;
        live::forget(self.layout.name());
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        live::report(self.save_logs());
        live::report(removal::remove(self.layout.name()));
        live::forget(self.layout.name());
    }
}

impl Cluster {
    /// Copies the logs to where `SIGNET_TEST_LOGS` says, if it does.
    fn save_logs(&self) -> Result<()> {
        let Some(directory) = std::env::var_os("SIGNET_TEST_LOGS") else { return Ok(()) };
        let directory = PathBuf::from(directory).join(self.layout.name());
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(self.layout.directory().join("logs"))? {
            let entry = entry?;
            fs::copy(entry.path(), directory.join(entry.file_name()))?;
        }
        Ok(())
    }
}

/// Removes everything of the cluster with this name; none there is fine.
///
/// # Errors
/// The first thing that could not be removed, after trying the rest.
pub fn take_down(name: &str) -> Result<()> {
    removal::remove(Layout::of(name)?.name())
}

/// Whether there is a cluster of this name, whole or not.
///
/// # Errors
/// The name is none, or the folder of clusters cannot be read.
pub fn exists(name: &str) -> Result<bool> {
    let layout = Layout::of(name)?;
    Ok(layout::names()?.iter().any(|name| name == layout.name()))
}

/// Containerds and control plane start side by side: images are imported while the API server fills its etcd.
fn start(layout: &Layout) -> Result<Cluster> {
    let images = images()?;
    fs::create_dir_all(layout.directory().join("logs"))?;
    let Network { control, nodes } = Network::add(layout)?;
    let (control, nodes) = thread::scope(|scope| {
        let start_node = |(index, netns)| {
            let images = &images;
            scope.spawn(move || Node::start(layout, index, netns, images))
        };
        let nodes: Vec<_> = nodes.into_iter().enumerate().map(start_node).collect();
        let control = ControlPlane::start(layout, control);
        let nodes: Result<Vec<Node>> = nodes.into_iter().map(joined).collect();
        (control, nodes)
    });
    let (control, mut nodes) = (control?, nodes?);
    nodes.iter_mut().try_for_each(|node| node.join(layout, &control))?;
    let cluster = Cluster { layout: layout.clone(), control, nodes };
    cluster.wait_ready().with_context(|| cluster.layout.name().to_owned())?;
    Ok(cluster)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread that starts a node panicked")))
}

/// The archives of the images that every node gets.
fn images() -> Result<Vec<String>> {
    IMAGES.iter().map(|name| Ok(binaries::image(name)?.display().to_string())).collect()
}

impl Cluster {
    fn wait_ready(&self) -> Result<()> {
        let kubectl = self.kubectl();
        for node in &self.nodes {
            let object = format!("node/{}", node.name());
            let kubelet = self.component(&format!("{}-kubelet", node.name()))?;
            let wait = |condition| kubectl.wait("default", &object, condition, READY_WITHIN);
            wait("create").and_then(|()| wait("condition=Ready")).with_context(|| kubelet.log_tail())?;
            let ranges = node.pod_ranges();
            let ranges = json!({"spec": {"podCIDR": ranges[0], "podCIDRs": ranges}});
            kubectl.run(&["patch", "node", node.name(), "--patch", &ranges.to_string()])?;
        }
        kubectl.wait("default", "serviceaccount/default", "create", READY_WITHIN)
    }
}

/// See `cargo xtask image`.
pub(crate) const IMAGES: [&str; 4] = ["signetd", "signet-ca", "signet-pause", "signet-workload"];

/// Numbers the clusters of this process.
static COUNTER: AtomicU32 = AtomicU32::new(0);
