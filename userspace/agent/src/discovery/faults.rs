//! Objects that cannot be understood: how many there are, as a metric that all sources share.

use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::Registry;

/// `signet_source_faults`.
pub(crate) fn register(registry: &mut Registry) -> Gauge {
    let faults = Gauge::default();
    let help = "Files and objects of the source that cannot be taken as they are";
    registry.register("signet_source_faults", help, faults.clone());
    faults
}
