//! Dialling from inside a network namespace, in the engine's own name or in a client's.
//!
//! [`dial_transparent`] lets the application see its client's address: the socket is bound to an address that is not
//! this namespace's (`IP_TRANSPARENT`), and its mark makes the answers come back (see `routing`). The client's port is
//! kept where the caller knows it and the tuple is free; otherwise a port is taken that clients do not use themselves.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{NetError, Netns};
use crate::addr::ENGINE_MARK;

/// Dials from inside `netns`: keepalive 180 s/180 s/9, TCP_NODELAY.
///
/// # Errors
/// Refused, unreachable, or `timeout`.
pub async fn dial(netns: &Netns, to: SocketAddr, timeout: Duration) -> Result<TcpStream, NetError> {
    let socket = socket_in(netns, to, |_| Ok(()))?;
    connect(socket, to, timeout).await
}

/// Dials the application with the client's address as source.
///
/// The source port is `from`'s where it is not 0 and that tuple is free. Pass port 0 where the engine itself holds the
/// client's connection in this namespace (the plaintext path): a second socket with the mirrored tuple would get the
/// first one's packets. `is_mirrored` says the same of other connections of that client.
///
/// # Errors
/// Refused, unreachable, or `timeout`.
pub async fn dial_transparent(
    netns: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    is_mirrored: impl Fn(SocketAddr) -> bool,
    timeout: Duration,
) -> Result<TcpStream, NetError> {
    let mut ports = SourcePorts::new(from.port());
    loop {
        let source = SocketAddr::new(from.ip(), ports.next());
        if is_mirrored(source) && !ports.exhausted() {
            continue;
        }
        let attempt = async {
            let socket = socket_in(netns, to, |socket| bind_transparent(socket, source, to))?;
            connect(socket, to, timeout).await
        };
        match attempt.await {
            Err(error) if error.is_taken_tuple() && !ports.exhausted() => {}
            outcome => return outcome,
        }
    }
}

/// What every socket of the engine has, accepted or dialled: no Nagle delay, and keepalive as ztunnel sets it
/// (docs/hbone.md), so that a peer that vanished is noticed within 180 s + 9 · 180 s.
pub(super) fn tune(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(9))
}

/// A tuned socket made in `netns`, after `bind` has had it there.
fn socket_in(
    netns: &Netns,
    to: SocketAddr,
    bind: impl FnOnce(&Socket) -> io::Result<()>,
) -> Result<TcpSocket, NetError> {
    let made = netns.run(|| {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
        tune(SockRef::from(&socket))?;
        bind(&socket)?;
        Ok(socket)
    });
    let socket = made.map_err(NetError::Netns)?.map_err(|source| NetError::Local { to, source })?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

async fn connect(socket: TcpSocket, to: SocketAddr, timeout: Duration) -> Result<TcpStream, NetError> {
    match tokio::time::timeout(timeout, socket.connect(to)).await {
        Ok(connected) => connected.map_err(|source| NetError::connect(to, source)),
        Err(_) => Err(NetError::TimedOut(to)),
    }
}

fn bind_transparent(socket: &Socket, source: SocketAddr, to: SocketAddr) -> io::Result<()> {
    match source {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_mark(ENGINE_MARK)?;
    // A packet to an own address counts as arriving on the device that has the address (net/ipv4/route.c
    // `ip_route_output_key_hash_rcu`, net/ipv6/ip6_input.c `ip6_rcv_core`), so `sk_lookup` would take it for one from outside
    // and send it back to the engine. Bound to loopback, it is routed by our own table and arrives there. Where both ends
    // have the same address (a workload that calls itself through a Service, two of the node's own), `sk_lookup` knows it
    // by that, and the answer counts as arriving on the address's device too: a socket bound to loopback would not get it.
    if source.ip() != to.ip() {
        socket.bind_device(Some(LOOPBACK))?;
    }
    // The address may be shared by several connections to different ports; the tuple is checked when connecting.
    socket.set_reuse_address(true)?;
    setsockopt(socket, IpBindAddressNoPort, &(source.port() == 0))?;
    socket.bind(&source.into())
}

/// The source ports to try, in order: the client's own, a few at random, and at last whichever the kernel finds.
struct SourcePorts {
    clients_own: Option<NonZeroU16>,
    left: u8,
}

impl SourcePorts {
    fn new(clients_own: u16) -> Self {
        Self { clients_own: NonZeroU16::new(clients_own), left: RANDOM_PORTS }
    }

    fn next(&mut self) -> u16 {
        if let Some(port) = self.clients_own.take() {
            return port.get();
        }
        self.left = self.left.saturating_sub(1);
        if self.exhausted() { 0 } else { rand::random_range(UNUSED_BY_CLIENTS) }
    }

    fn exhausted(&self) -> bool {
        self.left == 0
    }
}

const LOOPBACK: &[u8] = b"lo";

/// Both the first probe of an idle connection and the pause between probes (docs/hbone.md).
const KEEPALIVE: Duration = Duration::from_secs(180);

/// Ports below Linux' default `ip_local_port_range` (32768-60999): a client does not pick one of them by itself, so its
/// next connection never has the tuple that the engine uses in its name.
const UNUSED_BY_CLIENTS: RangeInclusive<u16> = 1024..=32767;

/// How many of these are tried before the kernel chooses: each is free unless this client already has it here.
const RANDOM_PORTS: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_own_port_is_tried_first_and_the_kernels_choice_last() {
        let mut ports = SourcePorts::new(40000);
        let mut tried = Vec::new();
        while !ports.exhausted() {
            tried.push(ports.next());
        }
        assert_eq!(tried.first(), Some(&40000));
        assert_eq!(tried.last(), Some(&0));
        assert!(tried[1..tried.len() - 1].iter().all(|port| UNUSED_BY_CLIENTS.contains(port)));
    }

    #[test]
    fn without_a_port_none_that_a_client_would_pick_is_tried() {
        assert!(UNUSED_BY_CLIENTS.contains(&SourcePorts::new(0).next()));
    }
}
