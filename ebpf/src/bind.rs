//! `post_bind4/6`: marks a bound TCP socket of a hostNetwork workload with its owner.
//!
//! The mark lives with the socket, and `sock_ops` counts the port when the socket listens and uncounts it when it
//! closes: `SO_REUSEPORT`, dual-stack pairs and forks need no bookkeeping of their own. What it does not see: a socket
//! that listens without having been bound (the kernel picks a port without calling this hook), and sockets bound before
//! enrolment, which signetd finds by INET_DIAG.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use signet_common::abi::{Bound, Port};

use crate::caller;
use crate::connect::ALLOW;
use crate::maps::{BOUND, Storage, read};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

#[cgroup_sock(post_bind4)]
pub fn signet_post_bind4(ctx: SockContext) -> i32 {
    mark(ctx.sock)
}

#[cgroup_sock(post_bind6)]
pub fn signet_post_bind6(ctx: SockContext) -> i32 {
    mark(ctx.sock)
}

#[inline(always)]
fn mark(sk: *mut bpf_sock) -> i32 {
    // SAFETY: the kernel passes a valid socket.
    let (protocol, port) = unsafe { (read!(sk, protocol), read!(sk, src_port) as u16) };
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return ALLOW;
    }
    let current = caller::current();
    if !current.is_enrolled() || current.workload.is_none_or(|workload| workload.host_network == 0) {
        return ALLOW;
    }
    // SAFETY: as above.
    let netns = unsafe { bpf_get_netns_cookie(sk.cast()) };
    let port = Port { netns, port, padding: [0; 3] };
    match BOUND.make(sk) {
        Some(bound) if bound.cgroup == 0 => {
            *bound = Bound { cgroup: current.cgroup, port, listening: 0, padding: 0 };
            ALLOW
        }
        // A socket has one owner and, once bound, one port.
        Some(_) => ALLOW,
        // Without the mark its SYNs would not be steered: the bind is refused (EPERM).
        None => crate::connect::REFUSE,
    }
}
