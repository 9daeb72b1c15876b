//! Istio's TCP metrics, under Istio's names and labels (H6).

use std::sync::Arc;

use super::connections::Connections;
use crate::telemetry::Registry;

/// The metric families of connections. Written by each connection's outcome and by one reporting task; read at scrape.
#[derive(Debug)]
pub struct Metrics {}

impl Metrics {
    /// Registers `istio_tcp_*` in `registry`. The bytes of `connections` are counted at each scrape, while they live.
    #[must_use]
    pub fn new(registry: &mut Registry, connections: Arc<Connections>) -> Self {
        let _ = (registry, connections);
        todo!("H6")
    }
}
