//! What becomes of the SYN of a redirected socket, on loopback in its own namespace: it passes, or is held.
//!
//! It is held while the engine's listeners are not up: in a pod that has just begun, or while a killed engine is started
//! again. TCP sends a SYN that was dropped again, and it arrives once they are, so that such a connect waits and is not
//! refused. It cannot wait in `connect`, whose hook cannot sleep. Nothing is held for an engine that hangs, or that has
//! given no heartbeat for so long that none may come back ([`PATIENCE`](signet_common::decision::PATIENCE)).

use core::ffi::c_void;

use aya_ebpf::bindings::{
    bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6,
};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockOpsContext};
use signet_common::abi::{Address, Captured, OUTBOUND_PORT, PATH_REDIRECT};
use signet_common::decision::{Caller, Capture, is_held};

use crate::caller::{Current, capture_of, engine_is_awaited};
use crate::connect::{ALLOW, LOOPBACK_V4, LOOPBACK_V6, REFUSE};
use crate::maps::FLOWS;

/// When the SYN of a redirected socket is sent again first, in ticks of the kernel: after 50 ms (`HZ` 1000) to 500 ms (`HZ`
/// 100) instead of a second. The next ones double as ever (net/ipv4/tcp_timer.c `tcp_retransmit_timer`), so with the
/// kernel's defaults a connect waits between 6 s and a minute before it fails with ETIMEDOUT.
const SYN_TIMEOUT: u32 = 50;
/// `BPF_F_CURRENT_NETNS`.
const HERE: u64 = u64::MAX;

/// Answers `BPF_SOCK_OPS_TIMEOUT_INIT`, which is asked after `TCP_CONNECT_CB` (net/ipv4/tcp_output.c `tcp_connect_init`).
#[inline(always)]
pub fn hurry(ctx: &SockOpsContext, captured: &Captured) {
    if captured.path == PATH_REDIRECT {
        ctx.set_reply(SYN_TIMEOUT);
    }
}

/// The caller of a connect as [`crate::caller::current`] found it; one whose engine does not listen, and so may be about to,
/// is not stranded yet.
#[inline(always)]
pub fn rescued(ctx: &SockAddrContext, current: &Current, destination: Address) -> Caller {
    match (current.caller, current.workload) {
        (Caller::Stranded, Some(workload))
            if engine_is_awaited()
                && !listens(ctx.sock_addr.cast(), OUTBOUND_PORT, destination.as_v4().is_some()) =>
        {
            Caller::Workload(Capture::of(workload))
        }
        (caller, _) => caller,
    }
}

/// Holds the SYN of a redirected socket, or lets it go with its record in place: an engine that has started meanwhile has
/// removed all.
#[inline(always)]
pub fn pass_or_hold(ctx: &SkBuffContext, captured: &Captured) -> i32 {
    if captured.path != PATH_REDIRECT {
        return ALLOW;
    }
    let flow = &captured.flow;
    let listens = listens(ctx.skb.skb.cast(), OUTBOUND_PORT, flow.remote.as_v4().is_some());
    if is_held(capture_of(captured.origin.cgroup), listens, engine_is_awaited()) {
        return REFUSE;
    }
    // SAFETY: the entry is not read. A connect whose record could not be published has been counted.
    if flow.remote_port != 0 && unsafe { FLOWS.get(flow) }.is_none() {
        let _ = FLOWS.insert(flow, captured.origin, 0);
    }
    ALLOW
}

/// Whether the engine listens on that port of its own in this namespace, for addresses of that family. The listener is
/// asked for by a packet that nobody sends: the client's own could meet what an earlier connection has left in TIME_WAIT.
#[inline(always)]
pub fn listens(ctx: *mut c_void, port: u16, v4: bool) -> bool {
    let port = port.to_be();
    if v4 {
        let ipv4 = TupleV4 { saddr: LOOPBACK_V4, daddr: LOOPBACK_V4, sport: port, dport: port };
        return is_found(ctx, bpf_sock_tuple__bindgen_ty_1 { ipv4 }, size_of::<TupleV4>());
    }
    let ipv6 = TupleV6 { saddr: LOOPBACK_V6.0, daddr: LOOPBACK_V6.0, sport: port, dport: port };
    is_found(ctx, bpf_sock_tuple__bindgen_ty_1 { ipv6 }, size_of::<TupleV6>())
}

#[inline(always)]
fn is_found(ctx: *mut c_void, ends: bpf_sock_tuple__bindgen_ty_1, size: usize) -> bool {
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: ends };
    // SAFETY: the context is valid and the tuple as long as said; what was found is given back.
    unsafe {
        let sk = bpf_sk_lookup_tcp(ctx, &raw mut tuple, size as u32, HERE, 0);
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk.cast());
    }
    true
}
