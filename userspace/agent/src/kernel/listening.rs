//! Ports on which a hostNetwork workload listened before it was enrolled.
//!
//! The kernel lists its listening sockets with the cgroup that made each (NETLINK_SOCK_DIAG, `INET_DIAG_CGROUP_ID`). That
//! cgroup may be a container's below the workload's, so the workload's subtree is walked and its ids are compared.

use std::io;
use std::path::Path;

use super::cgroup::subtree;
use super::diag::{Diag, INET_DIAG_CGROUP_ID, Listed, TCP_LISTEN, attribute, id_of};
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
