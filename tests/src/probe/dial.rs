//! Every way to open a TCP connection that an application has.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Greeting, Report, uring};

/// How to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// `connect` on a blocking socket.
    Blocking,
    /// `connect` on a non-blocking socket, then `poll`.
    NonBlocking,
    /// `sendto` with `MSG_FASTOPEN`: there is no `connect` call.
    FastOpen,
    /// `TCP_FASTOPEN_CONNECT`: `connect` returns at once, the first write sends the SYN.
    FastOpenConnect,
    /// `IORING_OP_CONNECT`.
    IoUring,
    /// `IPPROTO_MPTCP`.
    Mptcp,
    /// An AF_INET6 socket to an IPv4-mapped address.
    Mapped,
    /// No TCP at all: one datagram, one answer.
    Udp,
}

/// Where to connect to, and what to do before.
#[derive(Clone, Debug)]
pub struct Target {
    /// The destination.
    pub to: SocketAddr,
    /// Bind to this address first.
    pub from: Option<SocketAddr>,
    /// `SO_BINDTODEVICE` first.
    pub device: Option<String>,
}

/// Connects, sends `text`, half-closes, and reads what comes.
#[must_use]
pub fn dial(kind: Kind, target: &Target, text: &str) -> Report {
    let failed = |step: &str, e: &Error| Report::Failed { step: step.into(), error: name(e) };
    if kind == Kind::Udp {
        return datagram(target, text).unwrap_or_else(|e| failed("exchange", &e));
    }
    match connect(kind, target, text) {
        Ok((stream, sent)) => exchange(stream, &text[sent..]).unwrap_or_else(|e| failed("exchange", &e)),
        Err(error) => failed("connect", &error),
    }
}

/// `ConnectionRefused` and its like; the number where the standard library has no name for it.
fn name(error: &Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::Other, Some(code)) => nix::errno::Errno::from_raw(code).to_string(),
        (kind, _) => format!("{kind:?}"),
    }
}

/// The connected socket, and how many bytes of `text` went with the SYN.
pub(super) fn connect(kind: Kind, target: &Target, text: &str) -> Result<(TcpStream, usize)> {
    let to = if kind == Kind::Mapped { mapped(target.to) } else { target.to };
    let socket = prepare(kind, to, target)?;
    let mut sent = 0;
    match kind {
        Kind::Blocking | Kind::Mptcp | Kind::Mapped | Kind::Udp => socket.connect(&to.into())?,
        Kind::NonBlocking => connect_nonblocking(&socket, &to.into())?,
        Kind::FastOpen => sent = connect_fast_open(&socket, to, text)?,
        Kind::FastOpenConnect => {
            setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())?;
        }
        Kind::IoUring => uring::connect(&socket, &to.into())?,
    }
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok((stream, sent))
}

fn prepare(kind: Kind, to: SocketAddr, target: &Target) -> Result<Socket> {
    let protocol = if kind == Kind::Mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    // Bounds a blocking connect too (socket(7)).
    socket.set_write_timeout(Some(PATIENCE))?;
    if let Some(device) = &target.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(from) = target.from {
        socket.bind(&from.into())?;
    }
    Ok(socket)
}

fn connect_nonblocking(socket: &Socket, to: &SockAddr) -> Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(to) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => (),
        other => other?,
    }
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(PATIENCE).map_err(Error::other)?;
    if poll(&mut ready, timeout)? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    socket.take_error()?.map_or(Ok(()), Err)?;
    socket.set_nonblocking(false)
}

fn connect_fast_open(socket: &Socket, to: SocketAddr, text: &str) -> Result<usize> {
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    Ok(sendto(socket.as_raw_fd(), text.as_bytes(), &SockaddrStorage::from(to), flags)?)
}

fn exchange(mut stream: TcpStream, rest: &str) -> Result<Report> {
    stream.write_all(rest.as_bytes())?;
    let peer = canonical(stream.peer_addr()?);
    stream.shutdown(Shutdown::Write)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let greeting = parse(&line)?;
    let mut echo = String::new();
    reader.read_to_string(&mut echo)?;
    Ok(Report::Answered { peer, greeting, echo })
}

fn datagram(target: &Target, text: &str) -> Result<Report> {
    let any: SocketAddr = if target.to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().expect("literal");
    let socket = UdpSocket::bind(target.from.unwrap_or(any))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(target.to)?;
    socket.send(text.as_bytes())?;
    let mut answer = [0; 2048];
    let length = socket.recv(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    let (line, echo) = answer.split_once('\n').unwrap_or((&answer, ""));
    Ok(Report::Answered { peer: socket.peer_addr()?, greeting: parse(line)?, echo: echo.to_owned() })
}

/// A server that closes without a word is a refusal, not a malformed answer.
fn parse(line: &str) -> Result<Greeting> {
    if line.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(line).map_err(Error::other)
}

/// An IPv4-mapped address as the IPv4 address it maps.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        v6 @ SocketAddr::V6(_) => v6,
    }
}

/// How long one step of a client may take.
const PATIENCE: Duration = Duration::from_secs(15);
