//! `sock_ops`: publishes flow → origin when the SYN leaves, takes it back when the socket closes, and counts listeners.
//!
//! At `TCP_CONNECT_CB` the source port is chosen and nothing has been sent (net/ipv4/tcp_output.c `tcp_connect`), so the
//! record is there before the engine can accept. Every TCP socket that connected or listened passes `tcp_set_state` to
//! `TCP_CLOSE` before it is freed or becomes a TIME_WAIT bucket (net/ipv4/tcp.c `tcp_done`, net/ipv4/tcp_minisocks.c
//! `tcp_time_wait`): refused, unanswered, reset and passively closed connections all end there. So entries end exactly,
//! and no map needs to forget. One close is too early for what goes to the engine: a client that writes and goes is taken from FIN_WAIT2 before the
//! engine may have accepted. Its record is left to the engine's end of the connection, whose close is watched too.

use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_SOCK_OPS_TIMEOUT_INIT, BPF_TCP_CLOSE, BPF_TCP_FIN_WAIT2, bpf_sock,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use signet_common::abi::{
    Captured, ENGINE_MARK, Flow, OUTBOUND_PORT, PATH_DIRECT, PATH_PROBE, PATH_REDIRECT, Port, PortOwner,
};
use signet_common::decision::Fault;

use crate::maps::{BOUND, FLOWS, PORTS, SOCKETS, Storage, fault, of_family, read, words};
use crate::redirect::{SO_BINDTOIFINDEX, SOL_SOCKET};
use crate::steer::LOOPBACK;
use crate::{direct, probe, wait};

const DONE: u32 = 1;

#[sock_ops]
pub fn signet_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => with_socket(&ctx, connect),
        BPF_SOCK_OPS_TIMEOUT_INIT => with_socket(&ctx, hurry),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => with_socket(&ctx, established),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB if is_engines_end(&ctx) => watch_close(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => with_socket(&ctx, listen),
        BPF_SOCK_OPS_STATE_CB => with_socket(&ctx, change),
        _ => {}
    }
    DONE
}

#[inline(always)]
fn with_socket(ctx: &SockOpsContext, act: impl Fn(&SockOpsContext, *mut bpf_sock)) {
    // SAFETY: the kernel passes a valid context.
    let sk = unsafe { read!(ctx.ops, __bindgen_anon_2.sk) };
    if !sk.is_null() {
        act(ctx, sk);
    }
}

#[inline(always)]
fn connect(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    match SOCKETS.of(sk) {
        Some(captured) if captured.path == PATH_DIRECT => direct::publish(ctx, captured),
        Some(captured) if captured.path == PATH_REDIRECT => publish(ctx, captured),
        Some(captured) if captured.path == PATH_PROBE => probe::publish(ctx, captured),
        _ => {}
    }
}

#[inline(always)]
fn hurry(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    if let Some(captured) = SOCKETS.of(sk) {
        wait::hurry(ctx, captured);
    }
}

#[inline(always)]
fn established(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    if let Some(captured) = direct::of(sk) {
        direct::establish(ctx, captured);
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    with_socket(ctx, confine);
    direct::admitted(ctx);
}

/// What an application accepts from the engine has the client's address as its peer and a port that the engine has
/// chosen. A packet from outside may have the very same: another connection of that client, or of one that an address
/// translator hides behind it. Bound to loopback, where the engine's packets arrive, the socket is not found for it, and
/// neither is what TIME_WAIT leaves of it. Between equal addresses packets arrive elsewhere (see `steer`), and come from inside.
#[inline(always)]
fn confine(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    // SAFETY: the kernel passes a valid socket.
    if unsafe { read!(sk, mark) } != ENGINE_MARK {
        return;
    }
    let flow = flow(ctx);
    if flow.local == flow.remote {
        return;
    }
    let mut device = LOOPBACK;
    let value = core::ptr::from_mut(&mut device).cast();
    // SAFETY: the context is valid and the value is as long as said. An error leaves the socket as every other is.
    let _ = unsafe { bpf_setsockopt(ctx.ops.cast(), SOL_SOCKET, SO_BINDTOIFINDEX, value, 4) };
}

#[inline(always)]
fn change(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let (from, to) = (ctx.arg(0), ctx.arg(1));
    match direct::of(sk) {
        Some(captured) => direct::change(ctx, captured, from, to),
        None if to == BPF_TCP_CLOSE => close(ctx, sk, from),
        None => {}
    }
}

#[inline(always)]
fn publish(ctx: &SockOpsContext, captured: &mut Captured) {
    let flow = flow(ctx);
    if flow.remote_port != OUTBOUND_PORT || !flow.remote.is_local_host() {
        return;
    }
    captured.flow = flow;
    watch_close(ctx);
    if FLOWS.insert(flow, captured.origin, 0).is_err() {
        debug!(ctx, "flow from port {} not published: FLOWS is full", flow.local_port);
        fault(Fault::FlowNotPublished);
    }
}

/// The connection of a context, as its own end names it.
#[inline(always)]
pub fn flow(ctx: &SockOpsContext) -> Flow {
    let ops = ctx.ops;
    // SAFETY: the kernel passes a valid context.
    unsafe {
        let family = read!(ops, family);
        Flow {
            netns: bpf_get_netns_cookie(ops.cast()),
            local: of_family(family, read!(ops, local_ip4), words!(ops, local_ip6)),
            remote: of_family(family, read!(ops, remote_ip4), words!(ops, remote_ip6)),
            local_port: read!(ops, local_port) as u16,
            // The whole word is in network byte order, unlike `local_port` (include/uapi/linux/bpf.h).
            remote_port: u32::from_be(read!(ops, remote_port)) as u16,
            padding: 0,
        }
    }
}

#[inline(always)]
fn listen(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(bound) = BOUND.of(sk) else { return };
    if bound.listening != 0 {
        return;
    }
    bound.listening = 1;
    watch_close(ctx);
    let owner = PortOwner { cgroup: bound.cgroup, ..PortOwner::default() };
    // An error means that there is an entry already.
    let _ = PORTS.insert(bound.port, owner, BPF_NOEXIST.into());
    match PORTS.get_ptr_mut(bound.port) {
        Some(owner) => claim(owner, bound.cgroup),
        None => {
            fault(Fault::PortNotRecorded);
        }
    }
}

/// Enters a listener of `cgroup`. Whom nobody listens for any more gives way; two at once (`SO_REUSEPORT` across
/// workloads) make the port nobody's.
#[inline(always)]
fn claim(owner: *mut PortOwner, cgroup: u64) {
    // SAFETY: the entry stays valid for this program's run; the fields are single aligned words.
    unsafe {
        let is_another = (*owner).cgroup != cgroup;
        if (*owner).listeners == 0 {
            (*owner).contested = 0;
        } else if is_another {
            (*owner).contested = 1;
        }
        if is_another {
            (*owner).cgroup = cgroup;
            (*owner).found = 0;
        }
        add(&raw mut (*owner).listeners, 1);
    }
}

#[inline(always)]
fn close(ctx: &SockOpsContext, sk: *mut bpf_sock, from: u32) {
    // Removing what is not there is an error that says nothing: the other end, or signetd, came first.
    if is_engines_end(ctx) {
        let _ = FLOWS.remove(flow(ctx).reversed());
    }
    if let Some(captured) = SOCKETS.of(sk)
        && (from != BPF_TCP_FIN_WAIT2 || captured.path == PATH_PROBE)
    {
        let _ = FLOWS.remove(captured.flow);
    }
    if let Some(bound) = BOUND.of(sk)
        && bound.listening != 0
    {
        bound.listening = 0;
        release(bound.port);
    }
}

#[inline(always)]
fn release(port: Port) {
    let Some(owner) = PORTS.get_ptr_mut(port) else { return };
    // SAFETY: as in `claim`.
    unsafe {
        // 0: signetd has removed the entry this socket was counted in, and made another.
        if (*owner).listeners != 0 {
            add(&raw mut (*owner).listeners, -1);
        }
    }
}

/// Adds atomically. The target has the instruction, `core` does not offer it there (it has no compare-and-swap on the
/// oldest processor version).
///
/// # Safety
/// `counter` points into a map's value and is aligned.
#[inline(always)]
unsafe fn add(counter: *mut u64, what: i64) {
    // SAFETY: one read-modify-write of the caller's word.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) what, options(nostack))
    };
}

/// Whether this is a connection that the engine accepted.
#[inline(always)]
fn is_engines_end(ctx: &SockOpsContext) -> bool {
    // SAFETY: the kernel passes a valid context.
    unsafe { read!(ctx.ops, local_port) == u32::from(OUTBOUND_PORT) }
}

/// Asks for the socket's changes of state.
#[inline(always)]
pub fn watch_close(ctx: &SockOpsContext) {
    // An error is not possible for a full socket, and this hook's ops have one.
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}
