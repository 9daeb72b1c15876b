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
    reviews: Family<Outcome, Counter>,
    publications: Family<Outcome, Counter>,
    unpublished: Gauge,
    root_stored: Gauge,
    duration: Histogram,
    handshakes_failed: Counter,
    issuer_expiry: Gauge,
    serving_expiry: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What became of a token that was to be reviewed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reviewed {
    /// The API server vouches for it.
    Accepted,
    /// It did, a moment ago.
    Remembered,
    /// It is no good.
    Refused,
    /// Nobody could say.
    Unavailable,
}

/// What became of a ConfigMap.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Published {
    /// It was not there.
    Created,
    /// It held something else.
    PutBack,
    /// The API server refused, or is away.
    Failed,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            issued: Counter::default(),
            refused: Family::default(),
            reviews: Family::default(),
            publications: Family::default(),
            unpublished: Gauge::default(),
            root_stored: Gauge::default(),
            duration: Histogram::new(DURATIONS),
            handshakes_failed: Counter::default(),
            issuer_expiry: Gauge::default(),
            serving_expiry: Gauge::default(),
        };
        registry.register("signet_ca_issued", "SVIDs signed", metrics.issued.clone());
        registry.register("signet_ca_refused", "Requests refused, by reason", metrics.refused.clone());
        registry.register(
            "signet_ca_token_reviews",
            "Tokens of nodes by what the API server said of them",
            metrics.reviews.clone(),
        );
        registry.register(
            "signet_ca_publications",
            "Writes of the ConfigMap with the roots, by what became of them",
            metrics.publications.clone(),
        );
        registry.register(
            "signet_ca_namespaces_unpublished",
            "Namespaces whose ConfigMap does not hold the roots",
            metrics.unpublished.clone(),
        );
        registry.register(
            "signet_ca_root_stored",
            "1 while the Secret holds the root that this replica signs with",
            metrics.root_stored.clone(),
        );
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

    pub(crate) fn reviewed(&self, reviewed: Reviewed) {
        let outcome = match reviewed {
            Reviewed::Accepted => "accepted",
            Reviewed::Remembered => "remembered",
            Reviewed::Refused => "refused",
            Reviewed::Unavailable => "unavailable",
        };
        self.reviews.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn published(&self, published: Published) {
        let outcome = match published {
            Published::Created => "created",
            Published::PutBack => "put_back",
            Published::Failed => "failed",
        };
        self.publications.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn set_unpublished(&self, namespaces: usize) {
        self.unpublished.set(i64::try_from(namespaces).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_root_stored(&self, stored: bool) {
        self.root_stored.set(i64::from(stored));
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
