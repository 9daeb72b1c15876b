//! `getpeername4/6`: the application sees the destination it asked for.
//!
//! The origin is in the socket's storage. An MPTCP socket is the exception: `connect4/6` saw its subflow, another
//! socket, so the flow is looked up by the tuple that both have.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use signet_common::abi::{Address, Captured, Flow, OUTBOUND_PORT, Origin, PATH_DIRECT, PATH_REDIRECT};

use crate::connect::{ALLOW, IPPROTO_MPTCP, destination_v6, port, socket, write_port, write_v6};
use crate::maps::{DIRECT, FLOWS, SOCKETS, Storage, of_family, read, words, write};

#[cgroup_sock_addr(getpeername4)]
pub fn signet_getpeername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    let remote = Address::v4(unsafe { read!(ctx.sock_addr, user_ip4) });
    if let Some(origin) = origin(&ctx, remote)
        && let Some(word) = origin.destination.as_v4()
    {
        // SAFETY: as above; this hook may write the address.
        unsafe { write!(ctx.sock_addr, user_ip4, word) };
        write_port(&ctx, origin.port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn signet_getpeername6(ctx: SockAddrContext) -> i32 {
    let remote = destination_v6(&ctx);
    if let Some(origin) = origin(&ctx, remote) {
        write_v6(&ctx, origin.destination);
        write_port(&ctx, origin.port);
    }
    ALLOW
}

/// The origin of the context's socket, if its peer is who it was sent to.
#[inline(always)]
fn origin(ctx: &SockAddrContext, remote: Address) -> Option<Origin> {
    let sk = socket(ctx);
    match SOCKETS.of(sk) {
        Some(captured) if is_peer(captured, remote, port(ctx)) => Some(captured.origin),
        Some(_) => None,
        None => published(ctx, sk, remote, port(ctx)),
    }
}

#[inline(always)]
fn is_peer(captured: &Captured, remote: Address, port: u16) -> bool {
    match captured.path {
        PATH_REDIRECT => is_engine(remote, port),
        PATH_DIRECT => captured.flow.remote == remote && captured.flow.remote_port == port,
        _ => false,
    }
}

#[inline(always)]
fn is_engine(remote: Address, port: u16) -> bool {
    port == OUTBOUND_PORT && remote.is_local_host()
}

#[inline(always)]
fn published(ctx: &SockAddrContext, sk: *mut bpf_sock, remote: Address, remote_port: u16) -> Option<Origin> {
    // SAFETY: the kernel passes a valid socket.
    if unsafe { read!(sk, protocol) } != IPPROTO_MPTCP {
        return None;
    }
    // SAFETY: the kernel passes a valid context and socket.
    let (netns, local, local_port) = unsafe {
        let netns = bpf_get_netns_cookie(ctx.sock_addr.cast());
        let local = of_family(read!(sk, family), read!(sk, src_ip4), words!(sk, src_ip6));
        (netns, local, read!(sk, src_port) as u16)
    };
    let flow = Flow { netns, local, remote, local_port, remote_port, padding: 0 };
    // SAFETY: an origin is written once, before its flow can be found.
    unsafe {
        match is_engine(remote, remote_port) {
            true => FLOWS.get(flow).copied(),
            false => DIRECT.get(flow.anywhere()).map(|record| record.origin),
        }
    }
}
