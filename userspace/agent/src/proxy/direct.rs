//! Connections that go past the engine, as far as it has to do with them: it tells which may, and of those there are.
//!
//! The first connection between two workloads of this node goes through the engine, and tells whoever writes the kernel's
//! permits ([`Direct::served`]). The later ones leave one record each, at their end; while they live, they are read from
//! the kernel when a view or a scrape asks. So a new connection costs the engine one record in a batch, one line of log,
//! and a few additions: what the record's pair of workloads is called in metrics is looked up once and kept.
//!
//! Nothing is decided or written here; the lock is held for a batch or a scrape, never across an await.

mod known;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::counter::Counter;

use self::known::{Known, Pair};
use super::access;
use super::connections::ConnectionView;
use super::failure::Failure;
use super::meter::Bytes;
use super::metrics::{Metrics, ResponseFlags};
use crate::addr::{CgroupId, WorkloadUid};
use crate::kernel::{DirectBytes, DirectEnd, DirectFlow, DirectFlows};
use crate::policy::Denial;
use crate::state::{State, Workload};
use crate::telemetry::{Registry, hold};

/// Tells of a connection that the engine has carried between two workloads of this node: client, server, and where the
/// server was reached. Does not wait; what is not taken is told again with the next one.
pub type Report = Box<dyn Fn(&WorkloadUid, &WorkloadUid, SocketAddr) + Send + Sync>;

/// The live direct flows, as the kernel has them.
pub trait LiveFlows: Send + Sync {
    /// All of them; none where they cannot be read.
    fn live(&self) -> Vec<DirectFlow>;
    /// See [`DirectFlows::bytes`].
    fn bytes(&self, flows: &[DirectFlow]) -> HashMap<u64, DirectBytes>;
}

/// What the engine knows of direct connections. One for the node.
pub struct Direct {
    state: Arc<State>,
    metrics: Arc<Metrics>,
    flows: Arc<dyn LiveFlows>,
    report: Report,
    known: Mutex<Known>,
    /// This node's workloads: asked for each connection, and so not behind the lock that a scrape holds.
    locals: RwLock<HashSet<WorkloadUid>>,
    /// How many the last scrape has seen.
    open: AtomicU64,
    revoked: Counter,
}

impl Direct {
    /// Of no connection yet. Registers `signet_direct_revoked_total`, and is asked by `metrics` at each scrape.
    #[must_use]
    pub fn new(
        state: Arc<State>,
        metrics: Arc<Metrics>,
        flows: Arc<dyn LiveFlows>,
        report: Report,
        registry: &mut Registry,
    ) -> Arc<Self> {
        let revoked = Counter::default();
        let help = "Direct connections that were ended because they had lost their permit";
        registry.register("signet_direct_revoked", help, revoked.clone());
        let direct = Arc::new(Self {
            state,
            metrics: Arc::clone(&metrics),
            flows,
            report,
            known: Mutex::default(),
            locals: RwLock::default(),
            open: AtomicU64::new(0),
            revoked,
        });
        metrics.ask(&direct);
        direct
    }

    /// A workload of this node lives in that cgroup.
    pub fn put(&self, cgroup: CgroupId, workload: Arc<Workload>) {
        self.locals.write().insert(workload.uid.clone());
        self.known.lock().put(cgroup, workload);
    }

    /// It does not any more; the records of its last connections are still to come.
    pub fn depart(&self, cgroup: CgroupId) {
        if let Some(workload) = self.known.lock().depart(cgroup, Instant::now()) {
            self.locals.write().remove(&workload);
        }
    }

    /// What connections are called may differ from now on: policies have changed.
    pub fn policy_changed(&self) {
        self.known.lock().forget_pairs();
    }

    /// A flow is being ended, and why.
    pub fn revoked(&self, flow: &DirectFlow, denial: Option<Denial>) {
        self.revoked.inc();
        self.known.lock().revoke(flow.socket, denial);
    }

    /// The engine has carried a connection over mTLS: where both ends are of this node, the next one need not.
    pub(crate) fn served(&self, client: &WorkloadUid, server: &WorkloadUid, to: SocketAddr) {
        if self.locals.read().contains(server) {
            (self.report)(client, server, to);
        }
    }

    /// Writes down what has ended.
    pub fn ended(&self, ends: &[DirectEnd]) {
        let mut lines = Vec::with_capacity(ends.len());
        let mut known = self.known.lock();
        for end in ends {
            let pair = known.pair(&end.flow, &self.state, &self.metrics);
            let failure = known.failure(&end.flow);
            self.count(end, &pair, known.close(end.flow.socket), failure.as_ref());
            lines.push((end, pair, failure));
        }
        drop(known);
        let _held = hold();
        for (end, pair, failure) in lines {
            let parties = pair.parties(&end.flow);
            access::complete(&parties, bytes(end.bytes), end.duration, failure.as_ref());
        }
    }

    /// All live direct connections, for `signet connections`.
    #[must_use]
    pub fn views(&self) -> Vec<ConnectionView> {
        let mut known = self.known.lock();
        let (flows, now) = (self.flows.live(), SystemTime::now());
        let carried = self.flows.bytes(&flows);
        let view = |flow: &DirectFlow| {
            let parties = known.pair(flow, &self.state, &self.metrics).parties(flow);
            let carried = carried.get(&flow.socket).copied().unwrap_or_default();
            let since = now.checked_sub(flow.age).unwrap_or(now);
            ConnectionView::of(FIRST_ID + flow.socket, parties, since, bytes(carried))
        };
        flows.iter().map(view).collect()
    }

    /// How many were open at the last [`Self::flush`].
    pub(crate) fn count_open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// Moves what live connections have carried since the last time into the metrics. The lock is held throughout: an end
    /// that comes meanwhile is counted after it.
    pub(crate) fn flush(&self) {
        let mut known = self.known.lock();
        let mut flows = self.flows.live();
        flows.retain(|flow| flow.established);
        let carried = self.flows.bytes(&flows);
        for flow in &flows {
            let pair = known.pair(flow, &self.state, &self.metrics);
            let now = carried.get(&flow.socket).copied().unwrap_or_default();
            let (is_new, before) = known.carry(flow.socket, now);
            if is_new {
                pair.opened();
            }
            pair.add_bytes(before, now);
        }
        self.open.store(flows.len() as u64, Relaxed);
    }

    fn count(&self, end: &DirectEnd, pair: &Pair, before: Option<DirectBytes>, failure: Option<&Failure>) {
        let flags = failure.map_or(ResponseFlags::None, Failure::flags);
        if !end.flow.established {
            return pair.failed(&self.metrics, flags);
        }
        if before.is_none() {
            pair.opened();
        }
        pair.add_bytes(before.unwrap_or_default(), end.bytes);
        pair.closed(&self.metrics, flags);
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").finish_non_exhaustive()
    }
}

impl LiveFlows for DirectFlows {
    fn live(&self) -> Vec<DirectFlow> {
        Self::live(self).unwrap_or_else(|error| {
            tracing::warn!(%error, "live direct connections are missing in views and metrics");
            Vec::new()
        })
    }

    fn bytes(&self, flows: &[DirectFlow]) -> HashMap<u64, DirectBytes> {
        Self::bytes(self, flows)
    }
}

fn bytes(carried: DirectBytes) -> Bytes {
    Bytes { sent: carried.sent, received: carried.received }
}

/// Ids of direct connections begin here: those of others count from 0, and both fit a JSON number exactly.
pub(super) const FIRST_ID: u64 = 1 << 52;

#[cfg(test)]
mod tests;
