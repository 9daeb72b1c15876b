//! The slots of `COUNTERS`, a per-CPU array, and what Prometheus calls them.
//!
//! One array for all counters, so that the kernel side is one lookup and one addition, and a scrape reads one map. The
//! names are here, beside the indices, so that a slot cannot be shown under another one's label.

use crate::decision::{Decision, Fault, Reason, Verdict};

const REASONS: u32 = 20;
const FAULTS: u32 = 9;
const VERDICT_BASE: u32 = 0;
const FAULT_BASE: u32 = VERDICT_BASE + 4 * REASONS;
const UNPROTECTED_BASE: u32 = FAULT_BASE + FAULTS;

/// Slot of the events that found no room in `EVENTS`.
pub const EVENTS_LOST: u32 = UNPROTECTED_BASE + 2 * 4;
/// Slot of the ends of direct flows that found no room in `DIRECT_EVENTS`.
pub const DIRECT_EVENTS_LOST: u32 = EVENTS_LOST + 1;
/// How many slots there are.
pub const COUNTERS: u32 = DIRECT_EVENTS_LOST + 1;

/// What cannot be protected.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// UDP, and what runs over it (QUIC).
    Udp = 0,
    /// SCTP.
    Sctp = 1,
    /// Raw IP sockets.
    Raw = 2,
    /// Any other IP protocol, ICMP sockets among them.
    Other = 3,
}

/// Slot of a decision.
#[inline(always)]
#[must_use]
pub const fn of_decision(decision: Decision) -> u32 {
    VERDICT_BASE + decision.verdict as u32 * REASONS + decision.reason as u32
}

/// Slot of a fault.
#[inline(always)]
#[must_use]
pub const fn of_fault(fault: Fault) -> u32 {
    FAULT_BASE + fault as u32
}

/// Slot of an unprotected socket.
#[inline(always)]
#[must_use]
pub const fn of_unprotected(protocol: Protocol, verdict: Verdict) -> u32 {
    let denied = matches!(verdict, Verdict::Deny) as u32;
    UNPROTECTED_BASE + denied * 4 + protocol as u32
}

/// `signet_capture_verdicts_total`: slot, `verdict`, `reason`. Every decision that can be made, and no other.
pub const VERDICT_LABELS: [(u32, &str, &str); 22] = [
    verdict(Verdict::Bypass, Reason::Outside, "bypass", "outside"),
    verdict(Verdict::Bypass, Reason::Engine, "bypass", "engine"),
    verdict(Verdict::Bypass, Reason::Kubelet, "bypass", "kubelet"),
    verdict(Verdict::Deny, Reason::UnknownPod, "deny", "unknown_pod"),
    verdict(Verdict::Deny, Reason::UnknownPodEngineGone, "deny", "unknown_pod_engine_gone"),
    verdict(Verdict::Bypass, Reason::UnknownPodEngineGone, "bypass", "unknown_pod_engine_gone"),
    verdict(Verdict::Bypass, Reason::NotEnrolled, "bypass", "not_enrolled"),
    verdict(Verdict::Redirect, Reason::NotReady, "redirect", "not_ready"),
    verdict(Verdict::Deny, Reason::EngineGone, "deny", "engine_gone"),
    verdict(Verdict::Bypass, Reason::LocalHost, "bypass", "local_host"),
    verdict(Verdict::Bypass, Reason::OwnAddress, "bypass", "own_address"),
    verdict(Verdict::Redirect, Reason::Outbound, "redirect", "outbound"),
    verdict(Verdict::Direct, Reason::Permitted, "direct", "permitted"),
    verdict(Verdict::Redirect, Reason::StalePermit, "redirect", "stale_permit"),
    verdict(Verdict::Bypass, Reason::LocalSyn, "bypass", "local_syn"),
    verdict(Verdict::Bypass, Reason::DirectSyn, "bypass", "direct_syn"),
    verdict(Verdict::Bypass, Reason::ProbeSyn, "bypass", "probe_syn"),
    verdict(Verdict::Redirect, Reason::Hbone, "redirect", "hbone"),
    verdict(Verdict::Redirect, Reason::Plaintext, "redirect", "plaintext"),
    verdict(Verdict::Bypass, Reason::UnownedPort, "bypass", "unowned_port"),
    verdict(Verdict::Deny, Reason::Fault, "deny", "fault"),
    verdict(Verdict::Bypass, Reason::Fault, "bypass", "fault"),
];

/// `signet_capture_faults_total`: slot, `fault`.
pub const FAULT_LABELS: [(u32, &str); FAULTS as usize] = [
    (of_fault(Fault::OriginNotRecorded), "origin_not_recorded"),
    (of_fault(Fault::BoundToDevice), "bound_to_device"),
    (of_fault(Fault::FlowNotPublished), "flow_not_published"),
    (of_fault(Fault::ListenerGone), "listener_gone"),
    (of_fault(Fault::ListenerUnfit), "listener_unfit"),
    (of_fault(Fault::PortNotRecorded), "port_not_recorded"),
    (of_fault(Fault::Diverted), "diverted"),
    (of_fault(Fault::ForeignSource), "foreign_source"),
    (of_fault(Fault::Stray), "stray"),
];

/// `signet_unprotected_sockets_total`: slot, `protocol`, `action`.
pub const UNPROTECTED_LABELS: [(u32, &str, &str); 8] = [
    (of_unprotected(Protocol::Udp, Verdict::Bypass), "udp", "pass"),
    (of_unprotected(Protocol::Sctp, Verdict::Bypass), "sctp", "pass"),
    (of_unprotected(Protocol::Raw, Verdict::Bypass), "raw", "pass"),
    (of_unprotected(Protocol::Other, Verdict::Bypass), "other", "pass"),
    (of_unprotected(Protocol::Udp, Verdict::Deny), "udp", "deny"),
    (of_unprotected(Protocol::Sctp, Verdict::Deny), "sctp", "deny"),
    (of_unprotected(Protocol::Raw, Verdict::Deny), "raw", "deny"),
    (of_unprotected(Protocol::Other, Verdict::Deny), "other", "deny"),
];

const fn verdict(
    verdict: Verdict,
    reason: Reason,
    verdict_label: &'static str,
    reason_label: &'static str,
) -> (u32, &'static str, &'static str) {
    (of_decision(Decision { verdict, reason }), verdict_label, reason_label)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::HashSet;
    use std::vec::Vec;

    use super::*;
    use crate::decision::{Caller, Capture, Destination, Errand, Syn, connect, outbound, syn};

    fn callers() -> Vec<Caller> {
        let captures = [Capture::Bypass, Capture::NotReady, Capture::Redirect];
        let mut all: Vec<_> = captures.into_iter().map(Caller::Workload).collect();
        all.extend([true, false].map(|deny| Caller::UnknownPodEngineGone { deny }));
        all.extend([Caller::Stranded, Caller::Engine, Caller::Kubelet, Caller::UnknownPod, Caller::Outside]);
        all
    }

    #[test]
    fn every_decision_has_a_label() {
        let labelled: HashSet<u32> = VERDICT_LABELS.iter().map(|(slot, ..)| *slot).collect();
        for caller in callers() {
            for destination in [Destination::LocalHost, Destination::Own, Destination::Elsewhere] {
                let decision = connect(caller, destination);
                assert!(labelled.contains(&of_decision(decision)), "{decision:?}");
            }
        }
        for from_inside in [true, false] {
            for owned in [None, Some(true), Some(false)] {
                for (port, direct, probe, engine_alive) in [
                    (80, false, false, true),
                    (80, false, false, false),
                    (15008, false, false, true),
                    (80, true, false, true),
                    (80, false, true, true),
                ] {
                    let decision = syn(Syn { from_inside, port, owned, direct, probe, engine_alive });
                    assert!(labelled.contains(&of_decision(decision)), "{decision:?}");
                }
            }
        }
        for permit in [None, Some(0), Some(1)] {
            let decision = outbound(Errand { permit, epoch: 1, engine_alive: true, is_servers_port: true });
            assert!(labelled.contains(&of_decision(decision)), "{decision:?}");
        }
    }

    #[test]
    fn no_two_counters_share_a_slot_and_all_are_in_range() {
        let slots: Vec<u32> = (VERDICT_LABELS.iter().map(|(slot, ..)| *slot))
            .chain(FAULT_LABELS.iter().map(|(slot, _)| *slot))
            .chain(UNPROTECTED_LABELS.iter().map(|(slot, ..)| *slot))
            .chain([EVENTS_LOST, DIRECT_EVENTS_LOST])
            .collect();
        let distinct: HashSet<_> = slots.iter().copied().collect();
        assert_eq!(distinct.len(), slots.len());
        assert!(slots.iter().all(|slot| *slot < COUNTERS));
    }
}
