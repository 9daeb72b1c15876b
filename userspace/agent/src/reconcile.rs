//! Events to `state` and kernel maps: the only writer of both.
//!
//! One task owns the kernel door and everything that lives as long as a workload does: its map entry, its SVID, the
//! listeners in its network namespace. Three kinds of event reach it (a source said something, the kernel said
//! something, a cgroup's population changed), each ends in [`Reconciler::advance`] for the workloads it concerns, and
//! `advance` is a ladder of steps that can be climbed again from any rung: an error leaves the workload on the rung
//! before, where its connects wait, and is retried with backoff.
//!
//! It does not carry traffic: what it opens it hands to a [`Sandboxes`], which `app` implements with the proxies.

mod direct;
mod door;
mod ladder;
mod leaving;
mod local;
mod status;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::addr::{CgroupId, NetnsCookie, WorkloadUid};
use crate::drain::Watch;
use crate::footprint::Footprint;
use crate::kernel::{self, DirectFlow, Kernel, KernelEvent};
use crate::net::{Listeners, Netns};
use crate::policy::Denial;
use crate::state::{Event, State, Workload};
use crate::svid::{self, Credentials, Tracked};

pub use self::direct::Served;
pub use self::door::{DirectDoor, Door};
pub use self::local::ReconcileError;
pub use self::status::{LocalStatus, Phase, Statuses};

use self::direct::Direct;
use self::leaving::Leaving;
use self::local::Local;

/// Where opened sandboxes go: the proxies, seen from here. Called by the reconciler's task alone.
pub trait Sandboxes: Send + 'static {
    /// A network namespace has its listeners: accept on them.
    fn open(&mut self, sandbox: Opened);
    /// A workload lives in an open sandbox, or has changed there.
    fn put(
        &mut self,
        cookie: NetnsCookie,
        cgroup: CgroupId,
        workload: Arc<Workload>,
        credentials: Credentials,
    );
    /// From here on nothing of a workload goes past the kernel programs. Told again at each step of it.
    fn captured(&mut self, cookie: NetnsCookie, cgroup: CgroupId, workload: Arc<Workload>);
    /// A workload has left a sandbox: end its connections.
    fn remove(&mut self, cookie: NetnsCookie, cgroup: CgroupId);
    /// A sandbox has no workload any more: stop accepting, close the listeners.
    fn close(&mut self, cookie: NetnsCookie);
    /// Policy answers may differ from now on.
    fn policy_changed(&mut self, epoch: u64);
    /// More may be known now of where addresses lead.
    fn told(&mut self);
    /// A workload anywhere in the mesh is gone or has another identity: nothing may reuse its tunnels.
    fn forget(&mut self, workload: &WorkloadUid);
    /// A direct flow is being ended: policy denies it now, or one of its workloads has left.
    fn revoked(&mut self, flow: &DirectFlow, denial: Option<Denial>);
}

/// A network namespace with the engine's listeners in it.
#[derive(Debug)]
pub struct Opened {
    /// Where.
    pub netns: Netns,
    /// The same, as the kernel calls it.
    pub cookie: NetnsCookie,
    /// It is the node's own.
    pub host: bool,
    /// The engine's listeners there.
    pub listeners: Listeners,
}

/// What is left when the drain has begun: the sandboxes, and the SVIDs that connections need which are not through their
/// handshakes yet. Dropped when they have ended.
pub struct Finishing<S> {
    /// Where connections are.
    pub sandboxes: S,
    _svids: (svid::Store, Vec<Tracked>),
}

/// What the reconciler needs to know of this node.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// `spec.nodeName` of the workloads that are ours.
    pub node: String,
    /// Its zone: Services lead to endpoints of this zone first.
    pub zone: String,
    /// The cgroup2 mount.
    pub cgroup_mount: PathBuf,
    /// Where kubelet makes the pods' cgroups, relative to the mount.
    pub pods_root: Option<PathBuf>,
    /// How often the heartbeat is stamped.
    pub heartbeat: Duration,
}

/// The task that keeps kernel, listeners and SVIDs as the sources want them.
pub struct Reconciler<S, K = Kernel> {
    options: NodeOptions,
    state: Arc<State>,
    kernel: K,
    svids: svid::Store,
    sandboxes: S,
    statuses: Statuses,
    /// This node's workloads.
    locals: HashMap<WorkloadUid, Local>,
    /// Open sandboxes, and who lives in each.
    open: HashMap<NetnsCookie, Sandbox>,
    /// Cgroup watchers report here; the reconciler keeps a sender, so it never closes.
    wake_tx: mpsc::Sender<WorkloadUid>,
    wake_rx: mpsc::Receiver<WorkloadUid>,
    /// The source has told all it had. Until then nothing is served: a policy may be missing that forbids it, and a
    /// destination in the mesh may look like one outside.
    synced: bool,
    /// Map entries that are nobody's are gone.
    entries_swept: bool,
    /// A predecessor's links that nobody needs are gone.
    links_swept: bool,
    /// What goes past the engine.
    direct: Direct,
    footprint: Footprint,
}

#[derive(Debug)]
struct Sandbox {
    netns: Netns,
    tenants: HashSet<WorkloadUid>,
}

impl<S: Sandboxes, K: Door> Reconciler<S, K> {
    /// A reconciler over a loaded, not yet attached kernel.
    pub fn new(
        options: NodeOptions,
        state: Arc<State>,
        kernel: K,
        svids: svid::Store,
        sandboxes: S,
        statuses: Statuses,
    ) -> Self {
        let (wake_tx, wake_rx) = mpsc::channel(1024);
        Self {
            options,
            state,
            kernel,
            svids,
            sandboxes,
            statuses,
            locals: HashMap::new(),
            open: HashMap::new(),
            wake_tx,
            wake_rx,
            synced: false,
            entries_swept: false,
            links_swept: false,
            direct: Direct::default(),
            footprint: Footprint::default(),
        }
    }

    /// Runs until the drain begins, and gives back what connections need to finish. The pins stay: with the engine gone
    /// the kernel goes on refusing.
    ///
    /// # Errors
    /// The programs could not be attached; nothing is protected, so the process must end and say so.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut kernel_events: mpsc::Receiver<KernelEvent>,
        mut served: mpsc::Receiver<Served>,
        drain: Watch,
    ) -> Result<Finishing<S>, kernel::KernelError> {
        let mut heartbeat = tokio::time::interval(self.options.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let retry = self.next_retry();
            let settle = self.direct.settle_at();
            tokio::select! {
                // The heartbeat first: a burst of events must not make the kernel take the engine for gone.
                biased;
                _ = heartbeat.tick() => {
                    self.heartbeat();
                    self.footprint.heartbeat();
                }
                () = drain.stopped() => return Ok(self.finishing()),
                // Before events that may never pause; otherwise last, so that a burst of them is settled once.
                () = sleep_until(settle), if settle.is_some() => self.settle_direct(),
                Some(uid) = self.wake_rx.recv() => self.advance_awaited(|l| l.workload.uid == uid),
                Some(event) = kernel_events.recv() => self.on_kernel(event),
                Some(event) = events.recv() => self.on_source(event)?,
                Some(served) = served.recv() => self.on_served(&served),
                () = sleep_until(retry), if retry.is_some() => self.advance_due(),
                () = std::future::ready(()), if settle.is_some() => self.settle_direct(),
            }
        }
    }

    fn finishing(self) -> Finishing<S> {
        let tracked = self.locals.into_values().filter_map(Local::into_tracked);
        Finishing { sandboxes: self.sandboxes, _svids: (self.svids, tracked.collect()) }
    }

    fn heartbeat(&mut self) {
        if let Err(e) = self.kernel.heartbeat() {
            error!(error = %e, "heartbeat");
        }
        self.sweep_again();
        self.retry_direct();
    }

    // ---- what a source said ----

    fn on_source(&mut self, event: Event) -> Result<(), kernel::KernelError> {
        let before = match &event {
            Event::Workload(w) => self.state.workload(&w.uid),
            _ => None,
        };
        let answers_changed = self.state.apply(&event);
        let tells_of_addresses = tells_of_addresses(&event);
        if answers_changed {
            // First of all: from here on the kernel lets nothing new past by an answer of before.
            self.outdate_direct();
        }
        match event {
            Event::Workload(workload) => self.on_workload(before.as_deref(), workload),
            Event::WorkloadGone(uid) => {
                self.drop_local(&uid, Leaving::Gone);
                self.sandboxes.forget(&uid);
            }
            Event::Synced => self.on_synced()?,
            Event::Service(_)
            | Event::ServiceGone(..)
            | Event::EndpointSlice(_)
            | Event::EndpointSliceGone(..) => self.direct.outdate_services(),
            _ => {}
        }
        // Last, so that whoever asks again because of it meets the workload as it is now.
        if answers_changed {
            self.sandboxes.policy_changed(self.state.epoch());
        }
        if tells_of_addresses {
            self.sandboxes.told();
        }
        Ok(())
    }

    fn on_workload(&mut self, before: Option<&Workload>, workload: Arc<Workload>) {
        let uid = workload.uid.clone();
        if before.is_some_and(|b| b.identity != workload.identity || b.enrolled != workload.enrolled) {
            self.sandboxes.forget(&uid);
        }
        let workload = self.in_known_cgroup(workload);
        if !self.is_local(&workload) {
            self.drop_local(&uid, Leaving::Gone);
            return;
        }
        if self.locals.get(&uid).is_some_and(|l| l.must_restart(&workload)) {
            self.drop_local(&uid, Leaving::Changed);
        }
        let local =
            self.locals.entry(uid.clone()).or_insert_with(|| Local::new(workload.clone(), &self.options));
        local.workload = workload;
        local.retry_now();
        self.advance(&uid);
    }

    fn is_local(&self, workload: &Workload) -> bool {
        *workload.node == *self.options.node && (workload.cgroup.is_some() || workload.enrolled)
    }

    /// An enrolled workload whose manifest names its cgroup no more stays where it was: its processes are still there.
    fn in_known_cgroup(&self, workload: Arc<Workload>) -> Arc<Workload> {
        let before = self.locals.get(&workload.uid).and_then(|local| local.workload.cgroup.clone());
        match before {
            Some(cgroup) if workload.cgroup.is_none() && workload.enrolled && self.is_local(&workload) => {
                warn!(workload = %workload.uid, %cgroup, "manifest names no cgroup any more: kept where it was");
                Arc::new(Workload { cgroup: Some(cgroup), ..(*workload).clone() })
            }
            _ => workload,
        }
    }

    /// The first pass is over: take every workload up, forget what a predecessor left for those that are gone, then attach.
    fn on_synced(&mut self) -> Result<(), kernel::KernelError> {
        if self.synced {
            return Ok(());
        }
        self.synced = true;
        self.advance_where(|_| true);
        self.sweep()?;
        self.kernel.heartbeat()?;
        self.kernel.attach()?;
        self.statuses.set_attached();
        self.tell_captured();
        self.start_direct();
        info!(workloads = self.locals.len(), "capture attached");
        Ok(())
    }

    // ---- what the kernel said ----

    fn on_kernel(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::CgroupMade(path) => {
                // It may be the pods' root, which the heartbeat looks for: not a pod may start before it is known.
                self.heartbeat();
                self.advance_where(|l| l.lives_at(&path));
            }
            KernelEvent::CgroupGone(path) => self.on_cgroup_gone(&path),
            KernelEvent::Awaited(cgroup) => self.advance_awaited(|l| l.cgroup_id() == Some(cgroup)),
            KernelEvent::DirectStale(flow) => self.judge_direct(&flow),
            KernelEvent::DirectStray(flow) => self.on_stray(&flow),
            KernelEvent::Overrun => {
                warn!("kernel events were lost: looking at every workload again");
                self.advance_where(|_| true);
            }
        }
    }

    fn on_cgroup_gone(&mut self, path: &Path) {
        let gone: Vec<_> =
            self.locals.values().filter(|l| l.lives_at(path)).map(|l| l.workload.clone()).collect();
        for workload in gone {
            self.drop_local(&workload.uid, Leaving::Gone);
            self.locals.insert(workload.uid.clone(), Local::new(workload.clone(), &self.options));
            self.advance(&workload.uid);
        }
    }

    fn advance_where(&mut self, concerns: impl Fn(&Local) -> bool) {
        let uids: Vec<_> =
            self.locals.values().filter(|l| concerns(l)).map(|l| l.workload.uid.clone()).collect();
        for uid in uids {
            self.advance(&uid);
        }
    }

    /// Something has just happened to them: what is still missing (a runtime moves a container's first process into the
    /// pod's network namespace after its cgroup, and nothing tells of that) is a matter of milliseconds.
    fn advance_awaited(&mut self, concerns: impl Fn(&Local) -> bool) {
        self.locals.values_mut().filter(|l| concerns(l)).for_each(Local::retry_now);
        self.advance_where(concerns);
    }

    // ---- retries ----

    fn next_retry(&self) -> Option<Instant> {
        self.locals.values().filter_map(Local::retry_at).min()
    }

    fn advance_due(&mut self) {
        let now = Instant::now();
        self.advance_where(|l| l.retry_at().is_some_and(|at| at <= now));
    }
}

/// Whoever waits for an address to be known may find it known now.
fn tells_of_addresses(event: &Event) -> bool {
    matches!(event, Event::Workload(_) | Event::Service(_) | Event::EndpointSlice(_))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
