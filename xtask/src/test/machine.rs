//! What this machine lacks for nodes made of network namespaces with eBPF programs on their cgroups.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{step, workspace};

/// The first thing that is missing, with what to do about it.
pub(crate) fn lacks_for_nodes() -> Option<&'static str> {
    if !workspace::is_root() {
        return Some("needs root: run it with sudo");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)");
    }
    if !has_cgroup2() {
        return Some("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified");
    }
    if step::output(Command::new("unshare").args(["--net", "true"])).is_none() {
        return Some("network namespaces cannot be made here (a container without CAP_SYS_ADMIN?)");
    }
    None
}

fn has_cgroup2() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"))
}
