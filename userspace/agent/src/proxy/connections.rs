//! Every live connection: registered first, then authorised; closed on demand; gone from the list when its guard is.
//!
//! Registration comes before every decision, so that whoever removes a workload meets each of its connections here, the
//! ones that are still being set up too. Connections write themselves in and out through [`Registration`]; `reconcile`
//! closes; views and scrapes read. The lock is held for moments and never across an await.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use signet_identity::SpiffeId;
use tokio::sync::Notify;

pub use super::parties::{Direction, Path};

use super::meter::{Bytes, Meter};
use super::parties::{Parties, Party};
use crate::addr::WorkloadUid;

/// The live connections of this node.
#[derive(Debug, Default)]
pub struct Connections {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    live: BTreeMap<u64, Arc<Live>>,
}

/// One live connection, in one allocation. Written by its own task through [`Registration`].
#[derive(Debug)]
struct Live {
    since: SystemTime,
    parties: Mutex<Parties>,
    meter: Meter,
    /// Has one waiter, the connection's task, and keeps the notice until that waits.
    closing: Notify,
}

/// The meter of a live connection.
#[derive(Debug)]
pub(crate) struct Metered(Arc<Live>);

/// Tells a connection's task that somebody wants the connection closed.
#[derive(Debug)]
pub(crate) struct Closing(Arc<Live>);

/// A connection's place in the list; dropped, it is gone from there.
#[derive(Debug)]
pub(crate) struct Registration {
    id: u64,
    connections: Arc<Connections>,
    live: Arc<Live>,
}

/// One line of `signet connections`.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionView {
    /// Unique while the process lives.
    pub id: u64,
    /// Which way.
    pub direction: Direction,
    /// How; `None` while that is being decided.
    pub path: Option<Path>,
    /// The client's address.
    pub source: SocketAddr,
    /// `namespace/name` of the client, where known.
    pub source_workload: Option<String>,
    /// The client's proven SPIFFE ID; `None` in clear.
    pub source_identity: Option<SpiffeId>,
    /// The application's address and port (never 15008).
    pub destination: SocketAddr,
    /// `namespace/name` of the server, where known.
    pub destination_workload: Option<String>,
    /// The server's proven SPIFFE ID; `None` in clear.
    pub destination_identity: Option<SpiffeId>,
    /// The Service's hostname, where the client asked for one.
    pub service: Option<String>,
    /// The ALLOW policy that let it in (inbound), where one had to.
    pub policy: Option<String>,
    /// Seconds since 1970.
    pub since: u64,
    /// Bytes that the client has sent.
    pub sent: u64,
    /// Bytes that the client has received.
    pub received: u64,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Closes (resets) every connection from or to a local workload: it is gone, or not in the mesh any more.
    pub fn close_workload(&self, workload: &WorkloadUid) {
        for live in self.live() {
            if live.parties.lock().local() == Some(workload) {
                live.closing.notify_one();
            }
        }
    }

    /// Closes (resets) every tunnel from or to a workload, which is gone or somebody else now.
    pub fn close_tunnels(&self, workload: &WorkloadUid) {
        for live in self.live() {
            let parties = live.parties.lock();
            let concerned = [&parties.source, &parties.destination]
                .into_iter()
                .any(|party| party.workload.as_ref().is_some_and(|party| party.uid == *workload));
            if concerned && parties.path == Some(Path::Native) {
                live.closing.notify_one();
            }
        }
    }

    /// All live connections, oldest first, for `signet connections`.
    #[must_use]
    pub fn views(&self) -> Vec<ConnectionView> {
        let entries: Vec<_> =
            self.table.lock().live.iter().map(|(id, live)| (*id, Arc::clone(live))).collect();
        entries.into_iter().map(|(id, live)| live.view(id)).collect()
    }

    /// How many there are in this direction, those that are being set up included.
    #[must_use]
    pub(crate) fn count(&self, direction: Direction) -> usize {
        self.live().iter().filter(|live| live.parties.lock().direction == direction).count()
    }

    /// Moves the bytes that were relayed since the last time into the metrics.
    pub(crate) fn flush(&self) {
        self.live().iter().for_each(|live| live.meter.flush());
    }

    /// Enters a connection.
    #[must_use]
    pub(crate) fn register(self: &Arc<Self>, parties: Parties) -> Registration {
        let live = Arc::new(Live {
            since: SystemTime::now(),
            parties: Mutex::new(parties),
            meter: Meter::default(),
            closing: Notify::new(),
        });
        let mut table = self.table.lock();
        let id = table.next;
        table.next += 1;
        table.live.insert(id, Arc::clone(&live));
        drop(table);
        Registration { id, connections: Arc::clone(self), live }
    }

    /// A copy, so that no connection waits for a reader.
    fn live(&self) -> Vec<Arc<Live>> {
        self.table.lock().live.values().cloned().collect()
    }
}

impl Registration {
    /// Writes down what has been learnt.
    pub(crate) fn learn(&self, update: impl FnOnce(&mut Parties)) {
        update(&mut self.live.parties.lock());
    }

    /// What is known until now.
    #[must_use]
    pub(crate) fn parties(&self) -> Parties {
        self.live.parties.lock().clone()
    }

    /// Its bytes.
    #[must_use]
    pub(crate) fn meter(&self) -> Metered {
        Metered(Arc::clone(&self.live))
    }

    /// For its task, which awaits it.
    #[must_use]
    pub(crate) fn closing(&self) -> Closing {
        Closing(Arc::clone(&self.live))
    }
}

impl Deref for Metered {
    type Target = Meter;

    fn deref(&self) -> &Meter {
        &self.0.meter
    }
}

impl Closing {
    /// Resolves when somebody wants the connection closed, also where that was before this was called. For one waiter.
    pub(crate) async fn cancelled(&self) {
        self.0.closing.notified().await;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connections.table.lock().live.remove(&self.id);
    }
}

impl Live {
    fn view(&self, id: u64) -> ConnectionView {
        let parties = self.parties.lock().clone();
        ConnectionView::of(id, parties, self.since, self.meter.bytes())
    }
}

impl ConnectionView {
    /// A connection as `parties` know it.
    pub(crate) fn of(id: u64, parties: Parties, since: SystemTime, bytes: Bytes) -> Self {
        Self {
            id,
            direction: parties.direction,
            path: parties.path,
            source: parties.source.address,
            source_workload: full_name(&parties.source),
            destination: parties.application.unwrap_or(parties.destination.address),
            destination_workload: full_name(&parties.destination),
            source_identity: parties.source.identity,
            destination_identity: parties.destination.identity,
            service: parties.service.map(|service| service.hostname.to_string()),
            policy: parties.policy.map(|policy| policy.to_string()),
            since: since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            sent: bytes.sent,
            received: bytes.received,
        }
    }
}

fn full_name(party: &Party) -> Option<String> {
    Some(format!("{}/{}", party.namespace()?, party.name()?))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::proxy::testing;

    fn parties(direction: Direction) -> Parties {
        let mut parties =
            Parties::between(direction, "10.0.0.1:1".parse().unwrap(), "10.0.0.2:15008".parse().unwrap());
        parties.source.workload = Some(testing::workload("client"));
        parties.destination.workload = Some(testing::workload("server"));
        parties.application = Some("10.0.0.2:80".parse().unwrap());
        parties
    }

    #[test]
    fn a_connection_is_listed_until_its_guard_is_dropped() {
        let connections = Arc::new(Connections::new());
        let registration = connections.register(parties(Direction::Inbound));
        registration.learn(|parties| parties.path = Some(Path::Hbone));
        let [view] = &connections.views()[..] else { panic!("not one connection") };
        assert_eq!(view.path, Some(Path::Hbone));
        assert_eq!(view.destination.to_string(), "10.0.0.2:80");
        assert_eq!(view.destination_workload.as_deref(), Some("ns/server"));
        drop(registration);
        assert!(connections.views().is_empty());
    }

    /// One allocation, whoever the parties are: they are shared.
    #[test]
    fn a_live_connection_is_at_most_400_bytes() {
        let bytes = size_of::<Live>();
        assert!(bytes <= 400, "{bytes}");
    }

    #[test]
    fn closing_a_workload_closes_the_connections_it_has_on_this_node() {
        let connections = Arc::new(Connections::new());
        let outbound = connections.register(parties(Direction::Outbound));
        let inbound = connections.register(parties(Direction::Inbound));
        connections.close_workload(&testing::workload("server").uid);
        assert!(inbound.closing().cancelled().now_or_never().is_some());
        let other_nodes = outbound.closing().cancelled().now_or_never();
        assert!(other_nodes.is_none(), "the server of an outbound connection is another node's");
    }
}
