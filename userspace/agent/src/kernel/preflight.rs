//! What this kernel and machine have of what Signet needs, one line each, for `signet check`.
//!
//! Nothing is attached and no pin is made: the programs are loaded onto maps of their own and dropped again.

use std::path::Path;
use std::sync::Arc;

use super::cgroup::cgroup2_mount;
use super::conflicts::conflicts;
use super::diag;
use super::error::KernelError;
use super::object::{self, is_on_bpffs};
use super::programs::{self, CGROUP_PROGRAMS, HOLD, STEER_NODE, STEER_POD};
use super::{CaptureOptions, kubelet};

/// One line of `signet check`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: Arc<str>,
    /// It is as needed.
    pub ok: bool,
    /// What was seen, and where it is not ok, what to do.
    pub detail: String,
}

/// What this kernel and machine have of what Signet needs: one line each for `signet check`.
#[must_use]
pub fn preflight(options: &CaptureOptions) -> Vec<Finding> {
    let mut findings = machine(&options.pin_root, options.mount_bpffs);
    findings.extend([cgroup_root(&options.cgroup_root), kubelet(options)]);
    findings
}

/// The same of what does not depend on where pods are: for a machine on which that cannot be said.
#[must_use]
pub fn machine(pin_root: &Path, mount_bpffs: bool) -> Vec<Finding> {
    let mut findings = indispensable(pin_root, mount_bpffs);
    findings.extend([pins(&pin_root.join("links")), destroy(), conflicts()]);
    findings
}

/// What of it is not there, and without which no engine starts.
#[must_use]
pub fn lacking(options: &CaptureOptions) -> Vec<Finding> {
    let mut findings = indispensable(&options.pin_root, options.mount_bpffs);
    findings.push(cgroup_root(&options.cgroup_root));
    findings.retain(|finding| !finding.ok);
    findings
}

fn indispensable(pin_root: &Path, mount_bpffs: bool) -> Vec<Finding> {
    let mut findings =
        vec![kernel_version(), type_information(), cgroup2(), bpffs(pin_root, mount_bpffs), capabilities()];
    findings.extend(program_types());
    findings
}

impl Finding {
    /// What was seen, or what is wrong.
    #[must_use]
    pub fn of(name: &str, seen: Result<String, String>) -> Self {
        let ok = seen.is_ok();
        Self { name: name.into(), ok, detail: seen.unwrap_or_else(|problem| problem) }
    }
}

fn kernel_version() -> Finding {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let is_enough = parse_version(&release).is_some_and(|version| version >= OLDEST_KERNEL);
    let (major, minor) = OLDEST_KERNEL;
    Finding::of(
        "kernel",
        if is_enough {
            Ok(release)
        } else {
            Err(format!("{release}: Signet needs Linux {major}.{minor} or newer"))
        },
    )
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn type_information() -> Finding {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    Finding::of(
        "btf",
        if path.exists() {
            Ok(path.display().to_string())
        } else {
            Err(format!("no {}: use a kernel built with CONFIG_DEBUG_INFO_BTF", path.display()))
        },
    )
}

fn cgroup2() -> Finding {
    Finding::of(
        "cgroup2",
        cgroup2_mount().map(|at| at.display().to_string()).ok_or_else(|| KernelError::NoCgroup2.to_string()),
    )
}

fn cgroup_root(root: &Path) -> Finding {
    let is_inside = cgroup2_mount().is_some_and(|mount| root.starts_with(mount));
    Finding::of(
        "cgroup root",
        match (is_inside, root.is_dir()) {
            (true, true) => Ok(root.display().to_string()),
            (true, false) => Err(format!("{} does not exist: make it", root.display())),
            (false, _) => {
                Err(format!("{} is not below the cgroup2 mount: correct capture.cgroupRoot", root.display()))
            }
        },
    )
}

/// Only a node of a cluster has one.
fn kubelet(options: &CaptureOptions) -> Finding {
    let path = kubelet::kubelet(options).map(|path| options.cgroup_root.join(path));
    Finding::of(
        "kubelet",
        match (path, &options.pods_root) {
            (Some(path), _) if path.is_dir() => Ok(format!("probes are known by {}", path.display())),
            (Some(path), _) => Err(format!("{} is not there: correct capture.kubeletCgroup", path.display())),
            (None, None) => Ok("no node of a cluster".into()),
            (None, Some(_)) => Err("its cgroup is not known, so STRICT pods fail their probes: name it in \
                                    capture.kubeletCgroup"
                .into()),
        },
    )
}

fn bpffs(pin_root: &Path, mounts: bool) -> Finding {
    let at = pin_root.display();
    Finding::of(
        "bpffs",
        match (is_on_bpffs(pin_root), mounts) {
            (true, _) => Ok(format!("{at} is on bpffs")),
            (false, true) => Ok(format!("{at} is not on bpffs: signetd mounts it when it starts")),
            (false, false) => {
                Err(format!("{at} is not on bpffs: mount it on the node (`mount -t bpf bpf /sys/fs/bpf`)"))
            }
        },
    )
}

/// While an engine runs it holds its programs itself: that a pin is gone shows when the engine is.
fn pins(links: &Path) -> Finding {
    let pins = CGROUP_PROGRAMS.iter().map(|(_, pin, _)| *pin);
    let (there, gone): (Vec<_>, Vec<_>) = pins.partition(|pin| links.join(pin).exists());
    let at = links.display();
    Finding::of(
        "pins",
        match (there.is_empty(), gone.is_empty()) {
            (true, _) => Ok(format!("none yet below {at}")),
            (_, true) => Ok(format!("all are below {at}")),
            _ => Err(format!(
                "somebody has removed {} from {at}: what they hold ends with the engine, and workloads would go out in clear \
                 meanwhile. Restart signetd, which pins them anew",
                gone.join(", ")
            )),
        },
    )
}

fn capabilities() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = parse_capabilities(&status);
    let missing: Vec<_> =
        CAPABILITIES.iter().filter(|(bit, _)| effective >> bit & 1 == 0).map(|(_, name)| *name).collect();
    Finding::of(
        "capabilities",
        if missing.is_empty() {
            Ok("all that are needed".into())
        } else {
            Err(format!("{} missing: run as root, or grant them", missing.join(", ")))
        },
    )
}

/// Not a failure: everything works without.
fn destroy() -> Finding {
    Finding::of(
        "direct",
        Ok(match diag::can_destroy() {
            Ok(()) => "connections between workloads of this node can be authorised in the kernel".into(),
            Err(error) => format!(
                "this kernel ends no sockets ({error}): connections between workloads of this node go through the engine; \
                 CONFIG_INET_DIAG_DESTROY makes them direct"
            ),
        }),
    )
}

/// The bits of `CapEff` in `/proc/<pid>/status`; none where it is not there.
fn parse_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Puts every program into the kernel once.
fn program_types() -> Vec<Finding> {
    let mut ebpf = match object::load_unpinned() {
        Ok(ebpf) => ebpf,
        Err(error) => return vec![Finding::of("eBPF object", Err(error.to_string()))],
    };
    let names = CGROUP_PROGRAMS.iter().map(|(name, ..)| *name).chain([STEER_POD, STEER_NODE, HOLD]);
    let mut findings: Vec<_> = names
        .map(|name| {
            let loaded = programs::load(&mut ebpf, name);
            Finding::of(name, loaded.map(|_| "loads".into()).map_err(reason))
        })
        .collect();
    let traced = programs::trace_cgroups(&mut ebpf);
    findings.push(Finding::of("cgroup tracepoints", traced.map(|()| "load".into()).map_err(reason)));
    findings
}

/// The line names the program already, and is itself what others are told to look at.
fn reason(error: KernelError) -> String {
    match error {
        KernelError::Program { reason, .. } => reason,
        other => other.to_string(),
    }
}

/// Debian 12, Amazon Linux 2023, Bottlerocket.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Bits of include/uapi/linux/capability.h. DAC_READ_SEARCH opens cgroups by id, SYS_PTRACE reaches the namespaces of
/// other users' processes, NET_BIND_SERVICE takes a client's port where that is a low one.
/// SYS_ADMIN enters namespaces, and includes BPF and PERFMON.
const CAPABILITIES: [(u32, &str); 5] = [
    (2, "CAP_DAC_READ_SEARCH"),
    (10, "CAP_NET_BIND_SERVICE"),
    (12, "CAP_NET_ADMIN"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_all_there_or_none_or_named() {
        let links = tempfile::tempdir().unwrap();
        assert!(pins(links.path()).ok, "no engine has attached yet");
        for (_, pin, _) in CGROUP_PROGRAMS {
            std::fs::write(links.path().join(pin), "").unwrap();
        }
        assert!(pins(links.path()).ok);
        std::fs::remove_file(links.path().join("connect4")).unwrap();
        let Finding { ok, detail, .. } = pins(links.path());
        assert!(!ok && detail.contains("removed connect4 from"), "{detail}");
    }

    #[test]
    fn distributions_kernel_releases_are_read() {
        assert_eq!(parse_version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(parse_version("5.15.0"), Some((5, 15)));
        assert_eq!(parse_version("6.18.44-fc-v769"), Some((6, 18)));
        assert_eq!(parse_version("linux"), None);
    }

    #[test]
    fn capabilities_are_those_in_effect() {
        assert_eq!(parse_capabilities("CapPrm:\tff\nCapEff:\t0000000000001004\n"), 0x1004);
        assert_eq!(parse_capabilities("Name:\tx\n"), 0);
    }
}
