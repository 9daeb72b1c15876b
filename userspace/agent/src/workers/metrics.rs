//! How many connections each worker serves, counted when Prometheus asks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Worker, Workers};

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Connections that a worker serves now, without tunnels at rest";
        let mut family =
            encoder.encode_descriptor("signet_worker_connections", help, None, MetricType::Gauge)?;
        for (number, load) in self.all.iter().map(|worker| Worker::load(worker)).enumerate() {
            let gauge = ConstGauge::new(i64::try_from(load).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("worker", number.to_string())])?)?;
        }
        Ok(())
    }
}
