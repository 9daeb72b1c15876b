//! The `baggage` header: how two nodes tell each other which workloads talk, for metrics and logs only.
//!
//! Comma-joined `key=value` with ztunnel's keys (istio/ztunnel `src/baggage.rs`). The other side's is a claim, never an
//! identity: nothing is decided by it, and it is read only where the address told nothing. Values are bounded, since
//! they become label values.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::state::Workload;

/// What a peer says about its workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Baggage {
    /// `k8s.cluster.name`.
    pub(crate) cluster: Option<Arc<str>>,
    /// `k8s.namespace.name`.
    pub(crate) namespace: Option<Arc<str>>,
    /// `k8s.{deployment,cronjob,job,pod}.name`.
    pub(crate) workload_name: Option<Arc<str>>,
    /// `service.name`.
    pub(crate) canonical_name: Option<Arc<str>>,
    /// `service.version`.
    pub(crate) canonical_revision: Option<Arc<str>>,
}

/// The header's value for one of our workloads.
#[must_use]
pub(crate) fn of(workload: &Workload) -> String {
    let name_key = format!("k8s.{}.name", workload.workload_type);
    let entries: [(&str, &str); 6] = [
        ("k8s.cluster.name", &workload.cluster),
        ("k8s.namespace.name", &workload.namespace),
        (&name_key, workload.workload_name()),
        ("service.name", workload.canonical_name()),
        ("service.version", &workload.canonical_revision),
        ("cloud.availability_zone", &workload.zone),
    ];
    let mut value = String::with_capacity(192);
    for (key, text) in entries.into_iter().filter(|(key, text)| is_plain(key) && is_plain(text)) {
        let comma = if value.is_empty() { "" } else { "," };
        write!(value, "{comma}{key}={text}").expect("writing to a String cannot fail");
    }
    value
}

impl Baggage {
    /// Reads a header's value. Unknown keys, empty values and values no Kubernetes object could have are passed over.
    #[must_use]
    pub(crate) fn parse(value: &str) -> Self {
        let mut baggage = Self::default();
        let entries = value.get(..MAX_LEN).unwrap_or(value).split(',').take(MAX_ENTRIES);
        for (key, text) in entries.filter_map(|entry| entry.trim().split_once('=')) {
            if let Some(field) = baggage.field(key).filter(|_| is_plain(text)) {
                *field = Some(text.into());
            }
        }
        baggage
    }

    fn field(&mut self, key: &str) -> Option<&mut Option<Arc<str>>> {
        match key {
            "k8s.cluster.name" => Some(&mut self.cluster),
            "k8s.namespace.name" => Some(&mut self.namespace),
            "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.job.name" | "k8s.pod.name" => {
                Some(&mut self.workload_name)
            }
            "service.name" => Some(&mut self.canonical_name),
            "service.version" => Some(&mut self.canonical_revision),
            _ => None,
        }
    }
}

/// What peers have said, as they said it and as it was read: a workload says the same on each of its connections, which share
/// it. Written and read by inbound connections; bounded, since peers choose it.
#[derive(Debug, Default)]
pub(crate) struct Told {
    read: Mutex<Read>,
}

#[derive(Debug)]
struct Read {
    by_text: HashMap<Box<str>, Arc<Baggage>>,
    /// How many there may be before those are looked for that no connection has any more.
    looked_for_at: usize,
}

impl Default for Read {
    fn default() -> Self {
        Self { by_text: HashMap::new(), looked_for_at: FEW_TELLERS }
    }
}

impl Read {
    /// Forgets what is nobody's, each time that twice as much is kept as was somebody's the last time.
    fn forget(&mut self) {
        if self.by_text.len() >= self.looked_for_at {
            self.by_text.retain(|_, baggage| Arc::strong_count(baggage) > 1);
            self.looked_for_at = (2 * self.by_text.len()).clamp(FEW_TELLERS, MAX_TELLERS);
        }
    }
}

impl Told {
    /// [`Baggage::parse`], once for all who say the same.
    pub(crate) fn read(&self, value: &str) -> Arc<Baggage> {
        if value.len() > MAX_TOLD {
            return Arc::new(Baggage::parse(value));
        }
        let mut read = self.read.lock();
        if let Some(same) = read.by_text.get(value) {
            return Arc::clone(same);
        }
        read.forget();
        let baggage = Arc::new(Baggage::parse(value));
        if read.by_text.len() < MAX_TELLERS {
            read.by_text.insert(value.into(), Arc::clone(&baggage));
        }
        baggage
    }
}

/// What names and label values of Kubernetes are made of; nothing that would need escaping in the header.
fn is_plain(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    (1..=MAX_VALUE).contains(&text.len()) && text.bytes().all(legal)
}

/// RFC 1123 names end at 253.
const MAX_VALUE: usize = 253;
/// W3C Baggage §3.3.2 asks for at least 8192 bytes; what is longer is read up to there.
const MAX_LEN: usize = 8192;
/// W3C Baggage §3.3.2 asks for at least 64.
const MAX_ENTRIES: usize = 64;
/// Bytes of what is kept as it was said; ours has 200.
const MAX_TOLD: usize = 1024;
/// Workloads whose baggage is kept: more than a node's pods are called by at a time.
const MAX_TELLERS: usize = 1024;
/// As many may stay that nobody has.
const FEW_TELLERS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ztunnels_form_is_read() {
        let baggage = Baggage::parse(
            "k8s.cluster.name=K1,k8s.namespace.name=NS1,k8s.deployment.name=N1,service.name=N2,service.version=V1",
        );
        assert_eq!(baggage.cluster.as_deref(), Some("K1"));
        assert_eq!(baggage.namespace.as_deref(), Some("NS1"));
        assert_eq!(baggage.workload_name.as_deref(), Some("N1"));
        assert_eq!(baggage.canonical_name.as_deref(), Some("N2"));
        assert_eq!(baggage.canonical_revision.as_deref(), Some("V1"));
    }

    #[test]
    fn empty_and_overlong_values_tell_nothing() {
        let value = format!("k8s.cluster.name=,service.name={},service.version", "a".repeat(300));
        assert_eq!(Baggage::parse(&value), Baggage::default());
    }

    #[test]
    fn values_that_would_break_the_header_are_left_out() {
        assert!(!is_plain("a,b=c") && !is_plain("a\r\nb") && is_plain("web-v1.2"));
    }

    #[test]
    fn what_is_told_twice_is_read_once_and_strangers_fill_no_memory() {
        let told = Told::default();
        let held = told.read("service.name=held");
        for i in 0..3 * MAX_TELLERS {
            told.read(&format!("service.name=s{i}"));
            assert!(told.read.lock().by_text.len() <= FEW_TELLERS, "nobody has them any more");
        }
        let all: Vec<_> = (0..2 * MAX_TELLERS).map(|i| told.read(&format!("service.name=h{i}"))).collect();
        assert_eq!(told.read.lock().by_text.len(), MAX_TELLERS, "all of {} are somebody's", all.len());
        assert!(Arc::ptr_eq(&held, &told.read("service.name=held")));
        let long = format!("service.name={}", "a,".repeat(MAX_TOLD));
        assert!(!Arc::ptr_eq(&told.read(&long), &told.read(&long)));
    }

    proptest! {
        #[test]
        fn any_header_is_read_within_bounds(value in "\\PC{0,600}") {
            let baggage = Baggage::parse(&value);
            for text in [baggage.cluster, baggage.namespace, baggage.workload_name].into_iter().flatten() {
                prop_assert!(text.len() <= MAX_VALUE);
            }
        }
    }
}
