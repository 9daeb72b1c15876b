//! A node of the cluster: containerd with runc and the bridge plugin, a kubelet, and kube-proxy in iptables mode, on a
//! machine of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::component::Component;
use super::control::{ControlPlane, READY_WITHIN, words};
use super::layout::{Layout, NODES};
use super::machine::{Machine, on_disk};
use super::network::{CONTROL_IP, DNS_SERVICE_IP, POD_RANGES, node_ips, pod_ranges};
use crate::binaries;
use crate::netns::Netns;
use crate::process::stdout;

/// A running node.
#[derive(Debug)]
pub struct Node {
    components: Vec<Component>,
    index: usize,
    machine: Machine,
}

impl Node {
    /// Starts the machine and containerd on it, and imports the images; it is no part of the cluster yet.
    pub(crate) fn start(layout: &Layout, index: usize, netns: Netns, images: &[String]) -> Result<Self> {
        let name = NODES[index];
        let files = layout.directory().join(name);
        write(&on_disk(&files, CNI_CONFIG), &cni_config(index).to_string())?;
        write(&on_disk(&files, CONTAINERD_CONFIG), CONTAINERD)?;
        // CoreDNS, for what runs on the node itself: it cannot use the Service before kube-proxy runs.
        write(&on_disk(&files, "/etc/resolv.conf"), &format!("nameserver {CONTROL_IP}\n"))?;
        let machine = Machine::start(layout, name, netns)?;
        let argv = words(&format!("containerd --config {CONTAINERD_CONFIG}"));
        let containerd = Component::launch(layout, machine.spot(), &format!("{name}-containerd"), argv)?;
        let node = Self { components: vec![containerd], index, machine };
        node.wait_for_containerd()?;
        images.iter().try_for_each(|image| node.import(image))?;
        Ok(node)
    }

    /// Starts kubelet and kube-proxy, and so joins the cluster.
    pub(crate) fn join(&mut self, layout: &Layout, control: &ControlPlane) -> Result<()> {
        let name = NODES[self.index];
        let config = kubelet_config(self.machine.cgroup_root(), &control.ca());
        write(&on_disk(self.machine.files(), KUBELET_CONFIG), &config.to_string())?;
        fs::create_dir_all(on_disk(self.machine.files(), STATIC_PODS))?;
        let kubelet = kubelet(name, self.index, &control.kubeconfig(name))?;
        let proxy = kube_proxy(name, &control.kubeconfig("kube-proxy"))?;
        for (component, argv) in [("kubelet", kubelet), ("kube-proxy", proxy)] {
            let component = format!("{name}-{component}");
            self.components.push(Component::launch(layout, self.machine.spot(), &component, argv)?);
        }
        Ok(())
    }

    /// `metadata.name` of its Node.
    #[must_use]
    pub fn name(&self) -> &str {
        self.machine.name()
    }

    /// Its address, of IPv4.
    #[must_use]
    pub fn ip(&self) -> String {
        let [ip, _] = node_ips(self.index);
        ip
    }

    /// Its address, of IPv6.
    #[must_use]
    pub fn ip6(&self) -> String {
        let [_, ip6] = node_ips(self.index);
        ip6
    }

    /// The addresses of its pods: the CNI's configuration has them, and its Node tells of them as with most installers.
    pub(crate) fn pod_ranges(&self) -> [String; 2] {
        pod_ranges(self.index)
    }

    /// Its cgroup root below the mount of any hierarchy: `kubepods` and `system` are in it.
    #[must_use]
    pub fn cgroup_root(&self) -> &str {
        self.machine.cgroup_root()
    }

    /// Its processes.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// A command that runs on the node, outside of every pod, as if somebody had logged in.
    ///
    /// # Errors
    /// Its cgroup cannot be made.
    pub fn command(&self, argv: &[&str]) -> Result<Command> {
        self.machine.spot().command("login", argv)
    }

    /// Runs a command on the node to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.command(argv)?
            .output()
            .with_context(|| format!("cannot run {} on {}", argv.join(" "), self.name()))
    }

    /// Where the real machine finds what the node sees at a path below `/etc`, `/opt`, `/var/lib` or `/var/log`.
    #[must_use]
    pub fn on_disk(&self, path: &str) -> PathBuf {
        on_disk(self.machine.files(), path)
    }

    /// Imports a container image from an archive.
    ///
    /// # Errors
    /// containerd refused it.
    pub fn import(&self, archive: &str) -> Result<()> {
        let argv = ["ctr", "--namespace=k8s.io", "images", "import", archive];
        stdout(&self.exec(&argv)?)
            .map(drop)
            .with_context(|| format!("{} cannot import {archive}", self.name()))
    }

    fn wait_for_containerd(&self) -> Result<()> {
        let answers = || stdout(&self.exec(&["ctr", "version"])?);
        let containerd = &self.components[0];
        containerd.wait_for_line(&["containerd successfully booted"], READY_WITHIN)?;
        containerd.wait_until("answers", READY_WITHIN, answers).map(drop)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn cni_config(index: usize) -> Value {
    json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {
            "type": "host-local", "ranges": pod_ranges(index).map(|subnet| json!([{"subnet": subnet}])),
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        // BBR, which a machine may have as its default, paces short flows on veth links to a crawl.
        {"type": "tuning", "sysctl": {"net.ipv4.tcp_congestion_control": "reno"}},
    ]})
}

fn kubelet_config(cgroup_root: &str, ca: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{cgroup_root}"), "failCgroupV1": false,
        "enforceNodeAllocatable": [], "failSwapOn": false,
        "clusterDNS": [DNS_SERVICE_IP], "clusterDomain": "cluster.local",
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": ca},
        },
        "authorization": {"mode": "Webhook"},
        "staticPodPath": STATIC_PODS, "volumePluginDir": "/var/lib/kubelet/volumeplugins", "maxPods": MAX_PODS,
        // The disk is the real machine's: how full it is must not decide what runs here.
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
    })
}

fn kubelet(name: &str, index: usize, kubeconfig: &Path) -> Result<Vec<String>> {
    Ok(words(&format!(
        "{} --config {KUBELET_CONFIG} --kubeconfig {} --hostname-override {name} --node-ip {} \
         --node-labels topology.kubernetes.io/zone=zone-{name}",
        binaries::tool("kubelet")?.display(),
        kubeconfig.display(),
        node_ips(index).join(",")
    )))
}

/// The limits of conntrack are the kernel's, and stay as they are.
fn kube_proxy(name: &str, kubeconfig: &Path) -> Result<Vec<String>> {
    Ok(words(&format!(
        "{} --kubeconfig {} --hostname-override {name} --proxy-mode iptables --cluster-cidr {POD_RANGES} \
         --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0",
        binaries::tool("kube-proxy")?.display(),
        kubeconfig.display()
    )))
}

const CNI_CONFIG: &str = "/etc/cni/net.d/10-pods.conflist";
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const KUBELET_CONFIG: &str = "/etc/kubernetes/kubelet.json";
const STATIC_PODS: &str = "/etc/kubernetes/manifests";
/// What a node's range of addresses has room for.
const MAX_PODS: u16 = 250;
/// A root without CAP_SYS_RESOURCE, as in many containers, may not lower a process' `oom_score_adj`: without the
/// restriction no sandbox starts there.
const CONTAINERD: &str = concat!(
    "version = 2\n",
    "[plugins.\"io.containerd.grpc.v1.cri\"]\n",
    "sandbox_image = \"localhost/signet-pause:",
    env!("CARGO_PKG_VERSION"),
    "\"\nrestrict_oom_score_adj = true\n",
    "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n",
);
