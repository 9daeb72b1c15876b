//! Istio's TCP metrics, under Istio's names and labels (istio/ztunnel `src/proxy/metrics.rs`).
//!
//! One table from label set to five counters, so that a connection looks its labels up once and adds to atomics after
//! that. The bytes of live connections are moved into the counters at each scrape: there is no timer, and a download of
//! an hour is seen while it runs. Where there are many label sets, those that rest are forgotten, or a node that Jobs come
//! to would fill the table with names that nobody asks for any more. `received` is what the server received and `sent` what
//! it sent, on both reporters: Istio's convention (istio/istio#32399).

mod labels;

use std::collections::HashMap;
use std::fmt::Error;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

pub(crate) use self::labels::{Labels, ResponseFlags};

use self::labels::Reporter;
use super::connections::{Connections, Direction};
use super::direct::Direct;
use crate::telemetry::Registry;

/// The metric families of connections. Written by each connection's outcome and at scrape; read at scrape.
#[derive(Debug)]
pub struct Metrics {
    table: Arc<Table>,
}

/// The counters of one label set.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// A label set's place in the table.
#[derive(Debug, Default)]
struct Entry {
    counters: Arc<Counters>,
    /// By the last scrape; `None` before the first.
    scraped: Option<Scraped>,
}

/// What a scrape has found.
#[derive(Clone, Copy, Debug)]
struct Scraped {
    /// All of them together.
    sum: u64,
    /// When it was first seen.
    since: Instant,
}

#[derive(Debug)]
struct Table {
    /// Bounded by [`MAX_LABEL_SETS`].
    counters: RwLock<HashMap<Labels, Entry>>,
    connections: Arc<Connections>,
    /// Asked at each scrape, as `connections` are. It has these metrics, so they do not have it.
    direct: OnceLock<Weak<Direct>>,
}

impl Metrics {
    /// Registers `istio_tcp_*` in `registry`. The bytes of `connections` are counted at each scrape, while they live.
    #[must_use]
    pub fn new(registry: &mut Registry, connections: Arc<Connections>) -> Self {
        let table = Arc::new(Table { counters: RwLock::default(), connections, direct: OnceLock::new() });
        registry.sub_registry_with_prefix("istio").register_collector(Box::new(Arc::clone(&table)));
        Self { table }
    }

    /// From now on direct connections are counted too.
    pub(super) fn ask(&self, direct: &Arc<Direct>) {
        // There is one for the node; a second would be a mistake that must not count twice.
        let _ = self.table.direct.set(Arc::downgrade(direct));
    }

    /// The counters of a label set. Where there are too many sets already, those of its summary.
    #[must_use]
    pub(crate) fn counters(&self, labels: Labels) -> Arc<Counters> {
        if let Some(entry) = self.table.counters.read().get(&labels) {
            return Arc::clone(&entry.counters);
        }
        let mut table = self.table.counters.write();
        let labels = if table.len() < MAX_LABEL_SETS { labels } else { labels.summary() };
        Arc::clone(&table.entry(labels).or_default().counters)
    }
}

impl Counters {
    /// A connection was established.
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    /// An established connection ended.
    pub(crate) fn closed(&self) {
        self.closed.fetch_add(1, Relaxed);
    }

    /// A connection was not established.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Bytes from client to server, and back.
    pub(crate) fn add_bytes(&self, to_server: u64, to_client: u64) {
        self.received.fetch_add(to_server, Relaxed);
        self.sent.fetch_add(to_client, Relaxed);
    }

    fn sum(&self) -> u64 {
        let each = [&self.opened, &self.closed, &self.failed, &self.received, &self.sent];
        each.iter().fold(0, |sum, counter| sum.wrapping_add(counter.load(Relaxed)))
    }
}

impl Entry {
    /// A connection has it.
    fn is_held(&self) -> bool {
        Arc::strong_count(&self.counters) > 1
    }

    /// It has changed since the scrape before, or not for less than [`FORGOTTEN_AFTER`]. Asked once at each scrape.
    fn is_fresh(&mut self, now: Instant) -> bool {
        let sum = self.counters.sum();
        let same = self.scraped.filter(|scraped| scraped.sum == sum);
        let since = self.scraped.insert(same.unwrap_or(Scraped { sum, since: now })).since;
        now.saturating_duration_since(since) < FORGOTTEN_AFTER
    }
}

impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.connections.flush();
        let direct = self.direct.get().and_then(Weak::upgrade);
        if let Some(direct) = &direct {
            direct.flush();
        }
        self.encode_open(&mut encoder, direct.map_or(0, |direct| direct.count_open()))?;
        self.forget(Instant::now());
        let counters = self.counters.read();
        for (name, help, value) in FAMILIES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, entry) in counters.iter() {
                match value(&entry.counters).load(Relaxed) {
                    0 => {}
                    count => ConstCounter::new(count).encode(family.encode_family(labels)?)?,
                }
            }
        }
        Ok(())
    }
}

impl Table {
    /// Where there are many label sets, lets those go that no connection has and whose counters rest. One that comes back begins
    /// at zero, as after a restart of the engine; so those of a CronJob are not forgotten where there is room.
    fn forget(&self, now: Instant) {
        let mut table = self.counters.write();
        let are_many = table.len() > MANY_LABEL_SETS;
        // Every set is looked at, and whether it is held first: whoever lets go has counted before.
        table.retain(|_, entry| entry.is_held() | entry.is_fresh(now) || !are_many);
        if table.capacity() > 4 * table.len() {
            table.shrink_to_fit();
        }
    }

    /// Counted and not kept, so that it cannot drift from the connections there are.
    fn encode_open(&self, encoder: &mut DescriptorEncoder<'_>, direct: u64) -> Result<(), Error> {
        let help = "The number of TCP connections that are open now";
        let mut family = encoder.encode_descriptor("tcp_sockets_open", help, None, MetricType::Gauge)?;
        for direction in [Direction::Outbound, Direction::Inbound] {
            let open = self.connections.count(direction) as u64 + direct;
            let open = i64::try_from(open).unwrap_or(i64::MAX);
            ConstGauge::new(open)
                .encode(family.encode_family(&[("reporter", Reporter::from(direction))])?)?;
        }
        Ok(())
    }
}

type Family = (&'static str, &'static str, fn(&Counters) -> &AtomicU64);

/// Name without prefix and `_total`, help, value.
const FAMILIES: [Family; 5] = [
    ("tcp_connections_opened", "The total number of TCP connections opened", |c| &c.opened),
    ("tcp_connections_closed", "The total number of TCP connections closed", |c| &c.closed),
    ("tcp_connections_failed", "The total number of TCP connections that failed to establish", |c| &c.failed),
    ("tcp_received_bytes", "The total bytes that servers received over TCP connections", |c| &c.received),
    ("tcp_sent_bytes", "The total bytes that servers sent over TCP connections", |c| &c.sent),
];

/// About 30 MB of labels, and as much as a Prometheus server takes from one target; peers' baggage must not fill memory.
const MAX_LABEL_SETS: usize = 20_000;
/// Some 2 MB of labels.
const MANY_LABEL_SETS: usize = 2_000;
/// What nobody has changed for so long was read by every scraper that there is.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::parties::{Direction, Parties, Path};
    use crate::proxy::testing;
    use crate::telemetry;

    fn parties(name: &str) -> Parties {
        let address = "10.0.0.1:1".parse().unwrap();
        let mut parties = Parties::between(Direction::Inbound, address, address);
        parties.path = Some(Path::Hbone);
        for (party, name) in [(&mut parties.source, name), (&mut parties.destination, "server")] {
            let workload = testing::workload(name);
            party.identity = Some(workload.identity.clone());
            party.workload = Some(workload);
        }
        parties
    }

    #[test]
    fn a_sample_has_istios_name_and_labels_in_istios_order() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, Arc::default());
        metrics.counters(Labels::of(&parties("client"), ResponseFlags::None)).opened();
        let text = telemetry::encode(&registry);
        let sample =
            text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).unwrap();
        assert_eq!(
            sample,
            "istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"client\",\
             source_canonical_service=\"client\",source_canonical_revision=\"v1\",\
             source_workload_namespace=\"ns\",source_principal=\"spiffe://cluster.local/ns/ns/sa/client\",\
             source_app=\"client\",source_version=\"v1\",source_cluster=\"Kubernetes\",\
             destination_service=\"unknown\",destination_service_namespace=\"unknown\",\
             destination_service_name=\"unknown\",destination_workload=\"server\",\
             destination_canonical_service=\"server\",destination_canonical_revision=\"v1\",\
             destination_workload_namespace=\"ns\",\
             destination_principal=\"spiffe://cluster.local/ns/ns/sa/server\",destination_app=\"server\",\
             destination_version=\"v1\",destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",\
             response_flags=\"-\",connection_security_policy=\"mutual_tls\"} 1"
        );
    }

    #[test]
    fn what_is_open_is_what_is_listed() {
        let mut registry = Registry::default();
        let connections = Arc::new(Connections::new());
        let _metrics = Metrics::new(&mut registry, Arc::clone(&connections));
        let registered = connections.register(parties("client"));
        let open = |count| format!("istio_tcp_sockets_open{{reporter=\"destination\"}} {count}\n");
        assert!(telemetry::encode(&registry).contains(&open(1)), "{}", telemetry::encode(&registry));
        drop(registered);
        let text = telemetry::encode(&registry);
        assert!(text.contains(&open(0)) && text.contains("reporter=\"source\"} 0\n"), "{text}");
    }

    #[test]
    fn of_many_label_sets_those_that_rest_for_an_hour_are_forgotten() {
        let metrics = Metrics::new(&mut Registry::default(), Arc::default());
        let of = |name: &str| metrics.counters(Labels::of(&parties(name), ResponseFlags::None));
        let start = Instant::now();
        let left = |after: u64| {
            metrics.table.forget(start + Duration::from_secs(after));
            metrics.table.counters.read().len()
        };
        let held = of("held");
        of("back").opened();
        assert_eq!((left(0), left(8000)), (2, 2), "they are few");
        (0..MANY_LABEL_SETS).for_each(|number| of(&format!("gone-{number}")).opened());
        of("back").opened();
        assert_eq!((left(8000), left(11_599)), (MANY_LABEL_SETS + 2, MANY_LABEL_SETS + 2));
        of("back").opened();
        assert_eq!(left(11_600), 2, "one has changed since, a connection has the other");
        assert_eq!(of("back").opened.load(Relaxed), 3);
        assert_eq!(held.opened.load(Relaxed), 0);
    }

    #[test]
    fn beyond_the_bound_connections_are_counted_without_names() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, Arc::default());
        let count = MAX_LABEL_SETS + 50;
        for number in 0..count {
            let labels = Labels::of(&parties(&format!("client-{number}")), ResponseFlags::None);
            metrics.counters(labels).opened();
        }
        let table = metrics.table.counters.read();
        assert_eq!(table.len(), MAX_LABEL_SETS + 1, "the sets, and their summary");
        let opened: u64 = table.values().map(|entry| entry.counters.opened.load(Relaxed)).sum();
        assert_eq!(opened, u64::try_from(count).unwrap());
    }
}
