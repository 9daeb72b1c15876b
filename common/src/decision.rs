//! Every decision of the kernel programs: whether a connect passes, where a SYN goes, and what a fault means.
//!
//! Pure functions of what the hooks looked up, so the whole table is tested on the host. They fail closed for what is
//! known to be in the mesh and open for what is known not to be; the one case in between, a pod nobody knows while the
//! engine is gone, is configuration (`unknownPods`). They look nothing up, count nothing and rewrite nothing.

use crate::abi::{
    CAPTURE_BYPASS, CAPTURE_REDIRECT, HBONE_PORT, LISTENER_HBONE, LISTENER_PLAINTEXT, Workload,
};

/// What happens to a connect or a SYN.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes its native path.
    Bypass = 0,
    /// It is refused.
    Deny = 1,
    /// It goes to the engine.
    Redirect = 2,
}

/// Why.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The caller is below no pods' root and no workload.
    Outside = 0,
    /// The caller is the engine.
    Engine = 1,
    /// The caller is a pod nobody knows yet, and the engine is alive.
    UnknownPod = 2,
    /// The caller is a pod nobody knows, and the engine is gone.
    UnknownPodEngineGone = 3,
    /// The workload is known not to be in the mesh.
    NotEnrolled = 4,
    /// The workload is in the mesh and its listeners are not up.
    NotReady = 5,
    /// The destination is the local host.
    LocalHost = 6,
    /// The destination is the workload's own address.
    OwnAddress = 7,
    /// A workload's connect to anywhere else.
    Outbound = 8,
    /// A SYN that the namespace itself sent: the engine's, or an application's to its own address.
    LocalSyn = 9,
    /// A SYN for the HBONE port.
    Hbone = 10,
    /// A SYN for an application's port.
    Plaintext = 11,
    /// A SYN in the node's namespace for a port no enrolled workload owns.
    UnownedPort = 12,
    /// See [`Fault`].
    Fault = 13,
}

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
}

/// What signetd said of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Not in the mesh.
    Bypass,
    /// In the mesh, its listeners are not up.
    NotReady,
    /// In the mesh.
    Redirect,
}

/// Who connects, as the walk up the cgroups found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A workload signetd has told of: the nearest ancestor cgroup with an entry.
    Workload(Capture),
    /// signetd itself.
    Engine,
    /// Below the pods' root, told of by nobody; the engine is alive.
    UnknownPod,
    /// The same with the engine gone.
    UnknownPodEngineGone {
        /// `unknownPods: deny`.
        deny: bool,
    },
    /// None of these.
    Outside,
}

/// Where a connect goes, as seen from the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Loopback or unspecified.
    LocalHost,
    /// An address of the workload itself (and in a shared namespace, a port of its own).
    Own,
    /// Anywhere else.
    Elsewhere,
}

/// A SYN that no established socket claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    /// The namespace itself sent it: the engine, or an application to its own address.
    pub from_inside: bool,
    /// Its destination port.
    pub port: u16,
    /// In a shared namespace: whether an enrolled workload listens on the port. `None` in a pod's own namespace.
    pub owned: Option<bool>,
}

/// What can go wrong in a program.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The original destination could not be stored with the socket (no memory).
    OriginNotRecorded = 0,
    /// The socket is bound to a device and its owner may not unbind it (`CAP_NET_RAW`): it cannot reach loopback.
    BoundToDevice = 1,
    /// The flow could not be published (`FLOWS` is full): the engine finds no record and refuses.
    FlowNotPublished = 2,
    /// The listener is not in the sockmap: no engine listens in that namespace.
    ListenerGone = 3,
    /// The listener cannot take the packet (an IPv6 SYN for an IPv4 listener).
    ListenerUnfit = 4,
    /// A listening port could not be entered (`PORTS` is full): its SYNs are not steered to the engine.
    PortNotRecorded = 5,
    /// A packet of a redirected socket was on its way out of the namespace: its owner has changed the namespace's routes
    /// or address translation.
    Diverted = 6,
}

/// What a connect of `caller` to `destination` may do.
///
/// Loopback passes before anything else for pods: what stays in the namespace is not traffic of the mesh, and a pod
/// may talk to itself before its listeners are up. The engine's ports are reached that way too, without a record, and
/// the engine refuses what has none.
#[inline(always)]
#[must_use]
pub const fn connect(caller: Caller, destination: Destination) -> Decision {
    match (caller, destination) {
        (Caller::Outside, _) => bypass(Reason::Outside),
        (Caller::Engine, _) => bypass(Reason::Engine),
        (Caller::Workload(Capture::Bypass), _) => bypass(Reason::NotEnrolled),
        (_, Destination::LocalHost) => bypass(Reason::LocalHost),
        (Caller::UnknownPod, _) => deny(Reason::UnknownPod),
        (Caller::UnknownPodEngineGone { deny: false }, _) => bypass(Reason::UnknownPodEngineGone),
        (Caller::UnknownPodEngineGone { deny: true }, _) => deny(Reason::UnknownPodEngineGone),
        (Caller::Workload(Capture::NotReady), _) => deny(Reason::NotReady),
        (Caller::Workload(Capture::Redirect), Destination::Own) => bypass(Reason::OwnAddress),
        (Caller::Workload(Capture::Redirect), Destination::Elsewhere) => redirect(Reason::Outbound),
    }
}

/// Where a SYN goes.
#[inline(always)]
#[must_use]
pub const fn syn(syn: Syn) -> Decision {
    match (syn.from_inside, syn.port, syn.owned) {
        (true, _, _) => bypass(Reason::LocalSyn),
        (false, HBONE_PORT, _) => redirect(Reason::Hbone),
        (false, _, Some(false)) => bypass(Reason::UnownedPort),
        (false, _, None | Some(true)) => redirect(Reason::Plaintext),
    }
}

/// The one place that says what a fault means. None lets a connect pass that is known to be in the mesh.
#[inline(always)]
#[must_use]
pub const fn on_fault(fault: Fault) -> Verdict {
    match fault {
        Fault::OriginNotRecorded
        | Fault::BoundToDevice
        | Fault::FlowNotPublished
        | Fault::ListenerGone
        | Fault::ListenerUnfit
        | Fault::Diverted => Verdict::Deny,
        // `sock_ops` cannot refuse a `listen`. `PORTS` is preallocated with a slot for every port of the one namespace
        // it is about, so this is a fault of the map, not of load.
        Fault::PortNotRecorded => Verdict::Bypass,
    }
}

/// Whether something that cannot be protected may pass: an enrolled workload's UDP, SCTP or raw socket.
#[inline(always)]
#[must_use]
pub const fn unprotected(deny: bool) -> Verdict {
    if deny { Verdict::Deny } else { Verdict::Bypass }
}

impl Capture {
    /// Reads a map value; what no version wrote is taken for "not ready".
    #[inline(always)]
    #[must_use]
    pub const fn of(workload: &Workload) -> Self {
        match workload.capture {
            CAPTURE_BYPASS => Self::Bypass,
            CAPTURE_REDIRECT => Self::Redirect,
            _ => Self::NotReady,
        }
    }
}

impl Reason {
    /// The index in the namespace's sockmap that a redirected SYN goes to.
    #[inline(always)]
    #[must_use]
    pub const fn listener(self) -> u32 {
        match self {
            Self::Hbone => LISTENER_HBONE,
            _ => LISTENER_PLAINTEXT,
        }
    }
}

#[inline(always)]
const fn bypass(reason: Reason) -> Decision {
    Decision { verdict: Verdict::Bypass, reason }
}

#[inline(always)]
const fn deny(reason: Reason) -> Decision {
    Decision { verdict: Verdict::Deny, reason }
}

#[inline(always)]
const fn redirect(reason: Reason) -> Decision {
    Decision { verdict: Verdict::Redirect, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESTINATIONS: [Destination; 3] = [Destination::LocalHost, Destination::Own, Destination::Elsewhere];
    const FAULTS_OF_CONNECTIONS: [Fault; 6] = [
        Fault::Diverted,
        Fault::OriginNotRecorded,
        Fault::BoundToDevice,
        Fault::FlowNotPublished,
        Fault::ListenerGone,
        Fault::ListenerUnfit,
    ];

    #[test]
    fn a_ready_workload_leaves_only_through_the_engine() {
        let ready = Caller::Workload(Capture::Redirect);
        assert_eq!(connect(ready, Destination::Elsewhere).verdict, Verdict::Redirect);
        assert_eq!(connect(ready, Destination::Own), bypass(Reason::OwnAddress));
        assert_eq!(connect(ready, Destination::LocalHost), bypass(Reason::LocalHost));
    }

    #[test]
    fn a_workload_that_is_not_ready_never_leaves() {
        let waiting = Caller::Workload(Capture::NotReady);
        assert_eq!(connect(waiting, Destination::Elsewhere), deny(Reason::NotReady));
        assert_eq!(connect(waiting, Destination::Own), deny(Reason::NotReady));
    }

    #[test]
    fn an_unknown_pod_waits_for_a_living_engine() {
        assert_eq!(connect(Caller::UnknownPod, Destination::Elsewhere), deny(Reason::UnknownPod));
    }

    #[test]
    fn without_an_engine_configuration_decides_for_unknown_pods() {
        for (deny, verdict) in [(false, Verdict::Bypass), (true, Verdict::Deny)] {
            let caller = Caller::UnknownPodEngineGone { deny };
            assert_eq!(connect(caller, Destination::Elsewhere).verdict, verdict);
        }
    }

    #[test]
    fn nothing_outside_the_pods_root_is_ever_held_up() {
        for caller in [Caller::Outside, Caller::Engine, Caller::Workload(Capture::Bypass)] {
            for destination in DESTINATIONS {
                assert_eq!(
                    connect(caller, destination).verdict,
                    Verdict::Bypass,
                    "{caller:?} {destination:?}"
                );
            }
        }
    }

    #[test]
    fn a_value_no_version_wrote_is_not_ready() {
        assert_eq!(Capture::of(&Workload { capture: 7, ..Workload::default() }), Capture::NotReady);
    }

    #[test]
    fn every_syn_from_outside_a_pod_goes_to_the_engine() {
        for port in [1, 80, 15001, 15006, 65535] {
            let decision = syn(Syn { from_inside: false, port, owned: None });
            assert_eq!(decision, redirect(Reason::Plaintext));
            assert_eq!(decision.reason.listener(), LISTENER_PLAINTEXT);
        }
        let hbone = syn(Syn { from_inside: false, port: HBONE_PORT, owned: None });
        assert_eq!(hbone.reason.listener(), LISTENER_HBONE);
    }

    #[test]
    fn on_the_node_only_owned_ports_are_steered() {
        let at = |owned| syn(Syn { from_inside: false, port: 22, owned: Some(owned) }).verdict;
        assert_eq!(at(false), Verdict::Bypass);
        assert_eq!(at(true), Verdict::Redirect);
    }

    #[test]
    fn a_syn_from_inside_reaches_the_application() {
        for owned in [None, Some(true), Some(false)] {
            let decision = syn(Syn { from_inside: true, port: HBONE_PORT, owned });
            assert_eq!(decision, bypass(Reason::LocalSyn));
        }
    }

    #[test]
    fn no_fault_lets_a_connection_pass() {
        for fault in FAULTS_OF_CONNECTIONS {
            assert_eq!(on_fault(fault), Verdict::Deny, "{fault:?}");
        }
    }
}
