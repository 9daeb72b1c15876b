//! Connections that wait: to addresses inside the cluster of which the source has not told yet, and to servers whose node's
//! engine is away. Counted, and the first kind told of once.
//!
//! In clear they never go out (see `outbound::waiting` and `outbound::absence`). The first that was refused since nobody
//! told of its address is logged as a warning: it may mean that a range is wrong. Each has a line in the access log.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tracing::warn;

use crate::state::RangeKind;
use crate::telemetry::Registry;

type Labels = [(&'static str, &'static str); 2];

/// Written by each connection that waited; read at scrape.
#[derive(Debug)]
pub struct Awaited {
    ended: Family<Labels, Counter>,
    engines: Family<[(&'static str, &'static str); 1], Counter>,
    is_told: AtomicBool,
}

/// What became of the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// The address is known, or the engine back.
    Known,
    /// It was not in time, or too many wait.
    Refused,
}

impl Awaited {
    /// Registers `signet_awaited_destinations_total` and `signet_awaited_engines_total`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let ended = Family::<Labels, Counter>::default();
        registry.register(
            "signet_awaited_destinations",
            "Connections to addresses inside the cluster of which the source had not told yet, by what became of them",
            ended.clone(),
        );
        let engines = Family::default();
        registry.register(
            "signet_awaited_engines",
            "Connections to servers whose node's engine did not listen, by what became of them",
            engines.clone(),
        );
        Self { ended, engines, is_told: AtomicBool::new(false) }
    }

    pub(super) fn engine_ended(&self, waited: Waited) {
        let result = if waited == Waited::Known { "back" } else { "refused" };
        self.engines.get_or_create(&[("result", result)]).inc();
    }

    pub(super) fn ended(&self, kind: RangeKind, address: IpAddr, waited: Waited) {
        let result = if waited == Waited::Known { "known" } else { "refused" };
        self.ended.get_or_create(&[("kind", name(kind)), ("result", result)]).inc();
        if waited == Waited::Refused && !self.is_told.swap(true, Ordering::Relaxed) {
            warn!(
                %address,
                kind = name(kind),
                "nobody has told of an address inside the cluster: connections to it are refused; where it is neither \
                 a Service's nor a pod's, name it in mesh.outsideRanges (told once; the access log has each)"
            );
        }
    }
}

/// What an address is waited for as.
pub(super) fn name(kind: RangeKind) -> &'static str {
    match kind {
        RangeKind::Services => "service",
        RangeKind::Pods => "pod",
        RangeKind::Outside => "outside",
    }
}
