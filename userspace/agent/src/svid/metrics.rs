//! `signet_svid*` and `signet_ca_*`: what Istio has no name for.
//!
//! What is counted lives in families that the store updates. What is a state (expiry, status) is read from the store at
//! each scrape, so that no series can outlive its workload.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::{CertificateView, FetchError, Status};
use crate::telemetry::Registry;

type ResultLabel = [(&'static str, &'static str); 1];

/// What is counted. Written by the store's task.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    requests: Family<ResultLabel, Counter>,
    durations: Histogram,
    rotations: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        // 5 ms to 20 s, where an attempt ends.
        let durations = Histogram::new(exponential_buckets(0.005, 2.0, 13));
        let metrics = Self { requests: Family::default(), durations, rotations: Counter::default() };
        registry.register(
            "signet_ca_requests",
            "Attempts to fetch an SVID, by how they ended",
            metrics.requests.clone(),
        );
        registry.register(
            "signet_ca_request_duration_seconds",
            "How long attempts to fetch an SVID took",
            metrics.durations.clone(),
        );
        registry.register(
            "signet_svid_rotations",
            "SVIDs that replaced one which still served",
            metrics.rotations.clone(),
        );
        metrics
    }

    pub(super) fn attempted(&self, error: Option<&FetchError>, took: Duration) {
        let result = error.map_or("ok", FetchError::label);
        self.requests.get_or_create(&[("result", result)]).inc();
        self.durations.observe(took.as_secs_f64());
    }

    pub(super) fn rotated(&self) {
        self.rotations.inc();
    }
}

/// What is read at each scrape.
pub(super) struct States<F>(pub(super) F);

impl<F: Fn() -> Vec<CertificateView> + Send + Sync + 'static> Collector for States<F> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let views = (self.0)();
        encode_expiries(&mut encoder, &views)?;
        encode_statuses(&mut encoder, &views)
    }
}

impl<F> fmt::Debug for States<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("States")
    }
}

fn encode_expiries(encoder: &mut DescriptorEncoder, views: &[CertificateView]) -> Result<(), fmt::Error> {
    let help = "When each workload's SVID expires, seconds since 1970";
    let mut family = encoder.encode_descriptor("signet_svid_expiry_seconds", help, None, GAUGE)?;
    for view in views {
        let Some(not_after) = view.not_after else { continue };
        let labels = [("workload", view.workload.as_str()), ("spiffe_id", view.id.as_str())];
        let not_after = i64::try_from(not_after).unwrap_or(i64::MAX);
        ConstGauge::new(not_after).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_statuses(encoder: &mut DescriptorEncoder, views: &[CertificateView]) -> Result<(), fmt::Error> {
    let mut counts = BTreeMap::from(Status::ALL.map(|status| (status.as_str(), 0i64)));
    for view in views {
        *counts.entry(view.status.as_str()).or_default() += 1;
    }
    let help = "Workloads by the status of their SVID";
    let mut family = encoder.encode_descriptor("signet_svids", help, None, GAUGE)?;
    for (status, count) in counts {
        ConstGauge::new(count).encode(family.encode_family(&[("status", status)])?)?;
    }
    Ok(())
}

const GAUGE: MetricType = MetricType::Gauge;
