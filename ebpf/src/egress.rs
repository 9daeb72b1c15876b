//! `cgroup_skb/egress`: what was redirected to the engine leaves its namespace by no other way, and a direct socket sends
//! nothing before its server is known to be the one it was permitted to reach.
//!
//! A process with `CAP_NET_ADMIN` in its own namespace can translate or route an address away and so reach somebody else
//! in clear; an address can go to another pod between a permit and its use. This hook is behind netfilter and routing
//! (net/ipv4/ip_output.c `ip_finish_output`), in the cgroup's hands and not the namespace's. It runs for every packet:
//! those on loopback pass first; sockets that were never captured, all servers' among them, have no storage, which is one
//! load; a direct socket's is one load more.
//!
//! On loopback it only holds SYNs, see `wait`.

use aya_ebpf::bindings::BPF_TCP_SYN_SENT;
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use signet_common::decision::{Verdict, departure};

use crate::connect::{ALLOW, REFUSE};
use crate::maps::{SOCKETS, Storage, fault, read};
use crate::steer::LOOPBACK;
use crate::wait;

#[cgroup_skb(egress)]
pub fn signet_egress(ctx: SkBuffContext) -> i32 {
    let packet = ctx.skb.skb;
    // SAFETY: the kernel passes a valid context.
    let sk = unsafe { read!(packet, __bindgen_anon_2.sk) };
    if sk.is_null() {
        return ALLOW;
    }
    // SAFETY: a socket of some kind; the answer is null where it is no full one.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return ALLOW;
    }
    // SAFETY: the helper's answer is a socket, and the kernel passes a valid context.
    let (is_connecting, is_inside) =
        unsafe { (read!(sk, state) == BPF_TCP_SYN_SENT, read!(packet, ifindex) == LOOPBACK) };
    if is_inside && !is_connecting {
        return ALLOW;
    }
    let Some(captured) = SOCKETS.of(sk) else { return ALLOW };
    if is_inside {
        return wait::pass_or_hold(&ctx, captured);
    }
    match departure(captured.path, captured.stage, is_connecting).map(fault) {
        Some(Verdict::Deny) => REFUSE,
        _ => ALLOW,
    }
}
