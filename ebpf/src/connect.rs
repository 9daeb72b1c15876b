//! `connect4/6`: decides for a connect, and rewrites what goes to the engine or to an endpoint of this node.
//!
//! They run in the caller's context before the routing decision (net/ipv4/af_inet.c `__inet_stream_connect`, and
//! net/mptcp/protocol.c for the subflow of an MPTCP socket), for connect(2), `sendto` with `MSG_FASTOPEN`, and io_uring
//! alike. The origin is stored with the socket: `sock_ops` publishes it once the kernel has chosen the source port.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use signet_common::abi::{Address, OUTBOUND_PORT, Origin, Port, Workload};
use signet_common::decision::{self, Decision, Destination, Reason, Verdict};

use crate::caller::{self, Current};
use crate::maps::{PORTS, SOCKETS, Storage, counted, read, words, write};
use crate::redirect::redirect;
use crate::{direct, probe, service, unprotected, wait};

/// What the kernel does with a denied connect: EPERM.
pub const REFUSE: i32 = 0;
/// What the kernel does with an allowed one.
pub const ALLOW: i32 = 1;

const ECONNREFUSED: i32 = 111;
const IPPROTO_TCP: u32 = 6;
/// Not among the protocols that aya knows.
pub const IPPROTO_MPTCP: u32 = 262;
/// 127.0.0.1.
pub const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();
/// `::1`.
pub const LOOPBACK_V6: Address = Address([0, 0, 0, 1_u32.to_be()]);

/// What becomes of a connect.
struct Outcome {
    verdict: Verdict,
    /// Where a direct one goes.
    server: Address,
    port: u16,
}

#[cgroup_sock_addr(connect4)]
pub fn signet_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    let address = Address::v4(unsafe { read!(ctx.sock_addr, user_ip4) });
    let Outcome { verdict, server, port } = connect(&ctx, address);
    let (word, port) = match verdict {
        Verdict::Bypass => return ALLOW,
        Verdict::Deny => return refuse(&ctx),
        Verdict::Redirect => (LOOPBACK_V4, OUTBOUND_PORT),
        Verdict::Direct => (server.0[3], port),
    };
    // SAFETY: as above; the address is writable in this hook.
    unsafe { write!(ctx.sock_addr, user_ip4, word) };
    write_port(&ctx, port);
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn signet_connect6(ctx: SockAddrContext) -> i32 {
    let address = destination_v6(&ctx);
    let Outcome { verdict, server, port } = connect(&ctx, address);
    let (to, port) = match verdict {
        Verdict::Bypass => return ALLOW,
        Verdict::Deny => return refuse(&ctx),
        Verdict::Redirect if address.as_v4().is_some() => (Address::v4(LOOPBACK_V4), OUTBOUND_PORT),
        Verdict::Redirect => (LOOPBACK_V6, OUTBOUND_PORT),
        Verdict::Direct => (server, port),
    };
    write_v6(&ctx, to);
    write_port(&ctx, port);
    ALLOW
}

/// Fails a TCP connect with ECONNREFUSED, which applications take for a server that is not there yet, and anything else
/// with EPERM.
#[inline(always)]
fn refuse(ctx: &SockAddrContext) -> i32 {
    if is_tcp(ctx) {
        // SAFETY: sets what connect(2) returns. An error leaves EPERM.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

#[inline(always)]
fn is_tcp(ctx: &SockAddrContext) -> bool {
    // SAFETY: the kernel passes a valid context.
    matches!(unsafe { read!(ctx.sock_addr, protocol) }, IPPROTO_TCP | IPPROTO_MPTCP)
}

/// The destination of an `AF_INET6` context.
#[inline(always)]
pub fn destination_v6(ctx: &SockAddrContext) -> Address {
    // SAFETY: the kernel passes a valid context.
    unsafe { words!(ctx.sock_addr, user_ip6) }
}

/// Replaces the address of an `AF_INET6` context.
#[inline(always)]
pub fn write_v6(ctx: &SockAddrContext, to: Address) {
    // SAFETY: the kernel passes a valid context whose address this hook may write.
    unsafe {
        write!(ctx.sock_addr, user_ip6[0], to.0[0]);
        write!(ctx.sock_addr, user_ip6[1], to.0[1]);
        write!(ctx.sock_addr, user_ip6[2], to.0[2]);
        write!(ctx.sock_addr, user_ip6[3], to.0[3]);
    }
}

/// Replaces the port of a context.
#[inline(always)]
pub fn write_port(ctx: &SockAddrContext, to: u16) {
    // SAFETY: the kernel passes a valid context whose port this hook may write.
    unsafe { write!(ctx.sock_addr, user_port, u32::from(to.to_be())) };
}

/// The socket of a context. The kernel never passes null here.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the kernel passes a valid context.
    unsafe { read!(ctx.sock_addr, __bindgen_anon_1.sk) }
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, address: Address) -> Outcome {
    let current = caller::current();
    if !is_tcp(ctx) {
        // SAFETY: the kernel passes a valid context.
        let protocol = unsafe { read!(ctx.sock_addr, protocol) };
        return nowhere(unprotected::datagram(&current, address, protocol));
    }
    let port = port(ctx);
    let caller = wait::rescued(ctx, &current, address);
    let decision = decision::connect(caller, destination(ctx, &current, address, port));
    if matches!(decision.reason, Reason::UnknownPod | Reason::NotReady) {
        caller::tell_awaited(current.cgroup);
    }
    if matches!(decision.verdict, Verdict::Redirect) {
        return leave(ctx, &current, decision, address, port);
    }
    // What an earlier connect of this socket recorded is no longer true.
    SOCKETS.forget(socket(ctx));
    if matches!(decision.reason, Reason::Kubelet) {
        probe::mark(socket(ctx), &current, address, port);
    }
    nowhere(counted(decision))
}

/// A workload of the mesh connects to elsewhere: past the engine where a permit says so, and otherwise to it.
#[inline(always)]
fn leave(
    ctx: &SockAddrContext,
    current: &Current,
    decision: Decision,
    address: Address,
    port: u16,
) -> Outcome {
    let mut origin = Origin { cgroup: current.cgroup, destination: address, port, ..Origin::default() };
    let (mut server, mut server_port) = (address, port);
    if let Some(backend) = service::choose(current, &address, port) {
        (origin.choice, origin.choice_port) = (backend.address, backend.port);
        (server, server_port) = (backend.address, backend.port);
    }
    let (decision, permit) = match decision.reason {
        Reason::NotReady => (decision, None),
        _ => direct::decide(current.cgroup, server, server_port),
    };
    let verdict = match (counted(decision), permit) {
        (Verdict::Direct, Some(permit)) => direct::take(ctx, current, &origin, permit, server, server_port),
        _ => redirect(ctx, current, &origin),
    };
    Outcome { verdict, server, port: server_port }
}

#[inline(always)]
fn nowhere(verdict: Verdict) -> Outcome {
    Outcome { verdict, server: Address([0; 4]), port: 0 }
}

#[inline(always)]
fn destination(ctx: &SockAddrContext, current: &Current, address: Address, port: u16) -> Destination {
    if address.is_local_host() {
        return Destination::LocalHost;
    }
    match current.workload {
        Some(workload) if owns(workload, &address) && is_its_own_port(ctx, current, workload, port) => {
            Destination::Own
        }
        _ => Destination::Elsewhere,
    }
}

/// Whether an address is one of the workload's.
#[inline(always)]
pub fn owns(workload: &Workload, address: &Address) -> bool {
    let mut index = 0;
    let mut own = false;
    for candidate in &workload.addresses {
        own |= index < workload.address_count && candidate == address;
        index += 1;
    }
    own
}

/// In a shared namespace an address is everyone's: only the port tells.
#[inline(always)]
fn is_its_own_port(ctx: &SockAddrContext, current: &Current, workload: &Workload, port: u16) -> bool {
    if workload.host_network == 0 {
        return true;
    }
    // SAFETY: the kernel passes a valid context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    // SAFETY: fields are single aligned words.
    unsafe { PORTS.get(Port { netns, port, padding: [0; 3] }) }
        .is_some_and(|owner| owner.sole() == Some(current.cgroup))
}

/// The destination's port.
#[inline(always)]
pub fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the kernel passes a valid context.
    u16::from_be(unsafe { read!(ctx.sock_addr, user_port) } as u16)
}
