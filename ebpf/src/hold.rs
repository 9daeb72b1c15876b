//! `tcx/ingress` of a pod's devices: a SYN from outside waits for the engine that is to accept it.
//!
//! While an engine is replaced nobody listens for it in its pods, and `sk_lookup`, which can refuse a SYN and not drop it,
//! would refuse clients that no engine of their own lets wait. Dropped before the look-up, the SYN is sent again, and
//! accepted then. What is not held goes on to `steer`, which decides as ever: nothing reaches an application by this
//! program. It runs for every packet that comes in, and reads the first bytes of each. What a pod only forwards waits too.

use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::bindings::tcx_action_base::{TCX_DROP, TCX_NEXT};
use aya_ebpf::helpers::generated::bpf_skb_load_bytes_relative;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use signet_common::abi::{Address, Flow, PLAINTEXT_PORT};
use signet_common::decision::{Decision, Reason, Verdict, is_kept_outside};

use crate::caller::engine_is_awaited;
use crate::maps::{DIRECT, FLOWS, counted, read};
use crate::wait::listens;

/// As `skb->protocol` has them (include/uapi/linux/if_ether.h), in network byte order.
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const IPPROTO_TCP: u8 = 6;
/// Version 4 and a header without options: a SYN with some is not held.
const PLAIN_IPV4: u8 = 0x45;
const ETHERNET_HEADER: usize = 14;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// Up to and with TCP's flags.
const TCP_FLAGS: usize = 14;
const FIN_SYN_RST_ACK: u8 = 0x17;
const SYN: u8 = 0x02;

#[classifier]
pub fn signet_hold(ctx: TcContext) -> i32 {
    if is_seen_to_open_nothing(&ctx) {
        return TCX_NEXT;
    }
    // SAFETY: the kernel passes a valid context.
    let syn = match unsafe { read!(ctx.skb.skb, protocol) } {
        ETH_P_IP => ipv4(&ctx),
        ETH_P_IPV6 => ipv6(&ctx),
        _ => None,
    };
    match syn {
        Some(flow) if is_kept(&ctx, flow) => TCX_DROP,
        _ => TCX_NEXT,
    }
}

/// What most packets are: IPv4 behind an Ethernet header, TCP, and no SYN. Read where it lies; of others this says nothing, and
/// of a device without such headers something wrong at worst, which costs a refusal.
#[inline(always)]
fn is_seen_to_open_nothing(ctx: &TcContext) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + ETHERNET_HEADER + IPV4_HEADER + TCP_FLAGS > end {
        return false;
    }
    // SAFETY: that many bytes are there, which the verifier has seen compared.
    let byte = |at: usize| unsafe { *((start + ETHERNET_HEADER + at) as *const u8) };
    byte(0) == PLAIN_IPV4
        && byte(9) == IPPROTO_TCP
        && byte(IPV4_HEADER + TCP_FLAGS - 1) & FIN_SYN_RST_ACK != SYN
}

#[inline(always)]
fn is_kept(ctx: &TcContext, flow: Flow) -> bool {
    let is_admitted = || FLOWS.get_ptr(flow).is_some() || DIRECT.get_ptr(flow).is_some();
    // On the IPv4 loopback address, for both families.
    let listens = || listens(ctx.skb.skb.cast(), PLAINTEXT_PORT, true);
    let is_kept = is_kept_outside(flow.remote_port, is_admitted, listens, engine_is_awaited());
    if is_kept {
        counted(Decision { verdict: Verdict::Redirect, reason: Reason::NotReady });
    }
    is_kept
}

/// The connection that the packet opens, as its client names it; `None` where it opens none.
#[inline(always)]
fn ipv4(ctx: &TcContext) -> Option<Flow> {
    let head: [u8; IPV4_HEADER + TCP_FLAGS] = head(ctx)?;
    if head[0] != PLAIN_IPV4 || head[9] != IPPROTO_TCP {
        return None;
    }
    let address = |at: usize| Address::v4(word(&head, at));
    opened((address(12), address(16)), &head, IPV4_HEADER)
}

/// The same; of a packet with extension headers `None`.
#[inline(always)]
fn ipv6(ctx: &TcContext) -> Option<Flow> {
    let head: [u8; IPV6_HEADER + TCP_FLAGS] = head(ctx)?;
    if head[6] != IPPROTO_TCP {
        return None;
    }
    let address = |at: usize| Address([0, 4, 8, 12].map(|word_at| word(&head, at + word_at)));
    opened((address(8), address(24)), &head, IPV6_HEADER)
}

#[inline(always)]
fn opened((from, to): (Address, Address), head: &[u8], tcp: usize) -> Option<Flow> {
    if head[tcp + TCP_FLAGS - 1] & FIN_SYN_RST_ACK != SYN {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([head[tcp + at], head[tcp + at + 1]]);
    Some(Flow { netns: 0, local: from, remote: to, local_port: port(0), remote_port: port(2), padding: 0 })
}

/// As the kernel's contexts have them: in network byte order.
#[inline(always)]
fn word(head: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// The first bytes from the IP header on, whatever is before it; `None` where there are not so many.
#[inline(always)]
fn head<const N: usize>(ctx: &TcContext) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: there is room for so many bytes.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            ctx.skb.skb.cast(),
            0,
            bytes.as_mut_ptr().cast(),
            N as u32,
            BPF_HDR_START_NET,
        )
    };
    (result == 0).then_some(bytes)
}
