//! How much the inventory holds, counted when Prometheus asks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Reader;

impl Collector for Reader {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (workloads, identities) = self.size();
        let mut gauge = |name, help, count| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        gauge("signet_ca_workloads", "Workloads that are on a node", workloads)?;
        gauge(
            "signet_ca_identities",
            "Identities that some node may ask for, counted for each node",
            identities,
        )
    }
}
