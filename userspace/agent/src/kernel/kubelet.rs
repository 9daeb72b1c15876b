//! The kubelet's own cgroup, by which its probes are known, beside the root of its pods.
//!
//! Looked for by its path, not by a process of that name: only root of the node makes a cgroup there, and anybody can
//! call a process `kubelet`. Looked for again at each heartbeat, since systemd makes another cgroup, with another id, for
//! each start of a service.

use std::path::{Path, PathBuf};

use super::{CaptureOptions, cgroup};

/// The ids of the pods' root and of the kubelet's cgroup; 0, which no cgroup has, for one that is not there.
pub(super) fn cgroups(options: &CaptureOptions) -> (u64, u64) {
    let id = |path: Option<PathBuf>| path.map_or(0, |path| cgroup::id(&options.cgroup_root.join(path)));
    (id(options.pods_root.clone()), id(kubelet(options)))
}

/// Where it is, below the cgroup root.
pub(super) fn kubelet(options: &CaptureOptions) -> Option<PathBuf> {
    options.kubelet_cgroup.clone().or_else(|| find(&options.cgroup_root))
}

fn find(cgroup_root: &Path) -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|place| cgroup_root.join(place).is_dir())
}

/// kubeadm and kind; k3s, RKE2 and MicroK8s, where kubelet is part of one process with other parts of a node; machines
/// without systemd.
const PLACES: [&str; 8] = [
    "system.slice/kubelet.service",
    "kubelet.slice/kubelet.service",
    "system.slice/k3s.service",
    "system.slice/k3s-agent.service",
    "system.slice/rke2-server.service",
    "system.slice/rke2-agent.service",
    "system.slice/snap.microk8s.daemon-kubelite.service",
    "system/kubelet",
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::config::{UnknownPods, Unprotected};

    fn options(cgroup_root: &Path) -> CaptureOptions {
        CaptureOptions {
            cgroup_root: cgroup_root.to_owned(),
            pods_root: Some("kubepods".into()),
            kubelet_cgroup: None,
            pin_root: PathBuf::new(),
            mount_bpffs: false,
            unknown_pods: UnknownPods::Pass,
            unprotected: Unprotected::Pass,
            engine_timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn it_is_found_where_installers_put_it_and_not_among_the_pods() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("kubepods/podx/system.slice/kubelet.service")).unwrap();
        assert_eq!(kubelet(&options(root.path())), None);
        assert_eq!(cgroups(&options(root.path())).1, 0);
        fs::create_dir_all(root.path().join("system.slice/kubelet.service")).unwrap();
        assert_eq!(kubelet(&options(root.path())), Some("system.slice/kubelet.service".into()));
        assert_ne!(cgroups(&options(root.path())).1, 0);
    }

    #[test]
    fn what_the_configuration_says_counts() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("system/kubelet")).unwrap();
        let named = CaptureOptions { kubelet_cgroup: Some("mine".into()), ..options(root.path()) };
        assert_eq!((kubelet(&named), cgroups(&named).1), (Some("mine".into()), 0));
    }
}
