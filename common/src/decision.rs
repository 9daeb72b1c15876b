//! Every decision of the kernel programs: whether a connect passes, where a SYN goes, and what a fault means.
//!
//! Pure functions of what the hooks looked up, so the whole table is tested on the host. They fail closed for what is
//! known to be in the mesh and open for what is known not to be; the one case in between, a pod nobody knows while the
//! engine is gone, is configuration (`unknownPods`). They look nothing up, count nothing and rewrite nothing.

use crate::abi::{
    CAPTURE_BYPASS, CAPTURE_REDIRECT, HBONE_PORT, LISTENER_HBONE, LISTENER_PLAINTEXT, PATH_DIRECT,
    PATH_REDIRECT, STAGE_OPEN, Workload,
};
use crate::direct::{ADMISSION_DONE, Direct};

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
    /// It takes its native path, since it was authorised.
    Direct = 3,
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
    /// The workload is in the mesh and its listeners are not up: its SYN [is held](is_held).
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
    /// A workload's connect to another of this node, under a permit that holds.
    Permitted = 14,
    /// The same under a permit that does not hold now.
    StalePermit = 15,
    /// The SYN of a direct flow.
    DirectSyn = 16,
    /// The caller is the kubelet.
    Kubelet = 17,
    /// A SYN of the kubelet's.
    ProbeSyn = 18,
    /// The client or the server is in the mesh and the engine is gone: for longer than a restart takes, or it hangs.
    EngineGone = 19,
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
    /// A workload of the mesh whose engine is gone.
    Stranded,
    /// signetd itself.
    Engine,
    /// The kubelet.
    Kubelet,
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
    /// It is the SYN of a direct flow that this namespace [admits].
    pub direct: bool,
    /// It is the kubelet's.
    pub probe: bool,
    /// The engine that would accept it gives its heartbeat.
    pub engine_alive: bool,
}

/// A connect that would go to the engine, and what is known of a way past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand {
    /// The epoch of its permit, where there is one.
    pub permit: Option<u64>,
    /// The epoch that holds.
    pub epoch: u64,
    /// The engine is there to take the permit back. Without it nobody could.
    pub engine_alive: bool,
    /// In a shared namespace: the permitted workload, and no other, listens on the port. True in a pod's own.
    pub is_servers_port: bool,
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
    /// A direct socket has a source address that is not known to be its workload's: policy was not asked about it.
    ForeignSource = 7,
    /// A direct socket was answered by somebody else than the server it was permitted to reach: another pod has taken the
    /// address over, or something on the way translates addresses.
    Stray = 8,
}

/// What a connect of `caller` to `destination` may do.
///
/// Loopback passes before anything else for pods: what stays in the namespace is not traffic of the mesh, and a pod
/// may talk to itself before its listeners are up. Everything else of such a pod waits for them: it goes to the engine,
/// whose listener is not there yet, and its SYN [is held](is_held) until it is. The engine's ports are reached that way
/// too, without a record, and the engine refuses what has none.
#[inline(always)]
#[must_use]
pub const fn connect(caller: Caller, destination: Destination) -> Decision {
    match (caller, destination) {
        (Caller::Outside, _) => bypass(Reason::Outside),
        (Caller::Engine, _) => bypass(Reason::Engine),
        (Caller::Kubelet, _) => bypass(Reason::Kubelet),
        (Caller::Workload(Capture::Bypass), _) => bypass(Reason::NotEnrolled),
        (_, Destination::LocalHost) => bypass(Reason::LocalHost),
        (Caller::UnknownPod, _) => deny(Reason::UnknownPod),
        (Caller::UnknownPodEngineGone { deny: false }, _) => bypass(Reason::UnknownPodEngineGone),
        (Caller::UnknownPodEngineGone { deny: true }, _) => deny(Reason::UnknownPodEngineGone),
        (Caller::Workload(Capture::NotReady), _) => redirect(Reason::NotReady),
        (Caller::Workload(Capture::Redirect) | Caller::Stranded, Destination::Own) => {
            bypass(Reason::OwnAddress)
        }
        (Caller::Stranded, Destination::Elsewhere) => deny(Reason::EngineGone),
        (Caller::Workload(Capture::Redirect), Destination::Elsewhere) => redirect(Reason::Outbound),
    }
}

/// Which way an enrolled workload's connect to elsewhere takes. Whatever is missing, the engine decides.
#[inline(always)]
#[must_use]
pub const fn outbound(errand: Errand) -> Decision {
    match errand.permit {
        None => redirect(Reason::Outbound),
        Some(epoch) if epoch == errand.epoch && errand.engine_alive && errand.is_servers_port => {
            Decision { verdict: Verdict::Direct, reason: Reason::Permitted }
        }
        Some(_) => redirect(Reason::StalePermit),
    }
}

/// Whether the namespace with that cookie lets a SYN through to its application for the flow of `record`; `owner` is the
/// workload that alone listens on the port, in a shared namespace. Once the server has the connection, no other SYN is let
/// through for it; until then the same one may come again, or with SYN cookies the ACK in its place.
#[inline(always)]
#[must_use]
pub const fn admits(record: &Direct, netns: u64, owner: Option<u64>) -> bool {
    let is_servers = match owner {
        Some(owner) => owner == record.permit.server,
        None => record.permit.host_network == 0,
    };
    record.admission != ADMISSION_DONE && record.permit.netns == netns && is_servers
}

/// What is wrong with a packet that leaves its namespace from a captured socket; `is_connecting` until the socket has its
/// answer. A direct socket sends nothing but its SYN before the server is known to be the one it was permitted to reach.
#[inline(always)]
#[must_use]
pub const fn departure(path: u32, stage: u32, is_connecting: bool) -> Option<Fault> {
    match path {
        PATH_REDIRECT => Some(Fault::Diverted),
        PATH_DIRECT if stage < STAGE_OPEN && !is_connecting => Some(Fault::Stray),
        _ => None,
    }
}

/// Whether the SYN of a redirected socket is dropped for now, and so sent again in a moment: its workload's listeners are
/// not up yet, or not up again after a restart of the engine (`listens`: somebody does on its port). Once the engine is not
/// [awaited](PATIENCE) any more the SYN goes on, and is refused.
#[inline(always)]
#[must_use]
pub const fn is_held(capture: Capture, listens: bool, engine_awaited: bool) -> bool {
    match capture {
        Capture::NotReady => engine_awaited,
        Capture::Redirect => engine_awaited && !listens,
        Capture::Bypass => false,
    }
}

/// Whether a SYN from outside is dropped for now, and so sent again in a moment: it is for an application whose engine does
/// not listen and is [awaited](PATIENCE). Those for the engine itself are refused: they come from other engines, which
/// know more endpoints, and wait by themselves. `is_admitted`: the SYN passes the engine.
#[inline(always)]
#[must_use]
pub fn is_kept_outside(
    port: u16,
    is_admitted: impl FnOnce() -> bool,
    listens: impl FnOnce() -> bool,
    engine_awaited: bool,
) -> bool {
    port != HBONE_PORT && engine_awaited && !is_admitted() && !listens()
}

/// For how many engine timeouts after its last heartbeat an engine that does not listen is awaited: it may drain, and its
/// pod be replaced. One that listens and gives no heartbeat for a single one hangs, and nobody waits for it.
pub const PATIENCE: u64 = 4;

/// Where a SYN goes.
#[inline(always)]
#[must_use]
pub const fn syn(syn: Syn) -> Decision {
    if syn.direct {
        return bypass(Reason::DirectSyn);
    }
    // For a port of the engine's too: it would be refused for want of a certificate, and nothing else listens there.
    if syn.probe {
        return bypass(Reason::ProbeSyn);
    }
    match (syn.from_inside, syn.port, syn.owned) {
        (true, _, _) => bypass(Reason::LocalSyn),
        (false, port, Some(false)) if port != HBONE_PORT => bypass(Reason::UnownedPort),
        // An engine that hangs would let it wait for nothing; refused, its client asks another endpoint, or again.
        (false, ..) if !syn.engine_alive => deny(Reason::EngineGone),
        (false, HBONE_PORT, _) => redirect(Reason::Hbone),
        (false, ..) => redirect(Reason::Plaintext),
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
        | Fault::Diverted
        | Fault::ForeignSource
        | Fault::Stray => Verdict::Deny,
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
mod tests;
