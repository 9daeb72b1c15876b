//! `cgroup_skb/egress`: what was redirected to the engine leaves its namespace by no other way.
//!
//! A process with `CAP_NET_ADMIN` in its own namespace can translate or route the engine's address away and so reach the
//! outside in clear. This hook is behind netfilter and routing (net/ipv4/ip_output.c `ip_finish_output`), in the cgroup's
//! hands and not the namespace's. Packets on loopback pass first; sockets that were never redirected have no storage,
//! which is one load.

use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use signet_common::decision::{Fault, Verdict};

use crate::connect::{ALLOW, REFUSE};
use crate::maps::{REDIRECTED, Storage, fault, read};
use crate::steer::LOOPBACK;

#[cgroup_skb(egress)]
pub fn signet_egress(ctx: SkBuffContext) -> i32 {
    let packet = ctx.skb.skb;
    // SAFETY: the kernel passes a valid context.
    if unsafe { read!(packet, ifindex) } == LOOPBACK {
        return ALLOW;
    }
    // SAFETY: as above.
    let sk = unsafe { read!(packet, __bindgen_anon_2.sk) };
    if sk.is_null() {
        return ALLOW;
    }
    // SAFETY: a socket of some kind; the answer is null where it is no full one.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() || REDIRECTED.of(sk).is_none() {
        return ALLOW;
    }
    if matches!(fault(Fault::Diverted), Verdict::Deny) { REFUSE } else { ALLOW }
}
