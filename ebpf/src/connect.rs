//! `connect4/6`: decides for a connect, and rewrites what goes to the engine.
//!
//! They run in the caller's context before the routing decision (net/ipv4/af_inet.c `__inet_stream_connect`, and
//! net/mptcp/protocol.c for the subflow of an MPTCP socket), for connect(2), `sendto` with `MSG_FASTOPEN`, and io_uring
//! alike. The origin is stored with the socket: `sock_ops` publishes it once the kernel has chosen the source port.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_bind, bpf_get_netns_cookie, bpf_setsockopt};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use signet_common::abi::{Address, OUTBOUND_PORT, Origin, Port, Redirected, Workload};
use signet_common::decision::{self, Destination, Fault, Reason, Verdict};

use crate::caller::{self, Current};
use crate::maps::{AF_INET, PORTS, REDIRECTED, Storage, counted, fault, of_family, read, words, write};
use crate::unprotected;

/// What the kernel does with a denied connect: EPERM.
pub const REFUSE: i32 = 0;
/// What the kernel does with an allowed one.
pub const ALLOW: i32 = 1;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const AF_INET6: u32 = 10;
const SOL_SOCKET: i32 = 1;
const SO_BINDTOIFINDEX: i32 = 62;
const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();
const ONE: u32 = 1_u32.to_be();

#[cgroup_sock_addr(connect4)]
pub fn signet_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    let address = Address::v4(unsafe { read!(ctx.sock_addr, user_ip4) });
    match connect(&ctx, address) {
        Verdict::Bypass => ALLOW,
        Verdict::Deny => REFUSE,
        Verdict::Redirect => {
            // SAFETY: as above; both fields are writable in this hook.
            unsafe { write!(ctx.sock_addr, user_ip4, LOOPBACK_V4) };
            rewrite_port(&ctx)
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn signet_connect6(ctx: SockAddrContext) -> i32 {
    let address = destination_v6(&ctx);
    match connect(&ctx, address) {
        Verdict::Bypass => ALLOW,
        Verdict::Deny => REFUSE,
        Verdict::Redirect => {
            let to =
                if address.as_v4().is_some() { Address::v4(LOOPBACK_V4) } else { Address([0, 0, 0, ONE]) };
            write_v6(&ctx, to);
            rewrite_port(&ctx)
        }
    }
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
fn connect(ctx: &SockAddrContext, address: Address) -> Verdict {
    // SAFETY: the kernel passes a valid context.
    let protocol = unsafe { read!(ctx.sock_addr, protocol) };
    let current = caller::current();
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return unprotected::datagram(&current, address, protocol);
    }
    let port = port(ctx);
    let decision = decision::connect(current.caller, destination(ctx, &current, address, port));
    match counted(decision) {
        Verdict::Redirect => redirect(ctx, &current, address, port),
        verdict => {
            // What an earlier connect of this socket recorded is no longer true.
            REDIRECTED.forget(socket(ctx));
            if matches!(decision.reason, Reason::UnknownPod | Reason::NotReady) {
                caller::tell_denied(current.cgroup);
            }
            verdict
        }
    }
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

#[inline(always)]
fn owns(workload: &Workload, address: &Address) -> bool {
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

#[inline(always)]
fn redirect(ctx: &SockAddrContext, current: &Current, destination: Address, port: u16) -> Verdict {
    let sk = socket(ctx);
    if !unbind(ctx, sk) {
        debug!(ctx, "connect of cgroup {}: its socket cannot be unbound from its device", current.cgroup);
        return fault(Fault::BoundToDevice);
    }
    if let Some(workload) = current.workload {
        keep_source(ctx, sk, workload, destination);
    }
    let origin = Origin { cgroup: current.cgroup, destination, port, padding: [0; 3] };
    let mut initial = Redirected { origin, ..Redirected::default() };
    match REDIRECTED.make(sk, &mut initial) {
        Some(record) => {
            record.origin = origin;
            Verdict::Redirect
        }
        None => {
            debug!(ctx, "connect of cgroup {}: no memory for its origin", current.cgroup);
            fault(Fault::OriginNotRecorded)
        }
    }
}

/// A socket bound to a device cannot reach loopback.
#[inline(always)]
fn unbind(ctx: &SockAddrContext, sk: *mut bpf_sock) -> bool {
    // SAFETY: the kernel passes a valid socket.
    if unsafe { read!(sk, bound_dev_if) } == 0 {
        return true;
    }
    let mut none = 0_i32;
    let value = core::ptr::from_mut(&mut none).cast();
    // SAFETY: the context is valid and the value is as long as said.
    unsafe { bpf_setsockopt(ctx.sock_addr.cast(), SOL_SOCKET, SO_BINDTOIFINDEX, value, 4) == 0 }
}

/// Gives the socket the source address that it would have had on its way out, where it has none yet: loopback would be
/// what getsockname(2), the engine and the peer's `forwarded` header tell. An error leaves the socket as it is: the
/// address is not in this namespace, or the socket has a port already; only what is told differs.
#[inline(always)]
fn keep_source(ctx: &SockAddrContext, sk: *mut bpf_sock, workload: &Workload, destination: Address) {
    // SAFETY: the kernel passes a valid context and socket.
    let (family, bound) = unsafe {
        let family = read!(ctx.sock_addr, user_family);
        (family, of_family(family, read!(sk, src_ip4), words!(sk, src_ip6)))
    };
    if !bound.is_unspecified() {
        return;
    }
    let Some(source) = source(workload, destination.as_v4().is_some()) else { return };
    match (family, source.as_v4()) {
        (AF_INET, Some(word)) => bind(ctx, &mut SocketV4 { family: AF_INET as u16, port: 0, word, zero: 0 }),
        _ => {
            bind(ctx, &mut SocketV6 { family: AF_INET6 as u16, port: 0, flow: 0, words: source.0, scope: 0 })
        }
    }
}

/// The workload's first address of a family.
#[inline(always)]
fn source(workload: &Workload, v4: bool) -> Option<Address> {
    let mut index = 0;
    let mut found = None;
    for candidate in &workload.addresses {
        if found.is_none() && index < workload.address_count && candidate.as_v4().is_some() == v4 {
            found = Some(*candidate);
        }
        index += 1;
    }
    found
}

/// `struct sockaddr_in`.
#[repr(C)]
struct SocketV4 {
    family: u16,
    port: u16,
    word: u32,
    zero: u64,
}

/// `struct sockaddr_in6`.
#[repr(C)]
struct SocketV6 {
    family: u16,
    port: u16,
    flow: u32,
    words: [u32; 4],
    scope: u32,
}

#[inline(always)]
fn bind<T>(ctx: &SockAddrContext, address: &mut T) {
    let pointer = core::ptr::from_mut(address).cast();
    // SAFETY: the context is valid and the address is as long as said. Port 0: one is chosen when it connects.
    unsafe { bpf_bind(ctx.sock_addr, pointer, size_of::<T>() as i32) };
}

/// The destination's port.
#[inline(always)]
pub fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the kernel passes a valid context.
    u16::from_be(unsafe { read!(ctx.sock_addr, user_port) } as u16)
}

#[inline(always)]
fn rewrite_port(ctx: &SockAddrContext) -> i32 {
    write_port(ctx, OUTBOUND_PORT);
    ALLOW
}
