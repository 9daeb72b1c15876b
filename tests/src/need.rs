//! What a test or the demo needs of the machine, and whether it is there.

use std::path::Path;

use nix::unistd::Uid;

use crate::{binaries, cgroup, cluster};

/// Something a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Root, cgroup2 and network namespaces: nodes and pods.
    Nodes,
    /// The built daemons, and a kernel that can load their programs.
    Engine,
    /// What a Kubernetes cluster is made of, and the images of its pods.
    Cluster,
    /// A cluster, and Istio's control plane.
    Istiod,
    /// A program of the distribution.
    Program(&'static str),
    /// A program that `cargo xtask setup` installs below `target/`.
    Tool(&'static str),
}

impl Need {
    /// Why it is not met; `None` where it is.
    #[must_use]
    pub fn unmet(self) -> Option<String> {
        match self {
            Self::Nodes => no_nodes(),
            Self::Engine => no_nodes().or_else(no_engine),
            Self::Cluster => no_nodes().or_else(no_cluster),
            Self::Istiod => Self::Cluster.unmet().or_else(|| {
                ["pilot-discovery", "istio-definitions.yaml"]
                    .into_iter()
                    .find_map(|tool| Self::Tool(tool).unmet())
            }),
            Self::Program(name) => {
                (!on_path(name)).then(|| format!("{name} is not installed: run `cargo xtask setup`"))
            }
            Self::Tool(name) => binaries::tool(name).err().map(|error| error.to_string()),
        }
    }
}

fn no_nodes() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("needs root, for network namespaces and cgroups".to_owned());
    }
    let missing = ["ip", "nsenter"].into_iter().find(|name| !on_path(name));
    missing
        .map(|name| format!("{name} is not installed: run `cargo xtask setup`"))
        .or_else(|| cgroup::mount().err().map(|error| error.to_string()))
}

fn no_engine() -> Option<String> {
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let built = ["signetd", "signet-ca", "signet", "signet-probe"].map(binaries::path);
    (!btf)
        .then(|| "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)".to_owned())
        .or_else(|| built.into_iter().find_map(Result::err).map(|error| error.to_string()))
}

fn no_cluster() -> Option<String> {
    let debian = CLUSTER_PROGRAMS.into_iter().find(|name| !on_path(name));
    let debian = debian.map(|name| format!("{name} is not installed: run `cargo xtask setup`"));
    let plugins = || {
        (!Path::new(CNI_BRIDGE).exists()).then(|| format!("{CNI_BRIDGE} is missing: run `cargo xtask setup`"))
    };
    let tools = || CLUSTER_TOOLS.into_iter().map(binaries::tool).find_map(Result::err);
    let built = || {
        let images = cluster::IMAGES.into_iter().map(binaries::image);
        [binaries::path("signet-cluster")].into_iter().chain(images).find_map(Result::err)
    };
    debian.or_else(plugins).or_else(|| tools().or_else(built).map(|error| error.to_string()))
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

const CLUSTER_PROGRAMS: [&str; 4] = ["etcd", "containerd", "runc", "iptables"];
const CLUSTER_TOOLS: [&str; 8] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "coredns",
    "helm",
];
const CNI_BRIDGE: &str = "/usr/lib/cni/bridge";
