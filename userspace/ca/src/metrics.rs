//! What the CA counts: certificates, refusals by reason, time, and the expiries one wants to be woken for.
//!
//! Labels have few values that are known beforehand: no identity, node or address is one, so that a hostile caller cannot
//! grow the registry. Who got what is in the access log.

use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use time::OffsetDateTime;

use crate::refusal::Refusal;

/// The CA's metrics. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    issued: Counter,
    refused: Family<Reason, Counter>,
    duration: Histogram,
    handshakes_failed: Counter,
    issuer_expiry: Gauge,
    serving_expiry: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            issued: Counter::default(),
            refused: Family::default(),
            duration: Histogram::new(DURATIONS),
            handshakes_failed: Counter::default(),
            issuer_expiry: Gauge::default(),
            serving_expiry: Gauge::default(),
        };
        registry.register("signet_ca_issued", "SVIDs signed", metrics.issued.clone());
        registry.register("signet_ca_refused", "Requests refused, by reason", metrics.refused.clone());
        registry.register_with_unit(
            "signet_ca_issue_duration",
            "Time from a request to its answer, refusals included",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "signet_ca_handshakes_failed",
            "Connections that ended before TLS was established",
            metrics.handshakes_failed.clone(),
        );
        registry.register(
            "signet_ca_root_expiry_timestamp_seconds",
            "When the first of the certificates above an SVID expires, Unix time",
            metrics.issuer_expiry.clone(),
        );
        registry.register(
            "signet_ca_serving_expiry_timestamp_seconds",
            "When the CA's own TLS certificate expires, Unix time",
            metrics.serving_expiry.clone(),
        );
        metrics
    }

    pub(crate) fn issued(&self, took: Duration) {
        self.issued.inc();
        self.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn refused(&self, refusal: &Refusal, took: Duration) {
        self.refused.get_or_create(&Reason { reason: refusal.label() }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    pub(crate) fn set_issuer_expiry(&self, at: OffsetDateTime) {
        self.issuer_expiry.set(at.unix_timestamp());
    }

    pub(crate) fn set_serving_expiry(&self, at: OffsetDateTime) {
        self.serving_expiry.set(at.unix_timestamp());
    }

    /// Whether there are certificates to sign and to serve with.
    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        let now = OffsetDateTime::from(now).unix_timestamp();
        self.issuer_expiry.get() > now && self.serving_expiry.get() > now
    }
}

/// In seconds. A signature takes a millisecond; what waits for the inventory up to half a second.
const DURATIONS: [f64; 9] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];
