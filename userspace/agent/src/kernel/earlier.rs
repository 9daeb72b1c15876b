//! Connections of workloads that capture knows nothing of: opened before it began, or while there was no engine.
//!
//! The kernel's list of sockets (NETLINK_SOCK_DIAG) has them among all others, each with the cgroup that made it. What is
//! left when everything is taken away that capture lets be or has brought about is from before (`socket` says what that
//! is). The list is read first and capture's records after it: a connection that is opened meanwhile has its record before
//! its SYN leaves, and is met there.
//!
//! Nobody waits for it: a list takes a socket of its own, and no lock while it is read. What becomes of what is found is not
//! decided here.

mod socket;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::MapError;

use super::cgroup::subtree;
use super::diag::{Diag, FAMILIES, INET_DIAG_INFO, LIVE, Listed, SocketId, TCP_LISTEN, TCP_NEW_SYN_RECV};
use super::direct::DirectFlows;
use super::error::KernelError;
use super::maps::{Flows, flow_key};
use super::object::Pins;
use crate::addr::{CgroupId, NetnsCookie};

use self::socket::Socket;

/// A workload whose connections are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its cgroup.
    pub cgroup: CgroupId,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// It shares its network namespace, and its addresses, with others.
    pub host_network: bool,
}

/// Which side of a connection a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It has connected.
    Client,
    /// It was accepted, or is to be.
    Server,
}

/// One end of a connection from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlierSocket {
    /// Whose.
    pub owner: CgroupId,
    /// Which side.
    pub role: Role,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The other end has sent all it had.
    pub is_half_closed: bool,
    /// Bytes that the other end has acknowledged.
    pub sent: u64,
    /// Bytes that have come from there.
    pub received: u64,
    id: SocketId,
}

impl EarlierSocket {
    /// Unique while the kernel runs.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.id.cookie
    }
}

#[cfg(test)]
impl EarlierSocket {
    /// One that nobody has opened.
    pub(crate) fn between(
        cookie: u64,
        owner: CgroupId,
        role: Role,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Self {
        let id = SocketId { local, remote, device: 0, cookie };
        Self { owner, role, local, remote, is_half_closed: false, sent: 0, received: 0, id }
    }
}

/// A handle to find and end them. Cheap to clone, shares nothing but the pins and the namespaces.
#[derive(Clone)]
pub struct EarlierSockets {
    mount: PathBuf,
    direct: DirectFlows,
    flows: Arc<Flows>,
}

impl EarlierSockets {
    pub(super) fn open(pins: &Pins, mount: PathBuf, direct: DirectFlows) -> Result<Self, KernelError> {
        Ok(Self { mount, direct, flows: Arc::new(pins.open("FLOWS")?) })
    }

    /// Those of these workloads, which all live in that network namespace.
    ///
    /// # Errors
    /// The namespace is not served (`NotFound`), or something could not be read: nothing is known then.
    pub fn find(&self, netns: NetnsCookie, owners: &[Owner]) -> io::Result<Vec<EarlierSocket>> {
        let diag = self.direct.namespaces().open(netns)?;
        let tenants = Tenants::of(&self.mount, owners)?.listening(&diag)?;
        let mut found = Vec::new();
        for family in FAMILIES {
            let listed = Listed { family, states: OPEN, attributes: 1 << (INET_DIAG_INFO - 1) };
            diag.list(listed, |message| found.extend(tenants.earlier(message)))?;
        }
        let mut unknown = Vec::with_capacity(found.len());
        for socket in found {
            if !self.is_known(&socket).map_err(io::Error::other)? {
                unknown.push(socket);
            }
        }
        Ok(unknown)
    }

    /// Ends them; both applications see a reset. One that has ended by itself meanwhile is as good.
    ///
    /// # Errors
    /// The namespace is not served, or the kernel refused.
    pub fn end(&self, netns: NetnsCookie, sockets: &[EarlierSocket]) -> io::Result<()> {
        let diag = self.direct.namespaces().open(netns)?;
        sockets.iter().try_for_each(|socket| diag.destroy(&socket.id).map(drop))
    }

    /// Capture has let it pass: a direct flow, or the kubelet's.
    fn is_known(&self, socket: &EarlierSocket) -> Result<bool, MapError> {
        let (client, server) = match socket.role {
            Role::Client => (socket.local, socket.remote),
            Role::Server => (socket.remote, socket.local),
        };
        Ok(self.direct.is_live(client, server)? || self.is_kubelets(client, server)?)
    }

    fn is_kubelets(&self, client: SocketAddr, server: SocketAddr) -> Result<bool, MapError> {
        match self.flows.get(&flow_key(NetnsCookie(0), client, server), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Who is who in a network namespace.
#[derive(Debug, Default)]
struct Tenants<'a> {
    /// By the cgroup that makes a socket: a workload's own, or one below it.
    by_cgroup: HashMap<u64, &'a Owner>,
    /// By the port that it listens on.
    by_port: HashMap<u16, &'a Owner>,
}

impl<'a> Tenants<'a> {
    /// The largest first, so that a workload within another one's cgroup keeps its own.
    fn of(mount: &Path, owners: &'a [Owner]) -> io::Result<Self> {
        let mut trees = Vec::with_capacity(owners.len());
        for owner in owners {
            trees.push((subtree(mount, owner.cgroup)?, owner));
        }
        trees.sort_by_key(|(tree, _)| std::cmp::Reverse(tree.len()));
        let cgroups = trees.into_iter().flat_map(|(tree, owner)| tree.into_iter().map(move |id| (id, owner)));
        Ok(Self { by_cgroup: cgroups.collect(), by_port: HashMap::new() })
    }

    fn listening(mut self, diag: &Diag) -> io::Result<Self> {
        for family in FAMILIES {
            let listed = Listed { family, states: 1 << TCP_LISTEN, attributes: 0 };
            diag.list(listed, |message| {
                let Some(listener) = Socket::read(message) else { return };
                let owner = listener.cgroup.and_then(|cgroup| self.by_cgroup.get(&cgroup));
                self.by_port.extend(owner.map(|owner| (listener.local().port(), *owner)));
            })?;
        }
        Ok(self)
    }

    /// The socket of a message, where a workload has it from before.
    fn earlier(&self, message: &[u8]) -> Option<EarlierSocket> {
        let socket = Socket::read(message)?;
        let listening = self.by_port.get(&socket.local().port()).copied();
        // A connection that is being accepted has no socket yet, and so no cgroup: it is its listener's.
        let owner = match socket.cgroup {
            Some(cgroup) => *self.by_cgroup.get(&cgroup)?,
            None => listening?,
        };
        let role = socket.role(listening.is_some());
        let is_own = self.is_own(owner, socket.remote());
        (!socket.is_let_be(role) && !is_own).then(|| socket.of(owner.cgroup, role))
    }

    /// Whether a destination is the workload itself; in a shared namespace only the port tells.
    fn is_own(&self, owner: &Owner, to: SocketAddr) -> bool {
        let is_own_port = || self.by_port.get(&to.port()).is_some_and(|listener| *listener == owner);
        owner.addresses.contains(&to.ip()) && (!owner.host_network || is_own_port())
    }
}

/// Those that carry or may come to carry something.
const OPEN: u32 = LIVE | 1 << TCP_NEW_SYN_RECV;
