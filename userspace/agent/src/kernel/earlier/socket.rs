//! One socket of the kernel's list, and what it says of itself: whose it is, which side, and whether capture lets it be.

use std::net::SocketAddr;

use signet_common::direct::Progress;

use super::{EarlierSocket, Role};
use crate::addr::{CgroupId, ENGINE_MARK, canonical};
use crate::kernel::diag::{
    INET_DIAG_CGROUP_ID, INET_DIAG_INFO, INET_DIAG_MARK, SocketId, TCP_CLOSE_WAIT, TCP_CLOSING,
    TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_SYN_RECV, TCP_SYN_SENT, attribute, id_of, read_u32,
    read_u64,
};

/// A socket as it is listed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket {
    id: SocketId,
    state: u8,
    /// Which cgroup has made it; `None` for a connection that is only being accepted.
    pub(super) cgroup: Option<u64>,
    mark: u32,
    /// No process has it: it ends by itself, or waits to be accepted.
    is_nobodys: bool,
    counters: Counters,
}

/// What `struct tcp_info` counts (include/uapi/linux/tcp.h); all 0 where there is none.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Segments on their way.
    unacked: u32,
    /// The SYN of a client's side and a FIN count as a byte each.
    acknowledged: u64,
    received: u64,
    sent: u64,
    sent_again: u64,
}

impl Socket {
    /// Reads a message (`struct inet_diag_msg` and its attributes).
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let cgroup = attribute(message, INET_DIAG_CGROUP_ID).and_then(|value| read_u64(value, 0));
        let mark = attribute(message, INET_DIAG_MARK).and_then(|value| read_u32(value, 0));
        let counters = attribute(message, INET_DIAG_INFO).and_then(Counters::read);
        Some(Self {
            id: id_of(message)?,
            state: *message.get(1)?,
            cgroup: cgroup.filter(|id| *id != 0),
            mark: mark.unwrap_or_default(),
            is_nobodys: read_u32(message, INODE)? == 0,
            counters: counters.unwrap_or_default(),
        })
    }

    /// This end, an IPv4-mapped address unmapped.
    pub(super) fn local(&self) -> SocketAddr {
        canonical(self.id.local)
    }

    /// The other end.
    pub(super) fn remote(&self) -> SocketAddr {
        canonical(self.id.remote)
    }

    /// Which side it is, by TCP's own counters: a client's SYN was acknowledged as one byte more than it has sent. While
    /// something is on its way they do not tell, and the port does: whose `is_listening` somebody has connected to.
    pub(super) fn role(&self, is_listening: bool) -> Role {
        let told = match self.state {
            TCP_SYN_SENT => Some(Role::Client),
            TCP_SYN_RECV => Some(Role::Server),
            state => self.counters.role(state),
        };
        told.unwrap_or(if is_listening { Role::Server } else { Role::Client })
    }

    /// Whether it is none of capture's business, or of its own making: on loopback (the application's end of a captured
    /// connection is there too), to itself, accepted from the engine, or nobody's any more.
    pub(super) fn is_let_be(&self, role: Role) -> bool {
        let (local, remote) = (self.local().ip(), self.remote().ip());
        let is_local = local.is_loopback() || remote.is_loopback() || local == remote;
        let is_from_engine = role == Role::Server && self.mark == ENGINE_MARK;
        let is_closed = matches!(self.state, TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSING | TCP_LAST_ACK);
        is_local || is_from_engine || (is_closed && self.is_nobodys)
    }

    /// The same as a workload's.
    pub(super) fn of(&self, owner: CgroupId, role: Role) -> EarlierSocket {
        let progress = Progress {
            acknowledged: self.counters.acknowledged,
            received: self.counters.received,
            is_established: role == Role::Client,
            is_fin_acknowledged: fin(self.state) == 1,
            is_fin_received: matches!(self.state, TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING),
        };
        let (sent, received) = progress.payload();
        EarlierSocket {
            owner,
            role,
            local: self.local(),
            remote: self.remote(),
            is_half_closed: self.state == TCP_CLOSE_WAIT,
            sent,
            received,
            id: self.id,
        }
    }
}

impl Counters {
    fn read(info: &[u8]) -> Option<Self> {
        Some(Self {
            unacked: read_u32(info, 24)?,
            acknowledged: read_u64(info, 120)?,
            received: read_u64(info, 128)?,
            sent: read_u64(info, 200)?,
            sent_again: read_u64(info, 208)?,
        })
    }

    fn role(&self, state: u8) -> Option<Role> {
        let sent = self.sent.checked_sub(self.sent_again)?.checked_add(fin(state))?;
        match self.acknowledged.checked_sub(sent)? {
            _ if self.unacked != 0 => None,
            0 => Some(Role::Server),
            1 => Some(Role::Client),
            _ => None,
        }
    }
}

/// The byte that an acknowledged FIN counts as.
fn fin(state: u8) -> u64 {
    u64::from(state == TCP_FIN_WAIT2)
}

/// `idiag_inode` of `struct inet_diag_msg` (include/uapi/linux/inet_diag.h).
const INODE: usize = 68;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::diag::{Diag, LIVE, Listed, TCP_NEW_SYN_RECV};

    const ESTABLISHED: u8 = 1;

    fn socket(local: &str, remote: &str, state: u8) -> Socket {
        let id =
            SocketId { local: local.parse().unwrap(), remote: remote.parse().unwrap(), device: 0, cookie: 1 };
        Socket { id, state, cgroup: Some(7), mark: 0, is_nobodys: false, counters: Counters::default() }
    }

    /// Both ends of one connection over loopback, as this kernel lists them, after `talk`.
    fn ends(talk: impl FnOnce(&mut std::net::TcpStream, &mut std::net::TcpStream)) -> [Socket; 2] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        talk(&mut client, &mut server);
        let listed = Listed { family: libc::AF_INET, states: LIVE, attributes: 1 << (INET_DIAG_INFO - 1) };
        let list = |end: &std::net::TcpStream| {
            let (local, remote) = (end.local_addr().unwrap(), end.peer_addr().unwrap());
            let mut found = None;
            let each = |message: &[u8]| {
                found =
                    found.or(Socket::read(message).filter(|s| s.local() == local && s.remote() == remote));
            };
            Diag::open().unwrap().list(listed, each).unwrap();
            found.expect("it is listed")
        };
        // An acknowledgement may come late, and nothing tells of it.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let ends = [&client, &server].map(list);
            if ends.iter().all(|end| end.counters.unacked == 0 && end.state != TCP_FIN_WAIT1) {
                return ends;
            }
            assert!(Instant::now() < deadline, "something is still on its way: {ends:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_kernels_counters_tell_a_client_from_a_server() {
        use std::io::{Read, Write};
        let quiet = ends(|_, _| ());
        let talking = ends(|client, server| {
            let mut buffer = [0; 1000];
            client.write_all(&buffer).unwrap();
            server.read_exact(&mut buffer).unwrap();
            server.write_all(&buffer[..10]).unwrap();
            client.read_exact(&mut buffer[..10]).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut buffer).unwrap(), 0);
        });
        for [client, server] in [quiet, talking] {
            // Whatever the port says.
            assert_eq!((client.role(true), server.role(false)), (Role::Client, Role::Server));
        }
        let [client, server] = talking;
        assert_eq!((client.cgroup.is_some(), client.is_nobodys), (true, false));
        for (socket, role, bytes) in [(client, Role::Client, (1000, 10)), (server, Role::Server, (10, 1000))]
        {
            let earlier = socket.of(CgroupId(1), role);
            assert_eq!((earlier.sent, earlier.received), bytes, "{role:?}");
        }
    }

    /// As of a server that wants to hear of a connection with its first bytes (`TCP_DEFER_ACCEPT`): its client has been
    /// connected for long.
    #[test]
    fn a_connection_that_is_being_accepted_is_listed_without_a_cgroup() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        defer_accept(&listener);
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let states = 1 << TCP_NEW_SYN_RECV | 1 << TCP_SYN_RECV;
        let listed = Listed { family: libc::AF_INET, states, attributes: 0 };
        let mut found = None;
        let is_its = |s: &Socket| s.remote() == client.local_addr().unwrap();
        Diag::open()
            .unwrap()
            .list(listed, |message| found = found.or(Socket::read(message).filter(is_its)))
            .unwrap();
        let socket = found.expect("it is listed");
        assert_eq!((socket.cgroup, socket.role(false)), (None, Role::Server));
    }

    fn defer_accept(listener: &std::net::TcpListener) {
        use std::os::fd::AsRawFd;
        let seconds: libc::c_int = 30;
        // SAFETY: the option's value is one integer, as long as said.
        let result = unsafe {
            let value = (&raw const seconds).cast();
            let option = libc::TCP_DEFER_ACCEPT;
            libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, option, value, 4)
        };
        assert_eq!(result, 0);
    }

    #[test]
    fn while_bytes_are_on_their_way_the_port_tells() {
        let counters = Counters { unacked: 1, ..Counters::default() };
        let busy = Socket { counters, ..socket("10.0.0.1:80", "10.0.0.2:4000", ESTABLISHED) };
        assert_eq!((busy.role(true), busy.role(false)), (Role::Server, Role::Client));
    }

    #[test]
    fn what_capture_has_brought_about_is_let_be() {
        let captured = socket("10.0.0.1:4000", "127.0.0.1:15001", ESTABLISHED);
        let mapped = socket("[::ffff:10.0.0.1]:4000", "[::ffff:127.0.0.1]:15001", ESTABLISHED);
        let relayed = Socket { mark: ENGINE_MARK, ..socket("10.0.0.1:80", "10.0.0.2:4000", ESTABLISHED) };
        let left = Socket { is_nobodys: true, ..socket("10.0.0.1:80", "10.0.0.2:4000", TCP_FIN_WAIT2) };
        let itself = socket("10.0.0.1:80", "10.0.0.1:4000", ESTABLISHED);
        for socket in [captured, mapped, relayed, left, itself] {
            assert!(socket.is_let_be(Role::Server), "{socket:?}");
        }
    }

    #[test]
    fn everything_else_is_not() {
        let waiting = Socket { is_nobodys: true, ..socket("10.0.0.1:80", "10.0.0.2:4000", ESTABLISHED) };
        let half_closed = socket("10.0.0.1:4000", "10.0.0.2:80", TCP_FIN_WAIT2);
        // A workload can mark what it connects, if it may do that.
        let marked = Socket { mark: ENGINE_MARK, ..socket("10.0.0.1:4000", "10.0.0.2:80", ESTABLISHED) };
        for socket in [waiting, half_closed, marked] {
            assert!(!socket.is_let_be(Role::Client), "{socket:?}");
        }
    }

    proptest! {
        #[test]
        fn no_message_is_read_out_of_bounds(message: Vec<u8>, is_listening: bool) {
            if let Some(socket) = Socket::read(&message) {
                let role = socket.role(is_listening);
                let _ = (socket.is_let_be(role), socket.of(CgroupId(1), role));
            }
        }

        #[test]
        fn no_counter_overflows(unacked: u32, acknowledged: u64, received: u64, sent: u64, sent_again: u64) {
            let counters = Counters { unacked, acknowledged, received, sent, sent_again };
            for state in 0..13 {
                let socket = Socket { counters, ..socket("10.0.0.1:80", "10.0.0.2:4000", state) };
                let _ = socket.of(CgroupId(1), socket.role(true));
            }
        }
    }
}
