//! Direct flows: the decision at the connect, and the life of their record in `sock_ops`.
//!
//! `connect4/6` stores with the socket what it was permitted to reach. When the SYN leaves, the record is published, and
//! the server's namespace lets that SYN through (`steer`). When the answer comes, the client's side looks whether it was
//! that namespace that answered; until then nothing but the SYN leaves (`egress`). The close of the client's socket, which
//! every socket comes to (see `flow`), takes the record back and tells signetd. There is one race: a permit that is taken
//! back between connect and publication, when signetd has looked at the live flows already. So the epoch is read again
//! once the record is there for all to see, and if it has changed, signetd is told to look at this one.

use aya_ebpf::bindings::{
    BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2,
    BPF_TCP_LAST_ACK, bpf_sock,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use aya_log_ebpf::debug;
use signet_common::abi::{
    Address, Captured, Flow, Origin, PATH_DIRECT, Port, PortOwner, STAGE_CONNECT, STAGE_ENDED, STAGE_OPEN,
    STAGE_PUBLISHED,
};
use signet_common::counter;
use signet_common::decision::{self, Decision, Errand, Fault, Verdict};
use signet_common::direct::{
    ADMISSION_DONE, ADMISSION_NONE, DIRECT_ENDED, DIRECT_STALE, DIRECT_STRAY, Direct, DirectEvent, Permit,
    Permitted, Progress,
};

use crate::caller::{self, Current};
use crate::connect::{owns, socket};
use crate::flow::{flow, watch_close};
use crate::maps::{
    DIRECT, DIRECT_EVENTS, PERMITS, PORTS, SOCKETS, Storage, WORKLOADS, count, epoch, fault, read,
};
use crate::redirect::keep_source;

/// Decides for a connect of `client` to a server, and hands back the permit there is.
#[inline(always)]
pub fn decide(client: u64, server: Address, port: u16) -> (Decision, Option<&'static mut Permit>) {
    let permit = PERMITS.get_ptr_mut(Permitted { client, server, port, padding: [0; 3] });
    // SAFETY: entries are replaced as a whole by signetd; what changes in place is one word, `used`.
    let permit = permit.and_then(|permit| unsafe { permit.as_mut() });
    let errand = Errand {
        permit: permit.as_ref().map(|permit| permit.epoch),
        epoch: epoch(),
        engine_alive: permit.is_some() && caller::engine_is_alive(),
        is_servers_port: permit.as_ref().is_some_and(|permit| is_servers_port(permit, port)),
    };
    (decision::outbound(errand), permit)
}

#[inline(always)]
fn is_servers_port(permit: &Permit, port: u16) -> bool {
    if permit.host_network == 0 {
        return true;
    }
    // SAFETY: fields are single aligned words.
    let owner = unsafe { PORTS.get(Port { netns: permit.netns, port, padding: [0; 3] }) };
    owner.and_then(PortOwner::sole) == Some(permit.server)
}

/// Stores with the socket what `sock_ops` needs; the caller rewrites the destination. The socket stays as the application
/// made it. Only in a shared namespace, which has other addresses too, it gets its workload's as its source.
#[inline(always)]
pub fn take(
    ctx: &SockAddrContext,
    current: &Current,
    origin: &Origin,
    permit: &mut Permit,
    server: Address,
    port: u16,
) -> Verdict {
    let sk = socket(ctx);
    if let Some(workload) = current.workload
        && workload.host_network != 0
    {
        keep_source(ctx, sk, workload, &server);
    }
    let Some(captured) = SOCKETS.make(sk) else {
        debug!(ctx, "connect of cgroup {}: no memory for its origin", current.cgroup);
        return fault(Fault::OriginNotRecorded);
    };
    if permit.used == 0 {
        permit.used = 1;
    }
    captured.origin = *origin;
    captured.permit = *permit;
    captured.flow = Flow { remote: server, remote_port: port, ..Flow::default() };
    captured.received = 0;
    captured.path = PATH_DIRECT;
    captured.stage = STAGE_CONNECT;
    Verdict::Direct
}

/// The SYN leaves: publishes the flow. What goes wrong leaves it unpublished, and the server's engine gets the SYN.
#[inline(always)]
pub fn publish(ctx: &SockOpsContext, captured: &mut Captured) {
    let flow = flow(ctx).anywhere();
    watch_close(ctx);
    if flow.remote != captured.flow.remote || flow.remote_port != captured.flow.remote_port {
        fault(Fault::Diverted);
        return;
    }
    // SAFETY: entries are replaced as a whole by signetd.
    let workload = unsafe { WORKLOADS.get(captured.origin.cgroup) };
    if !workload.is_some_and(|workload| owns(workload, &flow.local)) {
        debug!(ctx, "direct flow of cgroup {}: its source address is not its own", captured.origin.cgroup);
        fault(Fault::ForeignSource);
        return;
    }
    captured.flow = flow;
    // SAFETY: the context is valid.
    let (netns, socket, started) = unsafe {
        let ops = ctx.ops;
        (bpf_get_netns_cookie(ops.cast()), bpf_get_socket_cookie(ops.cast()), bpf_ktime_get_ns())
    };
    let record = Direct {
        origin: captured.origin,
        permit: captured.permit,
        netns,
        socket,
        started,
        admission: ADMISSION_NONE,
        established: 0,
    };
    if DIRECT.insert(flow, record, 0).is_err() {
        fault(Fault::FlowNotPublished);
        return;
    }
    captured.stage = STAGE_PUBLISHED;
    if epoch() != captured.permit.epoch && !tell(DIRECT_STALE, captured, &record) {
        let _ = DIRECT.remove(flow);
        captured.stage = STAGE_CONNECT;
        fault(Fault::FlowNotPublished);
    }
}

/// The answer has come: from the server, or from somebody else. The program may be attached to two of the socket's cgroups
/// (the engine's own may be above): the second time there is nothing to do.
#[inline(always)]
pub fn establish(ctx: &SockOpsContext, captured: &mut Captured) {
    if captured.stage == STAGE_OPEN {
        return;
    }
    if captured.stage == STAGE_PUBLISHED
        && let Some(record) = DIRECT.get_ptr_mut(captured.flow)
    {
        // SAFETY: the entry stays valid for this program's run; the fields are single aligned words.
        unsafe {
            if (*record).admission != ADMISSION_NONE {
                (*record).established = 1;
                captured.stage = STAGE_OPEN;
                return;
            }
        }
    }
    fault(Fault::Stray);
    // SAFETY: the context is valid.
    let (netns, socket) =
        unsafe { (bpf_get_netns_cookie(ctx.ops.cast()), bpf_get_socket_cookie(ctx.ops.cast())) };
    captured.flow = flow(ctx).anywhere();
    let record =
        Direct { origin: captured.origin, permit: captured.permit, netns, socket, ..Direct::default() };
    tell(DIRECT_STRAY, captured, &record);
}

/// A server's end is established: its flow's record has served.
#[inline(always)]
pub fn admitted(ctx: &SockOpsContext) {
    let Some(record) = DIRECT.get_ptr_mut(flow(ctx).anywhere().reversed()) else { return };
    // SAFETY: as in `establish`.
    unsafe {
        if (*record).permit.netns == bpf_get_netns_cookie(ctx.ops.cast()) {
            (*record).admission = ADMISSION_DONE;
        }
    }
}

/// The client's socket goes from one state to another.
#[inline(always)]
pub fn change(ctx: &SockOpsContext, captured: &mut Captured, from: u32, to: u32) {
    if to == BPF_TCP_FIN_WAIT2 {
        // SAFETY: the kernel passes a valid context.
        captured.received = unsafe { read!(ctx.ops, bytes_received) };
    }
    if to != BPF_TCP_CLOSE {
        return;
    }
    captured.stage = match captured.stage {
        STAGE_OPEN => STAGE_ENDED,
        STAGE_PUBLISHED => STAGE_CONNECT,
        _ => return,
    };
    let Some(record) = DIRECT.get_ptr_mut(captured.flow) else { return };
    // SAFETY: the entry stays valid for this program's run.
    let record = unsafe { &*record };
    // SAFETY: the context is valid.
    if record.socket != unsafe { bpf_get_socket_cookie(ctx.ops.cast()) } {
        return;
    }
    let payload = progress(ctx, captured, record, from).payload();
    let event = prepare(DIRECT_ENDED, captured, record, payload);
    // Before it is told: whoever knows of the end finds the flow live no more.
    let _ = DIRECT.remove(captured.flow);
    if let Some(event) = event {
        // No flag: the kernel wakes the reader where it has read all before this one, and only there.
        event.submit(0);
    }
}

#[inline(always)]
fn progress(ctx: &SockOpsContext, captured: &Captured, record: &Direct, state: u32) -> Progress {
    // SAFETY: the kernel passes a valid context.
    let (acknowledged, received, una, next) = unsafe {
        let ops = ctx.ops;
        (read!(ops, bytes_acked), read!(ops, bytes_received), read!(ops, snd_una), read!(ops, snd_nxt))
    };
    let has_sent_fin =
        matches!(state, BPF_TCP_FIN_WAIT1 | BPF_TCP_FIN_WAIT2 | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK);
    let had_fin = matches!(state, BPF_TCP_CLOSE_WAIT | BPF_TCP_LAST_ACK | BPF_TCP_CLOSING);
    Progress {
        acknowledged,
        received,
        is_established: record.established != 0,
        is_fin_acknowledged: has_sent_fin && una == next,
        is_fin_received: had_fin || (state == BPF_TCP_FIN_WAIT2 && received > captured.received),
    }
}

/// Tells signetd. False where there was no room.
#[inline(always)]
fn tell(kind: u32, captured: &Captured, record: &Direct) -> bool {
    let Some(event) = prepare(kind, captured, record, (0, 0)) else { return false };
    event.submit(0);
    true
}

/// A record of the ring, filled and not submitted yet, which its owner must do.
#[inline(always)]
fn prepare(
    kind: u32,
    captured: &Captured,
    record: &Direct,
    (sent, received): (u64, u64),
) -> Option<RingBufEntry<DirectEvent>> {
    let Some(mut event) = DIRECT_EVENTS.reserve(0) else {
        count(counter::DIRECT_EVENTS_LOST);
        return None;
    };
    // SAFETY: takes no argument.
    let at = unsafe { bpf_ktime_get_ns() };
    let to: *mut DirectEvent = event.as_mut_ptr();
    // SAFETY: the record is reserved, of this size, and ours until it is submitted.
    unsafe {
        (*to).flow = captured.flow;
        (*to).record = *record;
        (*to).at = at;
        (*to).sent = sent;
        (*to).received = received;
        (*to).kind = kind;
        (*to).padding = 0;
    }
    Some(event)
}

/// The socket's record, where the socket is captured and goes that way.
#[inline(always)]
pub fn of(sk: *mut bpf_sock) -> Option<&'static mut Captured> {
    let captured: &'static mut Captured = SOCKETS.of(sk)?;
    if captured.path == PATH_DIRECT { Some(captured) } else { None }
}
