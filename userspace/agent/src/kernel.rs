//! The door to the kernel: every line of aya is behind it.
//!
//! [`Kernel`] owns the programs, the maps and the links of one engine instance; `reconcile` holds it and is the maps' only
//! writer. The proxies read through [`Origins`], which shares nothing with it but the pins. Everything that captures is
//! pinned and outlives the process: a restart adopts the maps and replaces the programs behind their links, so there is
//! no moment without capture. What the programs decide is in `signet_common::decision`; this module decides nothing.
//!
//! | file | what |
//! |---|---|
//! | `object` | the embedded object, pins, bpffs |
//! | `claim` | one engine for each instance |
//! | `programs`, `link` | which programs there are; attach, pin and replace them |
//! | `maps`, `origins` | the maps in this crate's types: the writer's side, the proxies' side |
//! | `steering` | `sk_lookup` per network namespace |
//! | `hold` | `tcx/ingress` on its devices |
//! | `direct` | permits, Services, and the flows that go past the engine |
//! | `earlier` | connections that were open before there was capture |
//! | `events` | what the kernel tells on its own |
//! | `log` | the programs' own log lines |
//! | `cgroup`, `pods`, `kubelet` | cgroup directories, and which one is a pod's, or the kubelet's |
//! | `netns`, `diag`, `listening`, `clock` | namespace cookies, the kernel's list of sockets, who listens where, its clock |
//! | `metrics`, `preflight` | what a scrape and `signet check` show |
//! | `removal` | all of it taken out again |

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, MapData};
use signet_common::abi::Config;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info};

use crate::addr::{CgroupId, NetnsCookie};
use crate::config::{UnknownPods, Unprotected};

mod cgroup;
mod claim;
mod clock;
mod conflicts;
mod diag;
mod direct;
mod earlier;
mod error;
mod events;
mod hold;
mod kubelet;
mod link;
mod listening;
mod log;
mod maps;
mod metrics;
mod netns;
mod object;
mod origins;
mod pods;
mod preflight;
mod programs;
mod removal;
mod steering;
mod verifier;

pub use cgroup::{Cgroup, cgroup2_mount, own_node_root};
pub use claim::Claim;
pub use direct::{
    Direct, DirectBytes, DirectEnd, DirectFlow, DirectFlows, DirectRoute, DirectServer, DirectService,
};
pub use earlier::{EarlierSocket, EarlierSockets, Owner, Role};
pub use error::KernelError;
pub use events::KernelEvent;
pub use netns::netns_cookie;
pub use object::is_on_bpffs;
pub use origins::{Origin, Origins};
pub use pods::{find_pods_root, pod_cgroups};
pub use preflight::{Finding, lacking, machine, preflight};
pub use removal::{steered_namespaces, uninstall};
pub use steering::Steering;

use link::{AttachType, Target};
use maps::Maps;
use object::{Loader, Pins};
use programs::{CGROUP_PROGRAMS, HOLD, SOCK_OPS};

/// What capture needs to know, from `config`.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The cgroup to attach at; everything of this engine is below it. Absolute path inside the cgroup2 mount.
    pub cgroup_root: PathBuf,
    /// Below it, the root of the pods (`kubepods`), relative; cgroups there that nobody knows are denied while the engine lives.
    pub pods_root: Option<PathBuf>,
    /// Below it, the kubelet's cgroup, relative; looked for where it is not said.
    pub kubelet_cgroup: Option<PathBuf>,
    /// `/sys/fs/bpf/signet/<instance>`.
    pub pin_root: PathBuf,
    /// Mount bpffs where the pins are to be, if there is none.
    pub mount_bpffs: bool,
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
    /// In the mesh, listeners not up yet: its connects wait.
    NotReady,
    /// In the mesh: redirect.
    Redirect,
}

/// The listeners a netns' `sk_lookup` steers to.
#[derive(Clone, Copy, Debug)]
pub struct SteeredListeners<'a> {
    /// Plaintext capture (15006).
    pub plaintext: BorrowedFd<'a>,
    /// HBONE (15008).
    pub hbone: BorrowedFd<'a>,
}

/// The loaded and attached programs. Dropping it leaves the pins in place.
pub struct Kernel {
    options: CaptureOptions,
    mount: PathBuf,
    pins: Pins,
    loader: Loader,
    /// Holds the programs until they are behind links, and the tracepoints for good.
    ebpf: Ebpf,
    maps: Maps,
    config: Config,
    origins: Origins,
    heartbeat: Array<MapData, u64>,
    direct: Direct,
    /// The ends of direct flows, until somebody takes them.
    ends: Option<mpsc::Receiver<Vec<DirectEnd>>>,
    /// On this process's own cgroup, where that is not below the cgroup root: ends with the process.
    own_link: Option<OwnedFd>,
    /// SYNs from outside cannot be held here, and the log has it.
    is_unheld: bool,
    tasks: [JoinHandle<()>; 3],
}

impl Kernel {
    /// Forgets connections to engines of before, whose ends may have been missed. Not beside one that still has some.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn forget_flows(&mut self) -> Result<(), KernelError> {
        self.maps.clear_flows()
    }

    /// Loads the programs, adopts or replaces what is pinned. Nothing is attached yet: fill the maps first, then [`Kernel::attach`].
    ///
    /// # Errors
    /// What failed and what to do.
    ///
    /// # Panics
    /// Outside of a Tokio runtime: the events are read by a task.
    pub fn load(options: &CaptureOptions) -> Result<(Self, mpsc::Receiver<KernelEvent>), KernelError> {
        let mount = cgroup2_mount().ok_or(KernelError::NoCgroup2)?;
        let root = below(&mount, &options.cgroup_root)?;
        let pins = Pins::new(&options.pin_root);
        pins.prepare()?;
        let mut loader = Loader::new(&pins)?;
        let mut ebpf = loader.load()?;
        let maps = Maps::open(&pins)?;
        let origins = Origins::open(&pins)?;
        let heartbeat = pins.open("HEARTBEAT")?;
        let config = config(options, &mount)?;
        let direct = Direct::open(&pins)?;
        let (told, receiver) = mpsc::channel(WAITING);
        let reader = events::Reader::open(&pins, root, told.clone())?;
        let (direct_reader, ends) = direct::events::Reader::open(&pins, told)?;
        // Before the maps are filled: a pod that starts meanwhile waits in the ring.
        programs::trace_cgroups(&mut ebpf)?;
        let tasks = [tokio::spawn(reader.run()), tokio::spawn(direct_reader.run()), log::forward(&mut ebpf)];
        let options = options.clone();
        let mut kernel = Self {
            options,
            mount,
            pins,
            loader,
            ebpf,
            maps,
            config,
            origins,
            heartbeat,
            direct,
            ends: Some(ends),
            own_link: None,
            is_unheld: false,
            tasks,
        };
        kernel.write_config()?;
        Ok((kernel, receiver))
    }

    /// Attaches (or, where links are pinned, atomically replaces) the programs. Last step of start-up.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn attach(&mut self) -> Result<(), KernelError> {
        let root = File::open(&self.options.cgroup_root)
            .map_err(KernelError::file("open the cgroup root", &self.options.cgroup_root))?;
        for (program, link, attach) in CGROUP_PROGRAMS {
            let program = programs::load(&mut self.ebpf, program)?;
            link::put(&self.pins.links().join(link), program.as_fd(), Target::Open(root.as_fd()), attach)?;
        }
        // Behind links once there are pods; what an engine holds shall not depend on whether there were any.
        programs::load(&mut self.ebpf, HOLD)?;
        self.watch_own_sockets()?;
        self.pins.remove_other_versions()?;
        info!(cgroup_root = %self.options.cgroup_root.display(), "capture attached");
        Ok(())
    }

    /// Adds or replaces one workload entry. A hostNetwork workload's listening sockets are looked for, since it may have
    /// opened them before it was known.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn put_workload(&mut self, workload: &CapturedWorkload) -> Result<(), KernelError> {
        self.maps.put_workload(workload)?;
        if !workload.host_network || workload.capture == CaptureState::Bypass {
            return self.maps.remove_ports(workload.cgroup);
        }
        let netns = NetnsCookie(self.config.node_netns);
        let found = listening::ports_of(&self.mount, workload.cgroup)
            .map_err(|source| KernelError::SocketList { netns, source })?;
        self.maps.put_found_ports(netns, workload.cgroup, &found)
    }

    /// Removes a workload entry and all that hangs on it (ports, flows).
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn remove_workload(&mut self, cgroup: CgroupId) -> Result<(), KernelError> {
        self.maps.remove_workload(cgroup)
    }

    /// Cgroups that have an entry (after a restart: what the predecessor left).
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn workloads(&self) -> Result<Vec<CgroupId>, KernelError> {
        self.maps.workloads()
    }

    /// Loads what steers a netns: before its listeners are opened.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn steering(&mut self, cookie: NetnsCookie, host: bool) -> Result<Steering, KernelError> {
        steering::prepare(&self.pins, &mut self.loader, cookie, host)
    }

    /// Steers a netns' inbound SYNs to these listeners: fills the sockmap, then links `sk_lookup` (pinned; replaced where it
    /// exists), and has SYNs wait from then on whenever there is no listener.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn steer(
        &mut self,
        netns: BorrowedFd<'_>,
        cookie: NetnsCookie,
        mut steering: Steering,
        to: SteeredListeners<'_>,
    ) -> Result<(), KernelError> {
        let keep = self.direct.namespaces().put(cookie, netns);
        keep.map_err(|source| KernelError::Namespace { netns: cookie, source })?;
        steering::steer(&self.pins, netns, &mut steering, to)?;
        // The node's own devices carry everybody's packets, and most of its ports are nobody's of the mesh.
        if !steering.host
            && let Err(error) = self.hold(netns, cookie)
        {
            self.tell_unheld(cookie, &error);
        }
        Ok(())
    }

    fn hold(&mut self, netns: BorrowedFd<'_>, cookie: NetnsCookie) -> Result<(), KernelError> {
        let program = programs::load(&mut self.ebpf, HOLD)?;
        hold::put(&self.pins, program.as_fd(), netns, cookie)
    }

    /// Once: it is nearly always the kernel's age, and so the same for every namespace.
    fn tell_unheld(&mut self, netns: NetnsCookie, error: &KernelError) {
        if !std::mem::replace(&mut self.is_unheld, true) {
            info!(%netns, %error, "clients without an engine of their own will be refused while this one is replaced");
        }
    }

    /// Ends steering for a netns: links, pins, sockmap entries.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn unsteer(&mut self, cookie: NetnsCookie) -> Result<(), KernelError> {
        self.direct.namespaces().remove(cookie);
        // First: held without listeners, the namespace would hear nobody.
        hold::remove(&self.pins, cookie)?;
        steering::unsteer(&self.pins, cookie)
    }

    /// Network namespaces with a pinned link (after a restart: what the predecessor left).
    #[must_use]
    pub fn steered(&self) -> Vec<NetnsCookie> {
        steering::steered(&self.pins)
    }

    /// Stamps the heartbeat; call at a third of `engine_timeout`. Also looks for the kubelet's cgroup and the pods' root
    /// again (kubelet may start after the engine, and gets another cgroup when it is restarted).
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn heartbeat(&mut self) -> Result<(), KernelError> {
        if kubelet::cgroups(&self.options) != (self.config.pods_root, self.config.kubelet) {
            self.write_config()?;
        }
        let stamped = self.heartbeat.set(0, clock::nanoseconds(), 0);
        stamped.map_err(KernelError::map("stamp", "HEARTBEAT"))
    }

    /// What concerns direct flows.
    pub fn direct(&mut self) -> &mut Direct {
        &mut self.direct
    }

    /// A handle to connections that were open before there was capture.
    ///
    /// # Errors
    /// A map cannot be opened.
    pub fn earlier(&self) -> Result<EarlierSockets, KernelError> {
        EarlierSockets::open(&self.pins, self.mount.clone(), self.direct.flows())
    }

    /// The ends of direct flows, in batches; for whoever asks first.
    pub fn take_ends(&mut self) -> Option<mpsc::Receiver<Vec<DirectEnd>>> {
        self.ends.take()
    }

    /// A handle for the proxies.
    #[must_use]
    pub fn origins(&self) -> Origins {
        self.origins.clone()
    }

    /// Registers `signet_capture_verdicts_total{verdict,reason}`, `signet_capture_faults_total`, `signet_bpf_map_entries{map}`, …
    /// as a collector that reads the maps at scrape time.
    pub fn register(&self, registry: &mut crate::telemetry::Registry) {
        match metrics::Capture::open(&self.pins) {
            Ok(capture) => registry.register_collector(Box::new(capture)),
            Err(error) => tracing::warn!(%error, "no capture metrics"),
        }
    }

    /// The engine's end of a connection ends its record, so `sock_ops` has to see this process's sockets too.
    fn watch_own_sockets(&mut self) -> Result<(), KernelError> {
        let Some(own) = cgroup::own(&self.mount) else { return Ok(()) };
        if own.starts_with(&self.options.cgroup_root) {
            return Ok(());
        }
        let directory = File::open(&own).map_err(KernelError::file("open the cgroup", &own))?;
        let program = programs::load(&mut self.ebpf, SOCK_OPS)?;
        let link = link::create(program.as_fd(), Target::Open(directory.as_fd()), AttachType::SockOps);
        let error = |source| KernelError::Link { action: "attach", path: own, source };
        self.own_link = Some(link.map_err(error)?);
        Ok(())
    }

    fn write_config(&mut self) -> Result<(), KernelError> {
        (self.config.pods_root, self.config.kubelet) = kubelet::cgroups(&self.options);
        debug!(config = ?self.config, "capture configured");
        self.maps.config.set(0, self.config, 0).map_err(KernelError::map("write", "CONFIG"))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn config(options: &CaptureOptions, mount: &Path) -> Result<Config, KernelError> {
    Ok(Config {
        pods_root: 0,
        kubelet: 0,
        engine_cgroup: cgroup::own(mount).map_or(0, |own| cgroup::id(&own)),
        engine_timeout: u64::try_from(options.engine_timeout.as_nanos()).unwrap_or(u64::MAX),
        node_netns: netns::own_cookie()?.0,
        deny_unknown: u32::from(options.unknown_pods == UnknownPods::Deny),
        deny_unprotected: u32::from(options.unprotected == Unprotected::Deny),
    })
}

/// The cgroup root relative to the mount, as the kernel's paths begin.
fn below(mount: &Path, root: &Path) -> Result<PathBuf, KernelError> {
    let relative = root.strip_prefix(mount).map(Path::to_owned);
    relative.map_err(|_| KernelError::OutsideCgroup2 { root: root.to_owned(), mount: mount.to_owned() })
}

/// Events that wait for `reconcile` outside of the rings.
const WAITING: usize = 1024;
