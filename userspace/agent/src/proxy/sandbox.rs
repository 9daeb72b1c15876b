//! One network namespace with the engine's listeners in it, and the workloads that live there.
//!
//! A pod's has one workload; the node's own has the hostNetwork pods and systemd services, which share its addresses and
//! are told apart by the cgroup of the connecting socket (outbound) or of the listening one (inbound).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use signet_identity::X509Svid;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::OriginLookup;
use super::failure::Failure;
use super::sni;
use crate::addr::{CgroupId, NetnsCookie, WorkloadUid};
use crate::config::Tunnel;
use crate::mtls::Endpoint;
use crate::net::Netns;
use crate::state::Workload;
use crate::svid::Credentials;

/// One network namespace with the engine's listeners in it: a pod's (one workload), or the node's own (several).
pub struct Sandbox {
    /// Where.
    pub netns: Netns,
    /// The same, as the kernel calls it.
    pub cookie: NetnsCookie,
    /// The node's own namespace: inbound is told apart by port.
    pub host: bool,
    /// Who lives there, by cgroup. Written by `reconcile`, read per connection.
    pub workloads: RwLock<HashMap<CgroupId, Arc<LocalWorkload>>>,
    /// Whom the engine holds a connection from that came in clear. Towards an application it must take none of these for
    /// its own end: the answer to its SYN would be that other connection's.
    pub in_clear: Peers,
    /// In whose name it has dialled applications. Who connects in clear from there all the same is kept apart.
    pub dialled: Peers,
}

/// Addresses and ports in use in a namespace. Those of clients seldom are in the range of the engine's, unless an address
/// translator puts them there.
#[derive(Default)]
pub struct Peers(Mutex<HashMap<SocketAddr, usize>>);

/// One of them, until it is dropped.
pub(crate) struct HeldPeer<'a> {
    all: &'a Peers,
    peer: SocketAddr,
}

impl Peers {
    /// Holds one; several connections may have it, to several addresses of the namespace.
    pub(crate) fn hold(&self, peer: SocketAddr) -> HeldPeer<'_> {
        *self.0.lock().entry(peer).or_default() += 1;
        HeldPeer { all: self, peer }
    }

    /// Whether somebody holds it.
    pub(crate) fn contains(&self, peer: SocketAddr) -> bool {
        self.0.lock().contains_key(&peer)
    }
}

impl Drop for HeldPeer<'_> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(count) = all.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.peer);
            }
        }
    }
}

/// One enrolled workload of this node.
pub struct LocalWorkload {
    /// As the mesh knows it. The whole `LocalWorkload` is replaced when labels change.
    pub workload: Arc<Workload>,
    credentials: Credentials,
    tunnel: Tunnel,
    /// Its connections that may wait for their destination to be told of.
    pub(crate) waiting: Semaphore,
    /// The rustls configurations of the SVID they were made of. Written by the first connection after a rotation.
    endpoint: Mutex<Option<(Arc<X509Svid>, Endpoint)>>,
}

impl LocalWorkload {
    /// A workload, its claim on an SVID, and what it may speak with its peers.
    #[must_use]
    pub fn new(workload: Arc<Workload>, credentials: Credentials, tunnel: Tunnel) -> Self {
        let waiting = Semaphore::new(MAX_WAITING);
        Self { workload, credentials, tunnel, waiting, endpoint: Mutex::new(None) }
    }

    /// The mTLS configurations of its current SVID; waits for the first SVID at most `wait`.
    ///
    /// # Errors
    /// There is no SVID, or not in time, or rustls does not take it.
    pub(crate) async fn endpoint(&self, wait: Duration) -> Result<Endpoint, Failure> {
        let mut credentials = self.credentials.clone();
        let svid = timeout(wait, credentials.get())
            .await
            .map_err(|_| credentials.last_error().map_or(Failure::SvidTimeout(wait), Failure::Svid))?
            .map_err(Failure::Svid)?;
        let mut cached = self.endpoint.lock();
        if let Some((of, endpoint)) = &*cached
            && Arc::ptr_eq(of, &svid)
        {
            return Ok(endpoint.clone());
        }
        let endpoint = match self.tunnel {
            Tunnel::Auto => Endpoint::native(&svid),
            Tunnel::Hbone => Endpoint::new(&svid),
        }
        .map_err(Failure::Endpoint)?;
        *cached = Some((svid, endpoint.clone()));
        Ok(endpoint)
    }
}

impl Sandbox {
    /// The workload that a cgroup is.
    #[must_use]
    pub(crate) fn workload(&self, cgroup: CgroupId) -> Option<Arc<LocalWorkload>> {
        self.workloads.read().get(&cgroup).cloned()
    }

    /// The workload as it is now; `None` when it has left.
    #[must_use]
    pub(crate) fn current(&self, uid: &WorkloadUid) -> Option<Arc<LocalWorkload>> {
        self.workloads.read().values().find(|local| local.workload.uid == *uid).cloned()
    }

    /// The workload whose application listens on `port`.
    ///
    /// # Errors
    /// It cannot be told, or is none of the mesh.
    pub(crate) fn owner(&self, origins: &dyn OriginLookup, port: u16) -> Result<Arc<LocalWorkload>, Failure> {
        if !self.host {
            return self.sole();
        }
        let cgroup = origins.port_owner(self.cookie, port).ok_or(Failure::NoOwner(port))?;
        self.workload(cgroup).ok_or(Failure::NoOwner(port))
    }

    /// The workload that an HBONE client means, as far as it can tell before the handshake. Pods ignore the SNI.
    ///
    /// # Errors
    /// It cannot be told, or is none of the mesh.
    pub(crate) fn addressee(
        &self,
        origins: &dyn OriginLookup,
        server_name: Option<&str>,
    ) -> Result<Arc<LocalWorkload>, Failure> {
        match server_name.and_then(sni::port) {
            Some(port) if self.host => self.owner(origins, port),
            _ => self.sole(),
        }
    }

    /// The one workload that lives here, where it is the only one.
    #[must_use]
    pub(crate) fn tenant(&self) -> Option<Arc<LocalWorkload>> {
        self.sole().ok()
    }

    fn sole(&self) -> Result<Arc<LocalWorkload>, Failure> {
        let workloads = self.workloads.read();
        match workloads.len() {
            0 => Err(Failure::Closed),
            1 => workloads.values().next().cloned().ok_or(Failure::Closed),
            _ => Err(Failure::AmbiguousOwner),
        }
    }
}

/// A client that scans the pods' addresses must not have the engine look up thousands of them at each change.
const MAX_WAITING: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_held_until_its_last_connection_has_ended() {
        let (all, peer) = (Peers::default(), "10.0.0.1:4000".parse().unwrap());
        let (first, second) = (all.hold(peer), all.hold(peer));
        drop(first);
        assert!(all.contains(peer));
        drop(second);
        assert!(!all.contains(peer) && all.0.lock().is_empty());
    }
}
