//! `sk_lookup`: SYNs from outside go to the engine's listeners, those of direct flows to the application. Two programs, one
//! link per network namespace.
//!
//! It runs after the lookup of established sockets and before that of listeners (net/ipv4/inet_hashtables.c
//! `__inet_lookup_listener`). The context says nothing about its namespace, so each namespace has its own copy of the
//! program with its own sockmap and its own cookie. Where the engine is gone its listeners have left the sockmap by themselves, and the
//! packet is dropped: the application is never reached past the engine.

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use signet_common::abi::{Address, Flow, Port, PortOwner};
use signet_common::decision::{self, Fault, Syn, Verdict};
use signet_common::direct::ADMISSION_SYN;

use crate::caller::engine_is_alive;
use crate::maps::{DIRECT, LISTENERS, NETNS, PORTS, config, counted, fault, of_family, read, words};
use crate::probe;

const PASS: u32 = 1;
const DROP: u32 = 0;
const ENOENT: i32 = 2;
const IPPROTO_TCP: u32 = 6;
/// The loopback device's index in every namespace (include/net/flow.h `LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// For a pod's own namespace: everything is steered.
#[sk_lookup]
pub fn signet_steer_pod(ctx: SkLookupContext) -> u32 {
    steer(&ctx, |_| Ownership { owned: None, sole: None })
}

/// For the node's namespace: only what an enrolled workload listens on.
#[sk_lookup]
pub fn signet_steer_node(ctx: SkLookupContext) -> u32 {
    steer(&ctx, |port| {
        let netns = config().map_or(0, |c| c.node_netns);
        // SAFETY: fields are single aligned words.
        let owner = unsafe { PORTS.get(Port { netns, port, padding: [0; 3] }) };
        Ownership {
            owned: Some(owner.is_some_and(PortOwner::is_listening)),
            sole: owner.and_then(PortOwner::sole),
        }
    })
}

/// Whose a port is.
struct Ownership {
    /// In a shared namespace: whether an enrolled workload listens there.
    owned: Option<bool>,
    /// In a shared namespace: the workload that alone listens there.
    sole: Option<u64>,
}

/// The two ends of a packet.
struct Ends {
    /// Here.
    local: Address,
    /// Where it comes from.
    remote: Address,
}

#[inline(always)]
fn steer(ctx: &SkLookupContext, ownership: impl Fn(u16) -> Ownership) -> u32 {
    // SAFETY: the kernel passes a valid context.
    let (protocol, port) = unsafe { (read!(ctx.lookup, protocol), read!(ctx.lookup, local_port) as u16) };
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    let (ends, Ownership { owned, sole }) = (ends(ctx), ownership(port));
    let flow = clients(ctx, &ends, port);
    let (direct, probe) = (is_direct(flow, sole), probe::is_kubelets(flow));
    let (from_inside, engine_alive) = (is_from_inside(ctx, &ends), engine_is_alive());
    let decision = decision::syn(Syn { from_inside, port, owned, direct, probe, engine_alive });
    match counted(decision) {
        Verdict::Deny => DROP,
        Verdict::Redirect => assign(ctx, decision.reason.listener()),
        Verdict::Bypass | Verdict::Direct => PASS,
    }
}

#[inline(always)]
fn ends(ctx: &SkLookupContext) -> Ends {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a valid context.
    unsafe {
        let family = read!(lookup, family);
        Ends {
            local: of_family(family, read!(lookup, local_ip4), words!(lookup, local_ip6)),
            remote: of_family(family, read!(lookup, remote_ip4), words!(lookup, remote_ip6)),
        }
    }
}

/// The connection as its client names it, wherever that is.
#[inline(always)]
fn clients(ctx: &SkLookupContext, ends: &Ends, port: u16) -> Flow {
    // SAFETY: the kernel passes a valid context; the port is in network byte order, unlike `local_port`.
    let client_port = u16::from_be(unsafe { read!(ctx.lookup, remote_port) });
    Flow {
        netns: 0,
        local: ends.remote,
        remote: ends.local,
        local_port: client_port,
        remote_port: port,
        padding: 0,
    }
}

/// Whether it is the SYN of a direct flow to this namespace; its record is told.
#[inline(always)]
fn is_direct(flow: Flow, sole: Option<u64>) -> bool {
    let (Some(record), Some(netns)) = (DIRECT.get_ptr_mut(flow), NETNS.get(0)) else { return false };
    // SAFETY: the entry stays valid for this program's run; what changes in it is single aligned words.
    unsafe {
        let admits = decision::admits(&*record, *netns, sole);
        if admits {
            (*record).admission = ADMISSION_SYN;
        }
        admits
    }
}

/// Whether the namespace itself sent it. A packet to an own address goes over loopback but counts as arriving on the
/// device that has the address (net/ipv4/route.c `ip_route_output_key_hash_rcu`, net/ipv6/ip6_input.c `ip6_rcv_core`): equal
/// addresses tell it, and the engine's sockets, which use other sources, are bound to loopback. A SYN forged from outside
/// with equal addresses gains nothing: the answer stays in the namespace.
#[inline(always)]
fn is_from_inside(ctx: &SkLookupContext, ends: &Ends) -> bool {
    // SAFETY: the kernel passes a valid context.
    let device = unsafe { read!(ctx.lookup, ingress_ifindex) };
    device == LOOPBACK || ends.local == ends.remote
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, listener: u32) -> u32 {
    let verdict = match LISTENERS.redirect_sk_lookup(ctx, listener, 0) {
        Ok(()) => return PASS,
        Err(error) if error == -ENOENT => fault(Fault::ListenerGone),
        Err(_) => fault(Fault::ListenerUnfit),
    };
    if matches!(verdict, Verdict::Deny) { DROP } else { PASS }
}
