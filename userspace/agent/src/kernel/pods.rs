//! Where kubelet makes a pod's cgroup (kubernetes `pkg/kubelet/cm/pod_container_manager_linux.go`, `cgroup_manager_linux.go`).
//!
//! Derived from the pod's uid instead of read out of paths: what is found can only be the pod's own level, directly below
//! the pods' root or its QoS class. A cgroup that a container makes below its own, named like another pod's, is never
//! looked at, and neither are the runtimes' names for containers below (`<id>`, `cri-containerd-<id>.scope`, `crio-<id>`).

use std::path::{Path, PathBuf};

/// The places, relative to the cgroup2 mount as `root` is, where the cgroup of the pod with this uid can be: one for each
/// QoS class. The root's name tells kubelet's driver: systemd's is a slice, and so are the pods below it.
#[must_use]
pub fn pod_cgroups(root: &Path, uid: &str) -> [PathBuf; 3] {
    let name = root.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name.strip_suffix(SLICE) {
        None => QOS.map(|class| root.join(class).join(format!("pod{uid}"))),
        Some(stem) => QOS.map(|class| slice(root, stem, class, &uid.replace('-', "_"))),
    }
}

/// A slice's name repeats those above it (systemd.slice(5)); `-` in it is a level, so kubelet writes a uid with `_`.
fn slice(root: &Path, stem: &str, class: &str, uid: &str) -> PathBuf {
    match class {
        GUARANTEED => root.join(format!("{stem}-pod{uid}{SLICE}")),
        _ => root.join(format!("{stem}-{class}{SLICE}")).join(format!("{stem}-{class}-pod{uid}{SLICE}")),
    }
}

/// The pods' root below a cgroup root, by the names that kubelet, kind and k3s give it; `None` where there is none of them.
#[must_use]
pub fn find_pods_root(cgroup_root: &Path) -> Option<PathBuf> {
    ROOTS.iter().map(PathBuf::from).find(|root| cgroup_root.join(root).is_dir())
}

/// The cgroup root of the node that a process of a pod is on, from the process's cgroup; `None` for one of no pod.
pub(super) fn node_root(own: &Path) -> Option<PathBuf> {
    let at = own.ancestors().skip(1).find_map(|above| {
        let root = ROOTS.iter().filter(|root| above.ends_with(root)).max_by_key(|root| root.len())?;
        above.ancestors().nth(Path::new(root).components().count())
    });
    at.map(Path::to_owned)
}

/// Guaranteed pods have no class of their own.
const GUARANTEED: &str = "";
const QOS: [&str; 3] = [GUARANTEED, "burstable", "besteffort"];
const SLICE: &str = ".slice";
const ROOTS: [&str; 4] =
    ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A pod's cgroup on a real node: where the pods' root is, the path of the cgroup, the uid.
    const REAL: [(&str, &str, &str); 9] = [
        // kubeadm and containerd, systemd driver, cgroup v2.
        (
            "kubepods.slice",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice",
            "2c48913c-b29f-11e7-9350-020968147796",
        ),
        (
            "kubepods.slice",
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod2c48913c_b29f_11e7_9350_020968147796.slice",
            "2c48913c-b29f-11e7-9350-020968147796",
        ),
        (
            "kubepods.slice",
            "kubepods.slice/kubepods-pod2c48913c_b29f_11e7_9350_020968147796.slice",
            "2c48913c-b29f-11e7-9350-020968147796",
        ),
        // A static pod: the uid is the MD5 sum of its manifest.
        (
            "kubepods.slice",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podbeea2e20f2e9bdc2b8ad4d1d6d3ad6c1.slice",
            "beea2e20f2e9bdc2b8ad4d1d6d3ad6c1",
        ),
        // kind: the node's own root above it.
        (
            "kubelet.slice/kubelet-kubepods.slice",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
             kubelet-kubepods-besteffort-pod2c48913c_b29f_11e7_9350_020968147796.slice",
            "2c48913c-b29f-11e7-9350-020968147796",
        ),
        // cgroupfs driver, and the unified part of a hybrid below a root of its own.
        (
            "kubepods",
            "kubepods/besteffort/pod2c48913c-b29f-11e7-9350-020968147796",
            "2c48913c-b29f-11e7-9350-020968147796",
        ),
        (
            "kubepods",
            "kubepods/burstable/podbeea2e20f2e9bdc2b8ad4d1d6d3ad6c1",
            "beea2e20f2e9bdc2b8ad4d1d6d3ad6c1",
        ),
        (
            "kubepods",
            "kubepods/pod2c48913c-b29f-11e7-9350-020968147796",
            "2c48913c-b29f-11e7-9350-020968147796",
        ),
        (
            "n1/kubepods",
            "n1/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796",
            "2c48913c-b29f-11e7-9350-020968147796",
        ),
    ];

    #[test]
    fn a_pod_is_found_where_real_nodes_have_it() {
        for (root, path, uid) in REAL {
            assert!(pod_cgroups(Path::new(root), uid).contains(&PathBuf::from(path)), "{path}");
        }
    }

    #[test]
    fn a_process_of_a_pod_knows_its_nodes_root() {
        let mount = Path::new("/sys/fs/cgroup");
        for (root, path, _) in REAL {
            let node = if root.starts_with("n1/") { mount.join("n1") } else { mount.to_owned() };
            assert_eq!(node_root(&mount.join(path).join("0123456789abcdef")), Some(node), "{path}");
        }
        assert_eq!(node_root(&mount.join("system.slice/signetd.service")), None);
    }

    #[test]
    fn no_container_and_nothing_that_it_makes_is_taken_for_a_pod() {
        for (root, path, uid) in REAL {
            let name = Path::new(path).file_name().unwrap();
            for below in
                ["0123456789abcdef", "cri-containerd-0123456789abcdef.scope", "crio-0123456789abcdef.scope"]
            {
                let container = Path::new(path).join(below);
                let forged = container.join(name);
                let found = pod_cgroups(Path::new(root), uid);
                assert!(!found.contains(&container) && !found.contains(&forged), "{}", forged.display());
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_the_uid_it_is_looked_for_at_the_pods_level_only(uid in "[A-Za-z0-9_-]{1,40}") {
            for root in ["kubepods", "kubepods.slice"] {
                for place in pod_cgroups(Path::new(root), &uid) {
                    let depth = place.strip_prefix(root).unwrap().components().count();
                    prop_assert!((1..=2).contains(&depth), "{}", place.display());
                }
            }
        }
    }
}
