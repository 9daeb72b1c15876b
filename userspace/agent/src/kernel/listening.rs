//! Ports on which a hostNetwork workload listened before it was enrolled.
//!
//! The kernel lists its listening sockets with the cgroup that made each (NETLINK_SOCK_DIAG, `INET_DIAG_CGROUP_ID`). That
//! cgroup may be a container's below the workload's, so the workload's subtree is walked and its ids are compared.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::fstat;

use super::cgroup::children;
use super::diag::{Diag, Listed, attribute, id_of};
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
    let mut found = Vec::new();
    let listed = Listed { family, states: 1 << TCP_LISTEN, attributes: 0 };
    Diag::open()?.list(listed, |message| found.extend(listener(message)))?;
    Ok(found)
}

fn listener(message: &[u8]) -> Option<Listener> {
    let cgroup = attribute(message, INET_DIAG_CGROUP_ID)?;
    Some(Listener {
        port: id_of(message)?.local.port(),
        cgroup: u64::from_ne_bytes(cgroup.get(..8)?.try_into().ok()?),
    })
}

// include/uapi/linux/inet_diag.h; include/net/tcp_states.h; include/linux/exportfs.h.
const INET_DIAG_CGROUP_ID: u16 = 21;
const TCP_LISTEN: u32 = 10;
const FILEID_KERNFS: i32 = 0xfe;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_found_with_its_cgroup() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = listeners(libc::AF_INET).unwrap();
        let ours: Vec<_> = found.iter().filter(|l| l.port == port).collect();
        assert_eq!(ours.len(), 1, "{found:?}");
        assert_ne!(ours[0].cgroup, 0);
    }
}
