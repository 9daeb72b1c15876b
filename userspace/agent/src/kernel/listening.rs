//! Ports on which a hostNetwork workload listened before it was enrolled.
//!
//! The kernel lists its listening sockets with the cgroup that made each (NETLINK_SOCK_DIAG, `INET_DIAG_CGROUP_ID`). That
//! cgroup may be a container's below the workload's, so the workload's subtree is walked and its ids are compared.

use std::collections::HashSet;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::stat::fstat;

use super::cgroup::children;
use crate::addr::CgroupId;

/// The TCP ports on which processes of `cgroup` listen, in this process's own network namespace.
pub(super) fn ports_of(mount: &Path, cgroup: CgroupId) -> io::Result<Vec<u16>> {
    let ours = subtree(mount, cgroup)?;
    let mut ports = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        ports.extend(listeners(family)?.into_iter().filter(|l| ours.contains(&l.cgroup)).map(|l| l.port));
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

/// A listening socket.
#[derive(Debug, PartialEq, Eq)]
struct Listener {
    port: u16,
    cgroup: u64,
}

/// The ids of a cgroup and of all below it; empty where it is gone.
fn subtree(mount: &Path, cgroup: CgroupId) -> io::Result<HashSet<u64>> {
    let mut ids = HashSet::new();
    let mut open = match open_by_id(mount, cgroup) {
        Ok(directory) => vec![directory],
        Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(ids),
        Err(e) => return Err(e),
    };
    while let Some(directory) = open.pop() {
        ids.insert(fstat(&directory)?.st_ino);
        open.extend(children(&directory)?);
    }
    Ok(ids)
}

/// A cgroup's id is its kernfs handle (fs/kernfs/mount.c `kernfs_encode_fh`).
fn open_by_id(mount: &Path, cgroup: CgroupId) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: cgroup.0.to_ne_bytes() };
    let mount = std::fs::File::open(mount)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `handle` is laid out as `struct file_handle` with the 8 bytes that `bytes` announces.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn listeners(family: libc::c_int) -> io::Result<Vec<Listener>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    nix::sys::socket::setsockopt(
        &socket.as_fd(),
        nix::sys::socket::sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::new(ANSWER_SECONDS, 0),
    )?;
    socket.send_to(&request(family), &SocketAddr::new(0, 0), 0)?;
    let mut found = Vec::new();
    loop {
        let mut buffer = Vec::with_capacity(BUFFER);
        socket.recv(&mut buffer, 0)?;
        if !parse(&buffer, &mut found)? {
            return Ok(found);
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (include/uapi/linux/inet_diag.h): all TCP sockets in LISTEN.
fn request(family: libc::c_int) -> Vec<u8> {
    const LENGTH: u32 = 16 + 56;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend((1_u32 << TCP_LISTEN).to_ne_bytes());
    message.resize(LENGTH as usize, 0);
    message
}

/// Reads one datagram of the answer. False at its end.
fn parse(mut datagram: &[u8], found: &mut Vec<Listener>) -> io::Result<bool> {
    while let Some(length) = read_u32(datagram, 0) {
        let length = length as usize;
        let message = datagram.get(..length).ok_or(io::ErrorKind::InvalidData)?;
        match read_u16(message, 4) {
            Some(NLMSG_DONE) => return Ok(false),
            Some(NLMSG_ERROR) => return Err(error(message)),
            Some(SOCK_DIAG_BY_FAMILY) => found.extend(listener(message)),
            _ => {}
        }
        // An overlong message cannot be: `get` above; one shorter than its header would never end.
        if length < NLMSG_HEADER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn listener(message: &[u8]) -> Option<Listener> {
    let port = offset_of!(InetDiagMsg, source_port);
    let port = message.get(NLMSG_HEADER + port..NLMSG_HEADER + port + 2)?;
    let port = u16::from_be_bytes(port.try_into().ok()?);
    let mut attributes = message.get(NLMSG_HEADER + size_of::<InetDiagMsg>()..)?;
    loop {
        let length = usize::from(read_u16(attributes, 0)?);
        if read_u16(attributes, 2)? == INET_DIAG_CGROUP_ID {
            let cgroup = u64::from_ne_bytes(attributes.get(4..12)?.try_into().ok()?);
            return Some(Listener { port, cgroup });
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn error(message: &[u8]) -> io::Error {
    let errno = read_u32(message, NLMSG_HEADER).map_or(0, |code| -code.cast_signed());
    io::Error::from_raw_os_error(errno)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// `struct inet_diag_msg`, include/uapi/linux/inet_diag.h; for its layout only.
#[repr(C)]
struct InetDiagMsg {
    family_state_timer_retrans: [u8; 4],
    source_port: [u8; 2],
    rest: [u8; 66],
}

// include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h; include/net/tcp_states.h; include/linux/exportfs.h.
const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;
const TCP_LISTEN: u32 = 10;
const FILEID_KERNFS: i32 = 0xfe;
/// The kernel answers at once; this bounds what must not hang.
const ANSWER_SECONDS: i64 = 5;
/// The kernel fills datagrams of at most 32 KiB for a dump.
const BUFFER: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_listening_socket_is_found_with_its_cgroup() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = listeners(libc::AF_INET).unwrap();
        let ours: Vec<_> = found.iter().filter(|l| l.port == port).collect();
        assert_eq!(ours.len(), 1, "{found:?}");
        assert_ne!(ours[0].cgroup, 0);
    }

    proptest! {
        #[test]
        fn no_answer_is_read_out_of_bounds(bytes: Vec<u8>) {
            let _ = parse(&bytes, &mut Vec::new());
        }

        #[test]
        fn no_diag_message_is_read_out_of_bounds(body: Vec<u8>) {
            let mut message = (NLMSG_HEADER as u32 + body.len() as u32).to_ne_bytes().to_vec();
            message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            message.extend([0; 10]);
            message.extend(body);
            let _ = parse(&message, &mut Vec::new());
        }
    }
}
