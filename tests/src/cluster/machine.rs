//! A node's machine: a network namespace and a mount namespace of its own on this kernel, held by one process.
//!
//! Inside, the paths are those of any node (`/var/lib/kubelet`, `/run/containerd`, `/etc/cni/net.d`, `/sys/fs/bpf`), so
//! that what is installed on it needs no setting for the tests. `/etc`, `/opt` and what below `/var` a node writes are
//! overlays on the real ones, `/run` and `/sys/fs/bpf` are empty: nothing that a kubelet, a chart or a pod writes there
//! reaches the real machine, and all of it ends with the node's last process. Mounts do not propagate to the real machine
//! either; within the node they do, which pods with mount propagation rely on.
//!
//! Not separate: the process ids and the cgroups, since eBPF programs see the kernel's own. So each node has a cgroup
//! root of its own below which its `kubepods` appears.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::component::{Component, Spot};
use super::layout::{self, Layout};
use crate::binaries;
use crate::netns::Netns;

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    files: PathBuf,
    cgroup_root: String,
    spot: Spot,
    // Before the namespace, which it is in.
    _holder: Component,
    _netns: Netns,
}

impl Machine {
    /// Starts a machine in its network namespace. `files` holds what its overlays begin with, see [`on_disk`].
    pub(crate) fn start(layout: &Layout, name: &str, netns: Netns) -> Result<Self> {
        let files = layout.directory().join(name);
        let cgroup_root = make_cgroups(layout, name)?;
        let system = layout.cgroup().join(name).join("system");
        let outside =
            Spot { enter: vec![format!("--net={}", netns.path().display())], cgroup: system.clone() };
        let program = binaries::path("signet-cluster")?.display().to_string();
        let argv = vec![program, "machine".to_owned(), files.display().to_string()];
        let holder = Component::launch(layout, &outside, &format!("{name}-machine"), argv)?;
        holder.wait_for_line(&[READY], READY_WITHIN)?;
        let spot = spot(&system, &holder.pid()?.to_string());
        Ok(Self { name: name.to_owned(), files, cgroup_root, spot, _holder: holder, _netns: netns })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its files, as the real machine sees them.
    pub(crate) fn files(&self) -> &Path {
        &self.files
    }

    /// Its cgroup root, as a path below the mount of any hierarchy.
    pub(crate) fn cgroup_root(&self) -> &str {
        &self.cgroup_root
    }

    /// Where its processes start.
    pub(crate) fn spot(&self) -> &Spot {
        &self.spot
    }
}

/// Inside the machine that a process holds; `system` is the cgroup of its processes.
pub(crate) fn spot(system: &Path, holder: &str) -> Spot {
    let enter = vec!["--net".to_owned(), "--mount".to_owned(), format!("--target={holder}")];
    Spot { enter, cgroup: system.to_owned() }
}

/// Where the real machine finds what a node will see at `path`, one of [`OVERLAID`] or below it.
pub(crate) fn on_disk(files: &Path, path: &str) -> PathBuf {
    files.join("root").join(path.trim_start_matches('/'))
}

/// Turns this process into the machine that holds a node's mount namespace: the command `signet-cluster machine`.
///
/// # Errors
/// A mount failed.
pub fn hold(files: &Path) -> Result<Infallible> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot have a mount namespace of its own")?;
    // First away from the real machine, then shared among the node's own.
    remount(MsFlags::MS_PRIVATE)?;
    leave_hidden_mounts()?;
    remount(MsFlags::MS_SHARED)?;
    OVERLAID.iter().try_for_each(|path| overlay(files, path))?;
    mount_new("tmpfs", "/run")?;
    mount_new("bpf", "/sys/fs/bpf")?;
    BOUND.iter().try_for_each(|path| bind_folder(files, path))?;
    KERNEL_SETTINGS.iter().try_for_each(|(setting, value)| pretend(files, setting, value))?;
    println!("{READY}");
    loop {
        nix::unistd::pause();
    }
}

fn remount(propagation: MsFlags) -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, propagation | MsFlags::MS_REC, None::<&str>)
        .context("cannot change the propagation of mounts")
}

/// Copies of the real machine's mounts below what is about to be hidden would keep alive what it unmounts: the network
/// namespaces of other tests, for one.
fn leave_hidden_mounts() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let hidden =
        |point: &&str| OVERLAID.iter().chain(&["/run"]).any(|path| point.starts_with(&format!("{path}/")));
    // The last mounted first, and escaped names as they are: those have no namespace behind them.
    for point in points.filter(hidden).collect::<Vec<_>>().into_iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}

fn mount_new(kind: &str, path: &str) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {kind} on {path}"))
}

fn overlay(files: &Path, path: &str) -> Result<()> {
    let (upper, work) = (on_disk(files, path), files.join("work").join(path.replace('/', "-")));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir={path},upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), path, Some("overlay"), MsFlags::empty(), Some(options.as_str())).with_context(
        || format!("cannot lay {} over {path}: does the kernel have overlayfs?", upper.display()),
    )
}

/// containerd's own overlays cannot lie on an overlay, and what is large stays off them.
fn bind_folder(files: &Path, path: &str) -> Result<()> {
    let source = files.join("bound").join(path.replace('/', "-"));
    fs::create_dir_all(&source)?;
    fs::create_dir_all(path)?;
    bind(&source, Path::new(path))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

fn pretend(files: &Path, setting: &str, value: &str) -> Result<()> {
    let file = files.join("work").join(setting.replace('/', "-"));
    fs::write(&file, format!("{value}\n"))?;
    bind(&file, &Path::new("/proc/sys").join(setting))
}

/// The node's cgroup in every hierarchy. cpuset of version 1 wants its values before anything can enter.
fn make_cgroups(layout: &Layout, name: &str) -> Result<String> {
    let root = format!("{}/{name}", layout.name());
    for hierarchy in layout::hierarchies()? {
        let path = hierarchy.join(&root);
        fs::create_dir_all(&path).with_context(|| format!("cannot make cgroup {}", path.display()))?;
        for setting in ["cpuset.cpus", "cpuset.mems"] {
            inherit(&hierarchy, &[&hierarchy.join(layout.name()), &path], setting)?;
        }
    }
    Ok(root)
}

/// In version 2 the root has no such file, and an empty one inherits.
fn inherit(hierarchy: &Path, below: &[&Path], setting: &str) -> Result<()> {
    let Ok(value) = fs::read(hierarchy.join(setting)) else { return Ok(()) };
    below.iter().try_for_each(|path| {
        fs::write(path.join(setting), &value)
            .with_context(|| format!("cannot set {setting} of {}", path.display()))
    })
}

/// Not `/var` as a whole: the build folder may lie below it.
const OVERLAID: [&str; 4] = ["/etc", "/opt", "/var/lib", "/var/log"];
const BOUND: [&str; 2] = ["/var/lib/containerd", "/var/lib/kubelet"];
/// What a kubelet sets where it is not so. They are the kernel's, not a namespace's, and the real machine's stay.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
const READY: &str = "the machine is there";
const READY_WITHIN: Duration = Duration::from_secs(10);
