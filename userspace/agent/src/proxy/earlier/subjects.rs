//! Whose connections are looked for, when next, and which of them have been told of already.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Subject;
use crate::addr::{CgroupId, NetnsCookie};
use crate::kernel::EarlierSocket;
use crate::state::Workload;

#[derive(Debug, Default)]
pub(super) struct Subjects {
    captured: HashMap<CgroupId, Captured>,
    /// Those that were let be, by their sockets' cookies; the first [`MAX_TOLD`] of them.
    told: HashMap<u64, Told>,
}

/// One workload.
#[derive(Debug)]
struct Captured {
    netns: NetnsCookie,
    workload: Arc<Workload>,
    /// The next look.
    due: Option<Instant>,
    /// That one was the first, and another is to follow.
    is_new: bool,
    /// The last look has let some be.
    has_left: bool,
}

#[derive(Debug)]
struct Told {
    owner: CgroupId,
    since: SystemTime,
}

impl Subjects {
    /// False where it is as it was.
    pub(super) fn put(&mut self, netns: NetnsCookie, cgroup: CgroupId, workload: Arc<Workload>) -> bool {
        let known = self.captured.get(&cgroup);
        if known.is_some_and(|known| known.netns == netns && known.workload == workload) {
            return false;
        }
        let due = Some(Instant::now());
        let captured = Captured { netns, workload, due, is_new: true, has_left: false };
        self.captured.insert(cgroup, captured);
        true
    }

    pub(super) fn remove(&mut self, cgroup: CgroupId) {
        self.captured.remove(&cgroup);
        self.told.retain(|_, told| told.owner != cgroup);
    }

    /// When somebody is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.captured.values().filter_map(|captured| captured.due).min()
    }

    /// Policies have changed: what was let be is asked for again, once their burst is over.
    pub(super) fn outdate(&mut self, now: Instant) {
        for captured in self.captured.values_mut().filter(|captured| captured.has_left) {
            captured.due.get_or_insert(now + SETTLED_WITHIN);
        }
    }

    /// Those who are due, by where they live.
    pub(super) fn take_due(&mut self, now: Instant) -> BTreeMap<NetnsCookie, Vec<Subject>> {
        let mut due = BTreeMap::<_, Vec<Subject>>::new();
        for (cgroup, captured) in &mut self.captured {
            if captured.due.is_some_and(|at| at <= now) {
                captured.due = std::mem::take(&mut captured.is_new).then(|| now + ONCE_MORE_AFTER);
                due.entry(captured.netns).or_default().push((*cgroup, Arc::clone(&captured.workload)));
            }
        }
        due
    }

    pub(super) fn retry(&mut self, workloads: &[Subject], now: Instant) {
        for (cgroup, _) in workloads {
            if let Some(captured) = self.captured.get_mut(cgroup) {
                captured.due = Some(now + RETRIED_AFTER);
            }
        }
    }

    /// Writes down what is left of these workloads' connections, and returns what is new of it.
    pub(super) fn note(
        &mut self,
        workloads: &[Subject],
        left: impl Iterator<Item = EarlierSocket> + Clone,
    ) -> HashSet<u64> {
        let now = SystemTime::now();
        let cookies: HashSet<u64> = left.clone().map(|socket| socket.cookie()).collect();
        for (cgroup, _) in workloads {
            if let Some(captured) = self.captured.get_mut(cgroup) {
                captured.has_left = left.clone().any(|socket| socket.owner == *cgroup);
            }
        }
        let looked_at: HashSet<CgroupId> = workloads.iter().map(|(cgroup, _)| *cgroup).collect();
        self.told.retain(|cookie, told| !looked_at.contains(&told.owner) || cookies.contains(cookie));
        let mut fresh = cookies;
        fresh.retain(|cookie| !self.told.contains_key(cookie));
        for socket in left.filter(|socket| fresh.contains(&socket.cookie())) {
            // One that has been removed meanwhile would never be asked for again.
            if self.told.len() < MAX_TOLD && self.captured.contains_key(&socket.owner) {
                self.told.insert(socket.cookie(), Told { owner: socket.owner, since: now });
            }
        }
        fresh
    }

    /// When one was first seen.
    pub(super) fn since(&self, cookie: u64) -> Option<SystemTime> {
        self.told.get(&cookie).map(|told| told.since)
    }

    /// An own address of somebody who is captured here.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.captured.values().any(|captured| captured.workload.addresses.contains(&address))
    }

    /// Who had some left the last time, by where they live.
    pub(super) fn with_some_left(&self) -> BTreeMap<NetnsCookie, Vec<Subject>> {
        let mut found = BTreeMap::<_, Vec<Subject>>::new();
        for (cgroup, captured) in self.captured.iter().filter(|(_, captured)| captured.has_left) {
            found.entry(captured.netns).or_default().push((*cgroup, Arc::clone(&captured.workload)));
        }
        found
    }
}

/// The longest that a connect, or a handshake on its last step, takes in the kernel.
const ONCE_MORE_AFTER: Duration = Duration::from_secs(1);
/// As the permits of direct connections.
const SETTLED_WITHIN: Duration = Duration::from_millis(250);
const RETRIED_AFTER: Duration = Duration::from_secs(5);
/// Beyond that, what is let be may be told of again.
const MAX_TOLD: usize = 65_536;
