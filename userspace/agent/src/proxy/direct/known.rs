//! What must be remembered of direct connections: who lives in which cgroup, what their pairs are called in metrics, what a
//! scrape has counted already, and why some were ended. Everything is bounded.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::addr::{CgroupId, WorkloadUid};
use crate::kernel::{DirectBytes, DirectFlow};
use crate::policy::{Denial, Flow, Shadow};
use crate::proxy::failure::Failure;
use crate::proxy::metrics::{Counters, Labels, Metrics, ResponseFlags};
use crate::proxy::parties::{Direction, Parties, Path};
use crate::state::{Service, State, Target, Workload};

#[derive(Debug, Default)]
pub(super) struct Known {
    /// This node's workloads, and of those that have left the latest, with when they did.
    workloads: HashMap<CgroupId, Arc<Workload>>,
    departed: VecDeque<(CgroupId, Instant)>,
    pairs: HashMap<Key, Arc<Pair>>,
    /// What a scrape has counted of live flows, by socket.
    counted: HashMap<u64, DirectBytes>,
    revoked: HashMap<u64, Option<Denial>>,
}

/// Between whom, and by which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    client: CgroupId,
    server: CgroupId,
    asked: SocketAddr,
    destination: SocketAddr,
}

/// The connections between two workloads, by one way.
#[derive(Debug)]
pub(super) struct Pair {
    /// As the client's side reports it; the client's address is another for each connection.
    source: Parties,
    /// As the server's side does.
    destination: Parties,
    counters: [Arc<Counters>; 2],
}

impl Known {
    pub(super) fn put(&mut self, cgroup: CgroupId, workload: Arc<Workload>) {
        self.departed.retain(|(departed, _)| *departed != cgroup);
        self.workloads.insert(cgroup, workload);
        self.forget_pairs();
    }

    /// Which workload that was.
    pub(super) fn depart(&mut self, cgroup: CgroupId, now: Instant) -> Option<WorkloadUid> {
        let workload = self.workloads.get(&cgroup)?.uid.clone();
        self.departed.push_back((cgroup, now));
        while let Some(&(oldest, since)) = self.departed.front()
            && (now.saturating_duration_since(since) > REMEMBERED_FOR || self.departed.len() > MAX_DEPARTED)
        {
            self.departed.pop_front();
            self.workloads.remove(&oldest);
            self.forget_pairs();
        }
        Some(workload)
    }

    pub(super) fn forget_pairs(&mut self) {
        self.pairs.clear();
    }

    pub(super) fn revoke(&mut self, socket: u64, denial: Option<Denial>) {
        // Left over from sockets that had ended by themselves.
        if self.revoked.len() == MAX_REVOKED {
            self.revoked.clear();
        }
        self.revoked.insert(socket, denial);
    }

    /// Why the engine has ended a flow, or why it did not come about.
    pub(super) fn failure(&mut self, flow: &DirectFlow) -> Option<Failure> {
        match self.revoked.remove(&flow.socket) {
            Some(Some(denial)) => Some(Failure::Revoked(denial)),
            Some(None) => Some(Failure::Closed),
            None if flow.established => None,
            None => Some(Failure::Unestablished),
        }
    }

    /// What a live flow has carried until now: whether it is new, and what it had carried the last time. Counters never go
    /// back, whatever the kernel says.
    pub(super) fn carry(&mut self, socket: u64, now: DirectBytes) -> (bool, DirectBytes) {
        let is_new = !self.counted.contains_key(&socket);
        let counted = self.counted.entry(socket).or_default();
        let before = *counted;
        counted.sent = counted.sent.max(now.sent);
        counted.received = counted.received.max(now.received);
        (is_new, before)
    }

    /// A flow has ended: what was counted of it, where anything was.
    pub(super) fn close(&mut self, socket: u64) -> Option<DirectBytes> {
        self.counted.remove(&socket)
    }

    pub(super) fn pair(&mut self, flow: &DirectFlow, state: &State, metrics: &Metrics) -> Arc<Pair> {
        let DirectFlow { client, server, destination, .. } = *flow;
        let key = Key { client, server, asked: flow.asked.socket(), destination };
        if let Some(pair) = self.pairs.get(&key) {
            return Arc::clone(pair);
        }
        if self.pairs.len() == MAX_PAIRS {
            self.pairs.clear();
        }
        let pair = Arc::new(Pair::of(self.parties(flow, state), metrics));
        self.pairs.insert(key, Arc::clone(&pair));
        pair
    }

    fn parties(&self, flow: &DirectFlow, state: &State) -> Parties {
        let mut parties = Parties::between(Direction::Outbound, flow.source, flow.destination);
        parties.path = Some(Path::Direct);
        parties.application = Some(flow.destination);
        parties.service = service(flow, state);
        for (party, cgroup) in [(&mut parties.source, flow.client), (&mut parties.destination, flow.server)] {
            party.workload = self.workloads.get(&cgroup).cloned();
            party.identity = party.workload.as_ref().map(|workload| workload.identity.clone());
        }
        (parties.policy, parties.shadow) = policies(flow, &parties, state);
        parties
    }
}

impl Pair {
    fn of(source: Parties, metrics: &Metrics) -> Self {
        let destination = Parties { direction: Direction::Inbound, ..source.clone() };
        let counters =
            [&source, &destination].map(|parties| metrics.counters(Labels::of(parties, ResponseFlags::None)));
        Self { source, destination, counters }
    }

    /// One of its connections.
    pub(super) fn parties(&self, flow: &DirectFlow) -> Parties {
        let mut parties = self.source.clone();
        parties.source.address = flow.source;
        parties
    }

    pub(super) fn opened(&self) {
        self.counters.iter().for_each(|counters| counters.opened());
    }

    pub(super) fn add_bytes(&self, before: DirectBytes, now: DirectBytes) {
        let (sent, received) =
            (now.sent.saturating_sub(before.sent), now.received.saturating_sub(before.received));
        self.counters.iter().for_each(|counters| counters.add_bytes(sent, received));
    }

    pub(super) fn closed(&self, metrics: &Metrics, flags: ResponseFlags) {
        if flags == ResponseFlags::None {
            return self.counters.iter().for_each(|counters| counters.closed());
        }
        self.flagged(metrics, flags).iter().for_each(|counters| counters.closed());
    }

    pub(super) fn failed(&self, metrics: &Metrics, flags: ResponseFlags) {
        self.flagged(metrics, flags).iter().for_each(|counters| counters.failed());
    }

    fn flagged(&self, metrics: &Metrics, flags: ResponseFlags) -> [Arc<Counters>; 2] {
        [&self.source, &self.destination].map(|parties| metrics.counters(Labels::of(parties, flags)))
    }
}

/// The Service whose address the client asked for.
fn service(flow: &DirectFlow, state: &State) -> Option<Arc<Service>> {
    if flow.asked.socket() == flow.destination {
        return None;
    }
    match state.resolve(flow.asked.ip(), flow.asked.port(), "", &[]) {
        Target::Workload { service, .. } => service,
        Target::Endpoint { service, .. } | Target::NoEndpoint { service } => Some(service),
        Target::Awaited { service, .. } => service,
        Target::Unknown => None,
    }
}

/// The ALLOW policy that lets it in, and what those in dry-run would say.
fn policies(flow: &DirectFlow, parties: &Parties, state: &State) -> (Option<Arc<str>>, Shadow) {
    let Some(server) = &parties.destination.workload else { return (None, Shadow::Silent) };
    let asked = Flow {
        identity: parties.source.identity.as_ref(),
        source_ip: flow.source.ip(),
        remote_ip: flow.source.ip(),
        namespace: &server.namespace,
        labels: &server.labels,
        destination_ip: flow.destination.ip(),
        destination_port: flow.destination.port(),
    };
    let permit = state.authorize(&asked).ok();
    (permit.and_then(|permit| permit.rule().map(Arc::from)), state.shadow(&asked))
}

/// Records of a workload's last connections come within moments of its departure, or when the kernel has given up to send their
/// last bytes (tcp(7), `tcp_orphan_retries`).
const REMEMBERED_FOR: Duration = Duration::from_secs(120);
const MAX_DEPARTED: usize = 1024;
/// Kept to save work; made again where they are missing.
const MAX_PAIRS: usize = 8192;
const MAX_REVOKED: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::testing;

    #[test]
    fn who_has_left_is_remembered_for_a_while() {
        let mut known = Known::default();
        let start = Instant::now();
        let mut depart = |cgroup, after: u64| {
            known.put(CgroupId(cgroup), testing::workload("client"));
            known.depart(CgroupId(cgroup), start + Duration::from_secs(after));
            known.workloads.len()
        };
        assert_eq!([depart(1, 0), depart(2, 100), depart(3, 120)], [1, 2, 3]);
        assert_eq!(depart(4, 121), 3, "the first is forgotten");
        assert_eq!(depart(5, 500), 1);
    }
}
