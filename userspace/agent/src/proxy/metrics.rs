//! Istio's TCP metrics, under Istio's names and labels (H6).

use crate::telemetry::Registry;

/// The metric families of connections. Written by each connection's outcome and by one reporting task; read at scrape.
#[derive(Debug)]
pub struct Metrics {}

impl Metrics {
    /// Registers `istio_tcp_*` in `registry`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let _ = registry;
        todo!("H6")
    }
}
