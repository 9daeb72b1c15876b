//! The programs' counters and the maps' occupancy, read when Prometheus asks.
//!
//! Nothing is cached: the counters are per-CPU slots that outlive the process with their pins, so a restart does not set
//! them back. Counting a map's entries walks its keys, a system call each.

use std::fmt;

use aya::maps::{HashMap, MapData, PerCpuArray};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use signet_common::abi::{Flow, MAX_FLOWS, MAX_PORTS, MAX_WORKLOADS, Workload};
use signet_common::counter::{
    DIRECT_EVENTS_LOST, EVENTS_LOST, FAULT_LABELS, UNPROTECTED_LABELS, VERDICT_LABELS,
};
use signet_common::direct::{Direct, MAX_DIRECT, MAX_PERMITS, MAX_SERVICES, Permit, Permitted, Service, Vip};

use super::error::KernelError;
use super::maps::{Flows, Ports};
use super::object::Pins;

/// The collector. Handles of its own, shared with nobody.
pub(super) struct Capture {
    counters: PerCpuArray<MapData, u64>,
    workloads: HashMap<MapData, u64, Workload>,
    flows: Flows,
    ports: Ports,
    direct: HashMap<MapData, Flow, Direct>,
    permits: HashMap<MapData, Permitted, Permit>,
    services: HashMap<MapData, Vip, Service>,
}

impl Capture {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            counters: pins.open("COUNTERS")?,
            workloads: pins.open("WORKLOADS")?,
            flows: pins.open("FLOWS")?,
            ports: pins.open("PORTS")?,
            direct: pins.open("DIRECT")?,
            permits: pins.open("PERMITS")?,
            services: pins.open("SERVICES")?,
        })
    }

    /// A slot's sum over all processors. A slot that cannot be read counts 0: a scrape has nowhere to put an error.
    fn count(&self, slot: u32) -> u64 {
        self.counters.get(&slot, 0).map_or(0, |per_cpu| per_cpu.iter().sum())
    }

    fn encode_verdicts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Connects and SYNs by what the kernel programs decided";
        let mut family = counter(encoder, "signet_capture_verdicts", help)?;
        VERDICT_LABELS.iter().try_for_each(|(slot, verdict, reason)| {
            one(&mut family, &[("verdict", *verdict), ("reason", *reason)], self.count(*slot))
        })
    }

    fn encode_faults(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = counter(encoder, "signet_capture_faults", "What went wrong in the kernel programs")?;
        let mut faults = FAULT_LABELS.iter();
        faults.try_for_each(|(slot, fault)| one(&mut family, &[("fault", *fault)], self.count(*slot)))
    }

    fn encode_unprotected(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Uses of UDP, SCTP and raw sockets by enrolled workloads, which cannot be protected";
        let mut family = counter(encoder, "signet_unprotected_sockets", help)?;
        UNPROTECTED_LABELS.iter().try_for_each(|(slot, protocol, action)| {
            one(&mut family, &[("protocol", *protocol), ("action", *action)], self.count(*slot))
        })
    }

    fn encode_lost(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Events of the kernel programs that found no room in the ring";
        let family = counter(encoder, "signet_kernel_events_lost", help)?;
        ConstCounter::new(self.count(EVENTS_LOST)).encode(family)?;
        let help = "Ends of direct connections that found no room in the ring: not in metrics and access log";
        let family = counter(encoder, "signet_direct_ends_lost", help)?;
        ConstCounter::new(self.count(DIRECT_EVENTS_LOST)).encode(family)
    }

    fn encode_maps(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let maps = [
            ("direct", self.direct.keys().count(), MAX_DIRECT),
            ("permits", self.permits.keys().count(), MAX_PERMITS),
            ("services", self.services.keys().count(), MAX_SERVICES),
            ("flows", self.flows.keys().count(), MAX_FLOWS),
            ("ports", self.ports.keys().count(), MAX_PORTS),
            ("workloads", self.workloads.keys().count(), MAX_WORKLOADS),
        ];
        let mut family = gauge(encoder, "signet_bpf_map_entries", "Entries of the kernel programs' maps")?;
        maps.iter().try_for_each(|(map, entries, _)| size(&mut family, map, *entries))?;
        let mut family =
            gauge(encoder, "signet_bpf_map_max_entries", "The most entries that a map can hold")?;
        maps.iter().try_for_each(|(map, _, most)| size(&mut family, map, *most))
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").finish_non_exhaustive()
    }
}

impl Collector for Capture {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_verdicts(&mut encoder)?;
        self.encode_faults(&mut encoder)?;
        self.encode_unprotected(&mut encoder)?;
        self.encode_lost(&mut encoder)?;
        self.encode_maps(&mut encoder)
    }
}

fn counter<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

fn gauge<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

fn one(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(family.encode_family(labels)?)
}

fn size(family: &mut MetricEncoder<'_>, map: &str, entries: usize) -> fmt::Result {
    let entries = i64::try_from(entries).unwrap_or(i64::MAX);
    ConstGauge::new(entries).encode(family.encode_family(&[("map", map)])?)
}
