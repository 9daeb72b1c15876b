//! The engine's listeners in one network namespace.
//!
//! Outbound capture listens on loopback, where `connect4/6` sends the workload's sockets. Plaintext capture is reached
//! through `sk_lookup` only, so it is bound where no packet from outside can go; HBONE is bound to the wildcard, so
//! that it also answers on `lo`, where nothing is steered. One IPv6 socket takes both families: `bpf_sk_assign` admits
//! IPv4 to it unless it is `IPV6_V6ONLY` (net/core/filter.c), and a bind to `::1` would make it so, while a bind to
//! `::ffff:127.0.0.1` does not (`__inet6_bind`, net/ipv6/af_inet6.c).
//!
//! Accepted sockets inherit `TCP_NODELAY` and keepalive from these listeners, so accepting costs no further call.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use crate::addr::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};

use super::dial::tune;
use super::{NetError, Netns, routing};

/// The engine's listeners in one network namespace, non-blocking. No runtime knows them yet.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1:15001.
    pub outbound_v4: TcpListener,
    /// \[::1\]:15001; `None` where the namespace has no IPv6.
    pub outbound_v6: Option<TcpListener>,
    /// 15006, target of `sk_lookup`, dual stack where there is IPv6.
    pub plaintext: TcpListener,
    /// 15008, target of `sk_lookup`, dual stack where there is IPv6.
    pub hbone: TcpListener,
}

/// Opens the listeners and prepares the namespace for transparent sources (fwmark settings, ip rule, route; both
/// families; idempotent).
///
/// # Errors
/// Which step failed.
pub fn prepare(netns: &Netns) -> Result<Listeners, NetError> {
    netns.run(open).map_err(NetError::Netns)?
}

/// Undoes what [`prepare`] changed in a namespace that goes on living (un-enrolment). What somebody else had set before
/// stays; the listeners end with their [`Listeners`].
///
/// # Errors
/// Which step failed.
pub fn restore(netns: &Netns) -> Result<(), NetError> {
    netns.run(routing::remove).map_err(NetError::Netns)?
}

/// From here on the listener drops the SYNs of newcomers. They send them again, to whoever listens then; what came before is
/// established and can be accepted. Without it whoever comes between the last `accept` and the end of the listener is reset.
///
/// # Errors
/// The kernel refuses (`SO_ATTACH_FILTER`, socket(7)).
pub fn ignore_newcomers(listener: &impl AsFd) -> io::Result<()> {
    // At a listener a packet begins with its TCP header (net/ipv4/tcp_ipv4.c, `tcp_filter`).
    let instruction = |code: u32, jt, jf, k| SockFilter::new(u16::try_from(code).unwrap_or(0), jt, jf, k);
    let program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, TCP_FLAGS_AT),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&program)
}

fn open() -> Result<Listeners, NetError> {
    routing::install()?;
    Ok(Listeners {
        outbound_v4: bound((Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into())?,
        outbound_v6: optional_v6(bound((Ipv6Addr::LOCALHOST, OUTBOUND_PORT).into()))?,
        plaintext: dual_stack(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), INBOUND_PLAINTEXT_PORT)?,
        hbone: dual_stack(Ipv6Addr::UNSPECIFIED, HBONE_PORT)?,
    })
}

/// `ip` for both families, or its IPv4 part alone where this kernel has no IPv6.
fn dual_stack(ip: Ipv6Addr, port: u16) -> Result<TcpListener, NetError> {
    if let Some(bound) = optional_v6(bound((ip, port).into()))? {
        return Ok(bound);
    }
    let v4 = ip.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED);
    bound((v4, port).into())
}

/// No IPv6 is no failure: `EAFNOSUPPORT` where the kernel has none, `EADDRNOTAVAIL` where the namespace has no `::1`.
fn optional_v6(opened: Result<TcpListener, NetError>) -> Result<Option<TcpListener>, NetError> {
    match opened {
        Ok(bound) => Ok(Some(bound)),
        Err(NetError::Listen { source, .. }) if lacks_ipv6(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

fn bound(address: SocketAddr) -> Result<TcpListener, NetError> {
    listening(address).map(Into::into).map_err(|source| NetError::Listen { address, source })
}

fn listening(address: SocketAddr) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // A predecessor's connections in TIME_WAIT must not keep its successor from binding.
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(v6) = address {
        socket.set_only_v6(v6.ip().is_loopback())?;
    }
    tune(SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Connections the kernel may hold before they are accepted; it caps this at `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;

/// The byte of a TCP header with its flags, and two of them (RFC 9293 §3.1).
const TCP_FLAGS_AT: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn newcomers_are_ignored_and_who_was_there_before_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _before = TcpStream::connect(at).unwrap();
        ignore_newcomers(&listener).unwrap();
        let late = TcpStream::connect_timeout(&at, Duration::from_millis(100)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut, "{late}");
        listener.accept().unwrap();
    }
}
