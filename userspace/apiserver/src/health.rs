//! How the connection to the API server is: for readiness, `signet status` and the metrics below a prefix (`signet_source_*`).
//!
//! Each follower writes its own kind's line, views read all of them. The lock is held for a few assignments.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing::{info, warn};

use crate::fault::Fault;

type KindLabel = [(&'static str, &'static str); 1];
type ErrorLabels = [(&'static str, &'static str); 2];

/// All kinds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    lines: Arc<Mutex<BTreeMap<&'static str, Line>>>,
    metrics: Metrics,
}

/// One kind's line: written by its follower alone.
#[derive(Clone, Debug)]
pub struct KindHealth {
    kind: &'static str,
    health: Health,
}

/// How one kind is.
#[derive(Clone, Debug, Default)]
struct Line {
    listed: bool,
    /// Since when it is not connected, and why.
    fault: Option<(Instant, String)>,
}

#[derive(Clone, Debug, Default)]
struct Metrics {
    connected: Family<KindLabel, Gauge>,
    last_event: Family<KindLabel, Gauge>,
    lists: Family<KindLabel, Counter>,
    errors: Family<ErrorLabels, Counter>,
}

impl Health {
    /// Its metrics begin with `prefix`.
    pub fn register(registry: &mut Registry, prefix: &str) -> Self {
        let metrics = Metrics::default();
        let name = |what: &str| format!("{prefix}_{what}");
        let mut gauge = |what, help, gauge: &Family<KindLabel, Gauge>| {
            registry.register(name(what), help, gauge.clone());
        };
        gauge("connected", "1 while changes of the kind are heard", &metrics.connected);
        gauge(
            "last_event_timestamp_seconds",
            "When the API server last said something of the kind, bookmarks included",
            &metrics.last_event,
        );
        registry.register(
            name("lists"),
            "Complete lists of the kind; all but the first because the place in the watch was lost",
            metrics.lists.clone(),
        );
        registry.register(
            name("errors"),
            "Lists and watches of the kind that failed, by reason",
            metrics.errors.clone(),
        );
        Self { lines: Arc::default(), metrics }
    }

    /// A line for a kind.
    #[must_use]
    pub fn kind(&self, kind: &'static str) -> KindHealth {
        self.lines.lock().insert(kind, Line::default());
        KindHealth { kind, health: self.clone() }
    }

    /// A kind is not followed any more.
    pub fn forget(&self, kind: &'static str) {
        self.lines.lock().remove(kind);
        self.metrics.connected.remove(&[("kind", kind)]);
        self.metrics.last_event.remove(&[("kind", kind)]);
    }

    /// Whether every kind has been listed once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lines.lock().values().all(|line| line.listed)
    }

    /// Whether every kind is heard, and in words what is missing.
    #[must_use]
    pub fn summary(&self) -> (bool, String) {
        let lines = self.lines.lock();
        let broken: Vec<_> =
            lines.iter().filter_map(|(kind, line)| Some((kind, line.fault.as_ref()?))).collect();
        let unlisted: Vec<_> = lines.iter().filter(|(_, line)| !line.listed).map(|(kind, _)| *kind).collect();
        match (broken.is_empty(), unlisted.is_empty()) {
            (true, true) => (true, format!("the API server is heard ({} kinds)", lines.len())),
            (true, false) => (false, format!("the first list is missing of {}", unlisted.join(", "))),
            (false, _) => (false, outage(&broken, unlisted.is_empty())),
        }
    }
}

/// The oldest fault speaks for all; the others are named.
fn outage(broken: &[(&&'static str, &(Instant, String))], all_listed: bool) -> String {
    let Some((_, (since, why))) = broken.iter().min_by_key(|(_, (since, _))| *since) else {
        return String::new();
    };
    let seconds = since.elapsed().as_secs();
    let kinds: Vec<&str> = broken.iter().map(|(kind, _)| **kind).collect();
    let meanwhile = if all_listed { "what was known stays in force" } else { "not all is known yet" };
    format!("for {seconds} s not heard of {}: {why}; {meanwhile}", kinds.join(", "))
}

impl KindHealth {
    /// A list is complete.
    pub fn listed(&self) {
        self.health.metrics.lists.get_or_create(&[("kind", self.kind)]).inc();
        self.line(|line| line.listed = true);
        self.connected();
    }

    /// The API server does not have the kind, and need not.
    pub(crate) fn missing(&self) {
        info!(kind = self.kind, "the API server does not have this kind: not followed");
        self.listed();
    }

    /// Changes are heard from here on.
    pub fn connected(&self) {
        if let Some((since, _)) = self.line(|line| line.fault.take()) {
            info!(kind = self.kind, after = ?since.elapsed(), "API server heard again");
        }
        self.health.metrics.connected.get_or_create(&[("kind", self.kind)]).set(1);
        self.heard();
    }

    /// Something came.
    pub(crate) fn heard(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.health.metrics.last_event.get_or_create(&[("kind", self.kind)]).set(now);
    }

    /// A list or watch failed. Logged when the reason is another.
    pub fn failed(&self, fault: &Fault) {
        self.health.metrics.connected.get_or_create(&[("kind", self.kind)]).set(0);
        self.health.metrics.errors.get_or_create(&[("kind", self.kind), ("reason", fault.label())]).inc();
        let why = fault.to_string();
        let told = self.line(|line| match &mut line.fault {
            Some((_, known)) if *known == why => true,
            Some((_, known)) => {
                known.clone_from(&why);
                false
            }
            fault @ None => {
                *fault = Some((Instant::now(), why.clone()));
                false
            }
        });
        if !told {
            warn!(kind = self.kind, error = why, "API server not heard");
        }
    }

    fn line<R>(&self, act: impl FnOnce(&mut Line) -> R) -> R {
        act(self.health.lines.lock().entry(self.kind).or_default())
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::fault::Access;
    use crate::resource::Resource;

    fn forbidden() -> Fault {
        let pods = Resource { group: "", kind: "Pod", plural: "pods" };
        let status = Status { code: 403, ..Status::failure("u cannot list", "Forbidden") };
        Fault::of(Access::everywhere("list", &pods), "signetd", &kube::Error::Api(status.boxed()), true)
    }

    #[test]
    fn an_outage_is_told_until_it_ends() {
        let health = Health::register(&mut Registry::default(), "signet_source");
        let pods = health.kind("Pod");
        assert!(health.summary().1.contains("first list is missing of Pod"));
        pods.listed();
        assert_eq!(health.summary(), (true, "the API server is heard (1 kinds)".into()));
        pods.failed(&forbidden());
        let (ok, text) = health.summary();
        assert!(!ok && text.contains("Pod") && text.contains("stays in force"), "{text}");
        pods.connected();
        assert!(health.summary().0);
    }

    #[test]
    fn a_right_that_is_missing_at_start_is_told_with_what_it_keeps_waiting() {
        let health = Health::register(&mut Registry::default(), "signet_source");
        health.kind("Pod").failed(&forbidden());
        let (ok, text) = health.summary();
        assert!(!ok && text.contains("\"list\" on pods") && text.contains("not all is known"), "{text}");
    }
}
