//! The door to the kernel: every line of aya is behind it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::addr::{CgroupId, NetnsCookie, OriginalDst};
use crate::config::{UnknownPods, Unprotected};

/// What capture needs to know, from `config`.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The cgroup to attach at; everything of this engine is below it. Absolute path inside the cgroup2 mount.
    pub cgroup_root: PathBuf,
    /// Below it, the root of the pods (`kubepods`), relative; cgroups there that nobody knows are denied while the engine lives.
    pub pods_root: Option<PathBuf>,
    /// `/sys/fs/bpf/signet/<instance>`.
    pub pin_root: PathBuf,
    /// What a pod cgroup nobody knows may do when the engine is gone.
    pub unknown_pods: UnknownPods,
    /// What UDP/SCTP/raw sockets of enrolled workloads may do.
    pub unprotected: Unprotected,
    /// The heartbeat's age after which the kernel takes the engine for gone.
    pub engine_timeout: Duration,
}

/// One workload as the kernel should treat it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedWorkload {
    /// Its cgroup.
    pub cgroup: CgroupId,
    /// Own addresses: a connect to them stays local.
    pub addresses: Vec<IpAddr>,
    /// It shares its netns with others: inbound ownership goes by port (`post_bind`).
    pub host_network: bool,
    /// What to do with its connects.
    pub capture: CaptureState,
}

/// What the kernel does for a known cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureState {
    /// Known, not in the mesh.
    Bypass,
    /// In the mesh, listeners not up yet: deny.
    NotReady,
    /// In the mesh: redirect.
    Redirect,
}

/// What the kernel recorded about a flow's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The enrolled cgroup the client belongs to (the workload's, not the nested one).
    pub cgroup: CgroupId,
    /// Where it wanted to go.
    pub destination: OriginalDst,
}

/// The listeners a netns' `sk_lookup` steers to.
#[derive(Clone, Copy, Debug)]
pub struct SteeredListeners<'a> {
    /// Plaintext capture (15006).
    pub plaintext: BorrowedFd<'a>,
    /// HBONE (15008).
    pub hbone: BorrowedFd<'a>,
}

/// What the kernel tells on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A cgroup was made: path relative to the cgroup2 mount.
    CgroupMade(PathBuf),
    /// A cgroup was removed.
    CgroupGone(PathBuf),
    /// A connect of a not-ready or unknown cgroup was denied: look at it now.
    DeniedNotReady(CgroupId),
    /// Events were lost: walk the tree again.
    Overrun,
}

/// The loaded and attached programs. Dropping it leaves the pins in place.
pub struct Kernel {}

/// A cheap handle to read origins, for the proxies.
#[derive(Clone)]
pub struct Origins {}

/// Errors of the kernel door (H1: sorted variants; each names what failed, on which object, what to do).
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// H1.
    #[error("H1")]
    Todo,
}

impl Kernel {
    /// Loads the programs, adopts or replaces what is pinned. Nothing is attached yet: fill the maps first, then [`Kernel::attach`].
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn load(
        options: &CaptureOptions,
    ) -> Result<(Self, tokio::sync::mpsc::Receiver<KernelEvent>), KernelError> {
        let _ = options;
        todo!("H1")
    }
    /// Attaches (or, where links are pinned, atomically replaces) the programs. Last step of start-up.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn attach(&mut self) -> Result<(), KernelError> {
        todo!("H1")
    }
    /// Adds or replaces one workload entry.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn put_workload(&mut self, workload: &CapturedWorkload) -> Result<(), KernelError> {
        let _ = workload;
        todo!("H1")
    }
    /// Removes a workload entry and all that hangs on it (ports, flows).
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn remove_workload(&mut self, cgroup: CgroupId) -> Result<(), KernelError> {
        let _ = cgroup;
        todo!("H1")
    }
    /// Cgroups that have an entry (after a restart: what the predecessor left).
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn workloads(&self) -> Result<Vec<CgroupId>, KernelError> {
        todo!("H1")
    }
    /// Steers a netns' inbound SYNs to these listeners: fills the sockmap, then links `sk_lookup` (pinned; replaced where it exists).
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn steer(
        &mut self,
        netns: BorrowedFd<'_>,
        cookie: NetnsCookie,
        host: bool,
        to: SteeredListeners<'_>,
    ) -> Result<(), KernelError> {
        let _ = (netns, cookie, host, to);
        todo!("H1")
    }
    /// Ends steering for a netns: link, pin, sockmap entries.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn unsteer(&mut self, cookie: NetnsCookie) -> Result<(), KernelError> {
        let _ = cookie;
        todo!("H1")
    }
    /// Network namespaces with a pinned link (after a restart: what the predecessor left).
    #[must_use]
    pub fn steered(&self) -> Vec<NetnsCookie> {
        todo!("H1")
    }
    /// Stamps the heartbeat; call at a third of `engine_timeout`.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn heartbeat(&self) -> Result<(), KernelError> {
        todo!("H1")
    }
    /// A handle for the proxies.
    #[must_use]
    pub fn origins(&self) -> Origins {
        todo!("H1")
    }
    /// Registers `signet_capture_verdicts_total{verdict,reason}`, `signet_capture_faults_total`, `signet_bpf_map_entries{map}`, …
    /// as a collector that reads the maps at scrape time.
    pub fn register(&self, registry: &mut crate::telemetry::Registry) {
        let _ = registry;
        todo!("H1")
    }
    /// Detaches and unpins everything of this instance: `signetd --uninstall`, and un-installation in tests.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn uninstall(pin_root: &Path) -> Result<(), KernelError> {
        let _ = pin_root;
        todo!("H1")
    }
}

impl Origins {
    /// The record of an outbound flow that reached the capture listener: `client` is the app's end, `listener` the engine's
    /// (127.0.0.1:15001). `None` means nobody was redirected: refuse.
    #[must_use]
    pub fn lookup(&self, netns: NetnsCookie, client: SocketAddr, listener: SocketAddr) -> Option<Origin> {
        let _ = (netns, client, listener);
        todo!("H1")
    }
    /// Which enrolled cgroup owns a listening port in a shared netns (`post_bind`).
    #[must_use]
    pub fn port_owner(&self, netns: NetnsCookie, port: u16) -> Option<CgroupId> {
        let _ = (netns, port);
        todo!("H1")
    }
}

/// A cgroup directory: its id, its processes, its network namespace.
#[derive(Debug)]
pub struct Cgroup {
    // H1
}

impl Cgroup {
    /// Opens by path relative to `mount`. Never follows a link out of it.
    ///
    /// # Errors
    /// Which path, and why.
    pub fn open(mount: &Path, relative: &Path) -> Result<Self, KernelError> {
        let _ = (mount, relative);
        todo!("H1")
    }
    /// Its id.
    #[must_use]
    pub fn id(&self) -> CgroupId {
        todo!("H1")
    }
    /// The network namespace of its processes (first process found, depth first, that is not in `node_netns` unless
    /// `host_network`); `None` while there is no such process.
    ///
    /// # Errors
    /// Which file could not be read.
    pub fn netns(&self, host_network: bool) -> Result<Option<OwnedFd>, KernelError> {
        let _ = host_network;
        todo!("H1")
    }
    /// Resolves when `cgroup.events` changes (inotify): a process came or went.
    pub async fn changed(&self) {
        todo!("H1")
    }
}

/// The cgroup2 mount point from `/proc/self/mounts`; `None` where there is none.
#[must_use]
pub fn cgroup2_mount() -> Option<PathBuf> {
    todo!("H1")
}

/// The cookie of a network namespace (`SO_NETNS_COOKIE` of a socket made in it).
///
/// # Errors
/// The system call that failed.
pub fn netns_cookie(netns: BorrowedFd<'_>) -> std::io::Result<NetnsCookie> {
    let _ = netns;
    todo!("H1")
}

/// What this kernel and machine have of what Signet needs: one line each for `signet check`.
#[must_use]
pub fn preflight(options: &CaptureOptions) -> Vec<Finding> {
    let _ = options;
    todo!("H1")
}

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
