//! The kernel's list of TCP sockets of one network namespace (NETLINK_SOCK_DIAG): read it, and end a socket in it.
//!
//! A netlink socket belongs to the namespace it was made in, so one is made on a thread inside and kept by whoever asks
//! often. Everything is an exchange that the kernel answers at once; a timeout bounds what must not hang. What an
//! attribute means is the caller's to know ([`super::listening`], [`super::direct`], [`super::earlier`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as Netlink};

use super::netns::inside;

/// A netlink socket.
pub(super) struct Diag {
    socket: Socket,
}

/// One socket, as the kernel names it (`struct inet_diag_sockid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketId {
    /// This end.
    pub(super) local: SocketAddr,
    /// The other end.
    pub(super) remote: SocketAddr,
    /// The device it is bound to; 0 for none.
    pub(super) device: u32,
    /// Its cookie.
    pub(super) cookie: u64,
}

/// Which sockets are listed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    /// `AF_INET` or `AF_INET6`.
    pub(super) family: libc::c_int,
    /// Bits by `enum tcp_state`.
    pub(super) states: u32,
    /// Bits by attribute less one.
    pub(super) attributes: u8,
}

impl Diag {
    /// In the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        nix::sys::socket::setsockopt(
            &socket.as_fd(),
            nix::sys::socket::sockopt::ReceiveTimeout,
            &nix::sys::time::TimeVal::new(ANSWER_SECONDS, 0),
        )?;
        Ok(Self { socket })
    }

    /// In another namespace.
    pub(super) fn open_in(netns: BorrowedFd<'_>) -> io::Result<Self> {
        inside(netns, Self::open)?
    }

    /// Hands each listed socket's message (`struct inet_diag_msg` and its attributes) to `each`.
    pub(super) fn list(&self, listed: Listed, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut request = header(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP);
        request.extend([listed.family as u8, libc::IPPROTO_TCP as u8, listed.attributes, 0]);
        request.extend(listed.states.to_ne_bytes());
        request.resize(REQUEST, 0);
        self.exchange(&request, &mut each)
    }

    /// Ends a socket as if its peer had gone, and tells the peer by a reset. False where there is none with that cookie.
    pub(super) fn destroy(&self, id: &SocketId) -> io::Result<bool> {
        let mut request = header(SOCK_DESTROY, NLM_F_REQUEST_ACK);
        let family = if id.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        request.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
        request.extend(u32::MAX.to_ne_bytes());
        request.extend(id.local.port().to_be_bytes());
        request.extend(id.remote.port().to_be_bytes());
        request.extend(address_words(id.local));
        request.extend(address_words(id.remote));
        request.extend(id.device.to_ne_bytes());
        request.extend((id.cookie as u32).to_ne_bytes());
        request.extend(((id.cookie >> 32) as u32).to_ne_bytes());
        match self.exchange(&request, &mut |_| ()) {
            Ok(()) => Ok(true),
            // ESTALE: another socket has its tuple by now.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn exchange(&self, request: &[u8], each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.socket.send_to(request, &Netlink::new(0, 0), 0)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            if !parse(&buffer, each)? {
                return Ok(());
            }
        }
    }
}

/// Whether this kernel can end another process's socket (CONFIG_INET_DIAG_DESTROY): asked about one that cannot be.
pub(super) fn can_destroy() -> io::Result<()> {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    Diag::open()?
        .destroy(&SocketId { local: nowhere, remote: nowhere, device: 0, cookie: u64::MAX })
        .map(drop)
}

/// The id in a listed socket's message.
pub(super) fn id_of(message: &[u8]) -> Option<SocketId> {
    let ipv4 = i32::from(*message.first()?) == libc::AF_INET;
    let end = |port: usize, address: usize| {
        let port = u16::from_be_bytes(message.get(port..port + 2)?.try_into().ok()?);
        let octets: [u8; 16] = message.get(address..address + 16)?.try_into().ok()?;
        let v4 = [octets[0], octets[1], octets[2], octets[3]];
        Some(if ipv4 { SocketAddr::from((v4, port)) } else { SocketAddr::from((octets, port)) })
    };
    let cookie = u64::from(read_u32(message, 44)?) | u64::from(read_u32(message, 48)?) << 32;
    Some(SocketId { local: end(4, 8)?, remote: end(6, 24)?, device: read_u32(message, 40)?, cookie })
}

/// An attribute of a listed socket's message.
pub(super) fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut attributes = message.get(DIAG_MESSAGE..)?;
    loop {
        let length = usize::from(read_u16(attributes, 0)?);
        if read_u16(attributes, 2)? == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn header(kind: u16, flags: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(REQUEST);
    message.extend((REQUEST as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message
}

fn address_words(end: SocketAddr) -> [u8; 16] {
    let mut words = [0; 16];
    match end {
        SocketAddr::V4(v4) => words[..4].copy_from_slice(&v4.ip().octets()),
        SocketAddr::V6(v6) => words = v6.ip().octets(),
    }
    words
}

/// Reads one datagram of the answer. False at its end.
fn parse(mut datagram: &[u8], each: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    while let Some(length) = read_u32(datagram, 0) {
        let length = length as usize;
        // An overlong message cannot be: `get`; one shorter than its header would never end.
        let message = datagram.get(..length).filter(|message| message.len() >= NLMSG_HEADER);
        let message = message.ok_or(io::ErrorKind::InvalidData)?;
        match read_u16(message, 4) {
            Some(NLMSG_DONE) => return Ok(false),
            Some(NLMSG_ERROR) => return error(message),
            Some(SOCK_DIAG_BY_FAMILY) => each(&message[NLMSG_HEADER..]),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// An error of 0 is an acknowledgement, and the end.
fn error(message: &[u8]) -> io::Result<bool> {
    match read_u32(message, NLMSG_HEADER).map(u32::cast_signed) {
        Some(0) => Ok(false),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Both that TCP has.
pub(super) const FAMILIES: [libc::c_int; 2] = [libc::AF_INET, libc::AF_INET6];
// Attributes (include/uapi/linux/inet_diag.h).
pub(super) const INET_DIAG_INFO: u16 = 2;
pub(super) const INET_DIAG_MARK: u16 = 15;
pub(super) const INET_DIAG_CGROUP_ID: u16 = 21;
// States (include/net/tcp_states.h).
pub(super) const TCP_SYN_SENT: u8 = 2;
pub(super) const TCP_SYN_RECV: u8 = 3;
pub(super) const TCP_FIN_WAIT1: u8 = 4;
pub(super) const TCP_FIN_WAIT2: u8 = 5;
pub(super) const TCP_CLOSE_WAIT: u8 = 8;
pub(super) const TCP_LAST_ACK: u8 = 9;
pub(super) const TCP_LISTEN: u8 = 10;
pub(super) const TCP_CLOSING: u8 = 11;
pub(super) const TCP_NEW_SYN_RECV: u8 = 12;
/// All states but TIME_WAIT, LISTEN and NEW_SYN_RECV.
pub(super) const LIVE: u32 = 0b1011_1011_1110;

// include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h.
const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_ACK: u16 = 0x5;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST: usize = NLMSG_HEADER + 56;
/// `struct inet_diag_msg`.
const DIAG_MESSAGE: usize = 72;
/// The kernel answers at once; this bounds what must not hang.
const ANSWER_SECONDS: i64 = 5;
/// The kernel fills datagrams of at most 32 KiB for a dump.
const BUFFER: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cookie(socket: &std::net::TcpStream) -> u64 {
        use std::os::fd::AsRawFd;
        let (mut cookie, mut length) = (0_u64, 8);
        // SAFETY: the option's value is one u64, which `cookie` has room for, as `length` says.
        let result = unsafe {
            let value = (&raw mut cookie).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, value, &raw mut length)
        };
        assert_eq!(result, 0);
        cookie
    }

    #[test]
    fn a_connection_is_listed_with_its_ends_and_its_cookie() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let listed = Listed { family: libc::AF_INET, states: 1 << 1, attributes: 0 };
        let mut found = Vec::new();
        Diag::open().unwrap().list(listed, |message| found.extend(id_of(message))).unwrap();
        let ours = SocketId {
            local: client.local_addr().unwrap(),
            remote: client.peer_addr().unwrap(),
            device: 0,
            cookie: cookie(&client),
        };
        assert!(found.contains(&ours), "{ours:?} is not among {found:?}");
    }

    proptest! {
        #[test]
        fn no_answer_is_read_out_of_bounds(bytes: Vec<u8>) {
            let _ = parse(&bytes, &mut |message| {
                let _ = (id_of(message), attribute(message, 2));
            });
        }

        #[test]
        fn no_message_is_read_out_of_bounds(body: Vec<u8>) {
            let mut message = (NLMSG_HEADER as u32 + body.len() as u32).to_ne_bytes().to_vec();
            message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            message.extend([0; 10]);
            message.extend(body);
            let _ = parse(&message, &mut |message| {
                let _ = (id_of(message), attribute(message, 2));
            });
        }
    }
}
