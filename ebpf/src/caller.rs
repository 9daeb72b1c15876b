//! Who is connecting: the walk from the root of the cgroups down to the current process.
//!
//! The nearest ancestor with an entry wins, so a process that makes its own child cgroup keeps its workload's identity.
//! Going down from the root needs one bounded loop and no knowledge of how deep the process is: the helper answers 0
//! below it. Workloads deeper than [`LEVELS`] are not found; kubelet's are at 4 or 5.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_ktime_get_ns,
};
use signet_common::abi::{Config, EVENT_AWAITED, Event, Workload};
use signet_common::counter;
use signet_common::decision::{Caller, Capture, PATIENCE};

use crate::maps::{EVENTS, HEARTBEAT, TOLD, WORKLOADS, config, count};

/// How deep a workload's cgroup may be.
const LEVELS: i32 = 24;
/// A denied cgroup is told of at most this often, in nanoseconds: a program that connects in a loop must not fill the ring.
const TELL_EVERY: u64 = 50_000_000;

/// The current process.
pub struct Current {
    /// What it is to the decisions.
    pub caller: Caller,
    /// Its workload's cgroup, or its own where it belongs to no workload.
    pub cgroup: u64,
    /// Its workload's entry.
    pub workload: Option<&'static Workload>,
}

impl Current {
    /// In the mesh, ready or not.
    #[inline(always)]
    pub fn is_enrolled(&self) -> bool {
        matches!(self.caller, Caller::Workload(Capture::NotReady | Capture::Redirect) | Caller::Stranded)
    }
}

struct Walk {
    workload: u64,
    leaf: u64,
    below_pods_root: bool,
    below_kubelet: bool,
}

/// Finds out who the current process is.
#[inline(always)]
pub fn current() -> Current {
    let config = config();
    let walk = walk(config.map_or((0, 0), |c| (c.pods_root, c.kubelet)));
    if walk.workload != 0
        // SAFETY: entries are replaced as a whole by signetd; a reader that sees half of each errs for one connect, and
        // `Capture::of` takes what it does not know for "not ready".
        && let Some(workload) = unsafe { WORKLOADS.get(walk.workload) }
    {
        let caller = match Capture::of(workload) {
            Capture::NotReady | Capture::Redirect if !config.is_some_and(is_alive) => Caller::Stranded,
            capture => Caller::Workload(capture),
        };
        return Current { caller, cgroup: walk.workload, workload: Some(workload) };
    }
    Current { caller: stranger(&walk, config), cgroup: walk.leaf, workload: None }
}

/// Tells signetd that a connect of this cgroup waits or was denied, so that it looks at it now.
#[inline(always)]
pub fn tell_awaited(cgroup: u64) {
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a number; a torn read is not possible for an aligned u64.
    if unsafe { TOLD.get(cgroup) }.is_some_and(|told| now - *told < TELL_EVERY) {
        return;
    }
    let _ = TOLD.insert(cgroup, now, BPF_ANY.into());
    let Some(mut event) = EVENTS.reserve(0) else { return count(counter::EVENTS_LOST) };
    let record: *mut Event = event.as_mut_ptr();
    // SAFETY: the record is reserved, of this size, and ours until it is submitted. The path's bytes stay as the ring
    // had them: their length is 0.
    unsafe {
        (*record).kind = EVENT_AWAITED;
        (*record).path_length = 0;
        (*record).cgroup = cgroup;
    }
    event.submit(0);
}

#[inline(always)]
fn walk((pods_root, kubelet): (u64, u64)) -> Walk {
    // SAFETY: takes no argument.
    let leaf = unsafe { bpf_get_current_cgroup_id() };
    let mut walk = Walk { workload: 0, leaf, below_pods_root: false, below_kubelet: false };
    for level in 1..LEVELS {
        // SAFETY: takes a number; answers 0 below the current cgroup.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            break;
        }
        walk.below_pods_root |= id == pods_root;
        walk.below_kubelet |= id == kubelet;
        if WORKLOADS.get_ptr(id).is_some() {
            walk.workload = id;
        }
    }
    walk
}

#[inline(always)]
fn stranger(walk: &Walk, config: Option<&Config>) -> Caller {
    let Some(config) = config else { return Caller::Outside };
    if walk.leaf == config.engine_cgroup {
        return Caller::Engine;
    }
    match (walk.below_pods_root, is_alive(config)) {
        // Some have the pods' root below the kubelet's own cgroup: there, only what is not a pod is the kubelet.
        (false, _) if walk.below_kubelet => Caller::Kubelet,
        (false, _) => Caller::Outside,
        (true, true) => Caller::UnknownPod,
        (true, false) => Caller::UnknownPodEngineGone { deny: config.deny_unknown != 0 },
    }
}

/// What is known of the workload with that cgroup; nobody waits for one that is gone.
#[inline(always)]
pub fn capture_of(cgroup: u64) -> Capture {
    // SAFETY: as in `current`.
    unsafe { WORKLOADS.get(cgroup) }.map_or(Capture::Bypass, Capture::of)
}

/// Whether an engine that does not listen may soon do so.
#[inline(always)]
pub fn engine_is_awaited() -> bool {
    config().is_some_and(|config| age() < config.engine_timeout * PATIENCE)
}

/// Whether the engine has stamped its heartbeat lately.
#[inline(always)]
pub fn engine_is_alive() -> bool {
    config().is_some_and(is_alive)
}

#[inline(always)]
fn is_alive(config: &Config) -> bool {
    age() < config.engine_timeout
}

/// Nanoseconds since the last heartbeat; there was none as long as it is 0.
#[inline(always)]
fn age() -> u64 {
    let Some(beat) = HEARTBEAT.get(0).filter(|beat| **beat != 0) else { return u64::MAX };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    now.wrapping_sub(*beat)
}
