//! What Signet cannot protect: UDP (and so QUIC), SCTP, raw sockets. Passed or denied by configuration, and counted.
//!
//! UDP is seen where it names a destination, `connect` and `sendmsg`, so that loopback can be let through; SCTP, raw
//! and other IP sockets are seen at `socket(2)`, before a destination exists. What no hook sees: packet sockets
//! (`AF_PACKET`, `CAP_NET_RAW`), sockets of other families, and sockets made before enrolment.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use signet_common::abi::Address;
use signet_common::counter::{self, Protocol};
use signet_common::decision::{Verdict, unprotected};

use crate::caller::{self, Current};
use crate::connect::{ALLOW, REFUSE, destination_v6};
use crate::maps::{config, count, read};

const SOCK_RAW: u32 = 3;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_MPTCP: u32 = 262;

#[cgroup_sock_addr(sendmsg4)]
pub fn signet_sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    let address = Address::v4(unsafe { read!(ctx.sock_addr, user_ip4) });
    answer(datagram(&caller::current(), address, IPPROTO_UDP))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn signet_sendmsg6(ctx: SockAddrContext) -> i32 {
    let address = destination_v6(&ctx);
    answer(datagram(&caller::current(), address, IPPROTO_UDP))
}

#[cgroup_sock(sock_create)]
pub fn signet_sock_create(ctx: SockContext) -> i32 {
    match protocol(ctx.sock) {
        Some(protocol) => answer(decide(&caller::current(), protocol)),
        None => ALLOW,
    }
}

/// Decides for a datagram socket that names a destination.
#[inline(always)]
pub fn datagram(current: &Current, address: Address, protocol: u32) -> Verdict {
    let protocol = if protocol == IPPROTO_UDP { Protocol::Udp } else { Protocol::Other };
    if address.is_local_host() { Verdict::Bypass } else { decide(current, protocol) }
}

#[inline(always)]
fn decide(current: &Current, protocol: Protocol) -> Verdict {
    if !current.is_enrolled() {
        return Verdict::Bypass;
    }
    let verdict = unprotected(config().is_some_and(|c| c.deny_unprotected != 0));
    count(counter::of_unprotected(protocol, verdict));
    verdict
}

/// What `socket(2)` is asked for, where it is neither TCP nor UDP.
#[inline(always)]
fn protocol(sk: *mut bpf_sock) -> Option<Protocol> {
    // SAFETY: the kernel passes a valid socket.
    let (kind, protocol) = unsafe { (read!(sk, type_), read!(sk, protocol)) };
    match (kind, protocol) {
        (SOCK_RAW, _) => Some(Protocol::Raw),
        (_, IPPROTO_TCP | IPPROTO_MPTCP | IPPROTO_UDP) => None,
        (_, IPPROTO_SCTP) => Some(Protocol::Sctp),
        _ => Some(Protocol::Other),
    }
}

#[inline(always)]
fn answer(verdict: Verdict) -> i32 {
    if matches!(verdict, Verdict::Deny) { REFUSE } else { ALLOW }
}
