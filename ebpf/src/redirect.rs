//! A connect that goes to the engine: what its socket needs for that, and what is stored with it.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_bind, bpf_setsockopt};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use signet_common::abi::{Address, Captured, Origin, PATH_REDIRECT, Workload};
use signet_common::decision::{Fault, Verdict};

use crate::caller::Current;
use crate::connect::socket;
use crate::maps::{AF_INET, SOCKETS, Storage, fault, of_family, read, words};

const AF_INET6: u32 = 10;
pub const SOL_SOCKET: i32 = 1;
pub const SO_BINDTOIFINDEX: i32 = 62;

/// Prepares the socket and stores its origin; the caller rewrites the destination.
#[inline(always)]
pub fn redirect(ctx: &SockAddrContext, current: &Current, origin: &Origin) -> Verdict {
    let sk = socket(ctx);
    if !unbind(ctx, sk) {
        debug!(ctx, "connect of cgroup {}: its socket cannot be unbound from its device", current.cgroup);
        return fault(Fault::BoundToDevice);
    }
    // On a node, kubelet and kube-proxy drop what goes to loopback from another address (iptables' KUBE-FIREWALL,
    // CVE-2020-8558): there the source stays loopback, and the engine knows whose it is.
    if let Some(workload) = current.workload
        && workload.host_network == 0
    {
        keep_source(ctx, sk, workload, &origin.destination);
    }
    match SOCKETS.make(sk) {
        Some(captured) => {
            *captured = Captured { origin: *origin, path: PATH_REDIRECT, ..Captured::default() };
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
pub fn keep_source(ctx: &SockAddrContext, sk: *mut bpf_sock, workload: &Workload, destination: &Address) {
    // SAFETY: the kernel passes a valid context and socket.
    let (family, bound) = unsafe {
        let family = read!(ctx.sock_addr, user_family);
        (family, of_family(family, read!(sk, src_ip4), words!(sk, src_ip6)))
    };
    if !bound.is_unspecified() {
        return;
    }
    let Some(source) = first_address(workload, destination.as_v4().is_some()) else { return };
    match (family, source.as_v4()) {
        (AF_INET, Some(word)) => bind(ctx, &mut SocketV4 { family: AF_INET as u16, port: 0, word, zero: 0 }),
        _ => {
            bind(ctx, &mut SocketV6 { family: AF_INET6 as u16, port: 0, flow: 0, words: source.0, scope: 0 })
        }
    }
}

/// The workload's first address of a family.
#[inline(always)]
pub fn first_address(workload: &Workload, v4: bool) -> Option<Address> {
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
