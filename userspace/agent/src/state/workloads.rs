//! Workloads by uid and by address.
//!
//! An address can have several claims for two reasons that are told apart here. Workloads that share the node's network
//! namespace own it together, for good; the port says which one is meant. A pod's own address has one owner at a time,
//! but a source may tell of the next pod before it tells of the last one's end: then the newest claim counts, an
//! enrolled one before any other, since taking an enrolled workload for an outsider would send it plaintext.
//!
//! A port of its node may be a pod's as well (`hostPort`): the CNI translates it to the pod's own address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::addr::WorkloadUid;

use super::intern::WorkloadPool;
use super::object::Workload;
use super::table::{Address, AddressHasher, Table};

/// Written by whoever has the pool of `state`'s writer.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    by_uid: Table<WorkloadUid, Arc<Workload>>,
    by_address: Table<Address, Claims, AddressHasher>,
    /// Pods with a `hostPort`, by that and their node; the oldest first.
    by_port_at_node: RwLock<PortsAtNode>,
}

/// By port and node: the pods, each with its own port.
type PortsAtNode = HashMap<(u16, Arc<str>), Vec<(Arc<Workload>, u16)>>;

/// Where a pod's port of its node leads.
pub(super) enum BehindNode {
    /// To the pod.
    Pod(SocketAddr),
    /// To a pod that has no address yet.
    Awaited,
}

/// Who has an address.
#[derive(Debug)]
enum Claims {
    /// Nearly always: one pod. Whoever asks for it has its answer without a look at the workload, which is in no cache.
    Pod(Arc<Workload>),
    /// Oldest claim first.
    Others(Box<[Arc<Workload>]>),
}

impl Workloads {
    /// Adds or replaces; returns what was there and what is there now. An address is never without an owner in between.
    pub(super) fn put(
        &self,
        workload: Arc<Workload>,
        pool: &mut WorkloadPool,
    ) -> (Option<Arc<Workload>>, Arc<Workload>) {
        let new = pool.adopt(workload);
        let old = self.by_uid.insert(new.uid.clone(), Arc::clone(&new));
        for address in &new.addresses {
            self.claim(*address, &new);
        }
        self.put_ports_at_node(old.as_deref(), &new);
        if let Some(old) = &old {
            for address in old.addresses.iter().filter(|address| !new.addresses.contains(address)) {
                self.release(*address, &old.uid);
            }
            pool.give_back(old);
        }
        (old, new)
    }

    /// Removes.
    pub(super) fn remove(&self, uid: &WorkloadUid, pool: &mut WorkloadPool) {
        let Some(old) = self.by_uid.remove(uid.clone()) else { return };
        for address in &old.addresses {
            self.release(*address, uid);
        }
        self.remove_ports_at_node(&old);
        pool.give_back(&old);
    }

    pub(super) fn get(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        self.by_uid.with(uid, |workload| workload.cloned())
    }

    pub(super) fn all(&self) -> Vec<Arc<Workload>> {
        self.by_uid.values()
    }

    /// The owner of an address, or all owners where they share it.
    pub(super) fn at(&self, address: IpAddr) -> Vec<Arc<Workload>> {
        self.claims(address, |claims| {
            let sharing = claims.iter().filter(|workload| workload.host_network);
            sharing.chain(newest_pod(claims)).cloned().collect()
        })
    }

    /// The workload that is meant by an address and port: the newest of [`Self::owners`], an enrolled one before any other.
    pub(super) fn owner(&self, address: IpAddr, port: u16) -> Option<Arc<Workload>> {
        self.by_address.with(&Address::of(address), |claims| {
            let claims = match claims? {
                Claims::Pod(workload) => return Some(Arc::clone(workload)),
                Claims::Others(workloads) => workloads,
            };
            newest_pod(claims)
                .or_else(|| newest(claims, |workload| workload.declares(port)))
                .or_else(|| newest(claims, |workload| workload.ports.is_empty()))
                .cloned()
        })
    }

    /// The workloads that may be meant by an address and port.
    ///
    /// On a shared address these are the ones that declare the port, or else those that declare no ports at all; a port
    /// that nobody there can be meant by is the node's own (kubelet, sshd).
    pub(super) fn owners(&self, address: IpAddr, port: u16) -> Vec<Arc<Workload>> {
        self.claims(address, |claims| {
            if let Some(pod) = newest_pod(claims) {
                return vec![Arc::clone(pod)];
            }
            let declaring: Vec<_> =
                claims.iter().filter(|workload| workload.declares(port)).cloned().collect();
            match declaring.is_empty() {
                true => claims.iter().filter(|workload| workload.ports.is_empty()).cloned().collect(),
                false => declaring,
            }
        })
    }

    /// Where a port of that node leads; `None` where no pod there has it.
    pub(super) fn behind_node(&self, node: &Arc<str>, to: SocketAddr) -> Option<BehindNode> {
        let ports = self.by_port_at_node.read();
        let pods = ports.get(&(to.port(), Arc::clone(node)))?;
        let is_v4 = to.ip().to_canonical().is_ipv4();
        let is_alike = |address: &&IpAddr| address.to_canonical().is_ipv4() == is_v4;
        // One that has just been bound has no address yet, and its predecessor may serve still.
        let newest = pods.iter().rev().find_map(|(pod, port)| {
            Some(BehindNode::Pod(SocketAddr::new(*pod.addresses.iter().find(is_alike)?, *port)))
        });
        let is_awaited = || pods.iter().any(|(pod, _)| pod.addresses.is_empty());
        newest.or_else(|| is_awaited().then_some(BehindNode::Awaited))
    }

    /// One that changes keeps its place.
    fn put_ports_at_node(&self, old: Option<&Workload>, new: &Arc<Workload>) {
        let is_same = |old: &Workload| old.node == new.node && old.ports_at_node().eq(new.ports_at_node());
        if let Some(old) = old.filter(|old| !is_same(old)) {
            self.remove_ports_at_node(old);
        }
        for (at_node, port) in new.ports_at_node() {
            let mut ports = self.by_port_at_node.write();
            let all = ports.entry((at_node, Arc::clone(&new.node))).or_default();
            match all.iter_mut().find(|(known, _)| known.uid == new.uid) {
                Some(known) => *known = (Arc::clone(new), port),
                None => all.push((Arc::clone(new), port)),
            }
        }
    }

    fn remove_ports_at_node(&self, old: &Workload) {
        for (at_node, _) in old.ports_at_node() {
            let mut ports = self.by_port_at_node.write();
            let key = (at_node, Arc::clone(&old.node));
            if let Some(all) = ports.get_mut(&key) {
                all.retain(|(known, _)| known.uid != old.uid);
                if all.is_empty() {
                    ports.remove(&key);
                }
            }
        }
    }

    fn claims<R>(&self, address: IpAddr, ask: impl FnOnce(&[Arc<Workload>]) -> R) -> R {
        self.by_address.with(&Address::of(address), |claims| ask(claims.map_or(&[], Claims::as_slice)))
    }

    fn claim(&self, address: IpAddr, workload: &Arc<Workload>) {
        self.by_address.change(Address::of(address), |claims| {
            Some(match claims {
                None => Claims::of(vec![Arc::clone(workload)]),
                Some(claims) => claims.with(workload),
            })
        });
    }

    fn release(&self, address: IpAddr, uid: &WorkloadUid) {
        self.by_address.change(Address::of(address), |claims| claims?.without(uid));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_uid.is_empty() && self.by_address.is_empty() && self.by_port_at_node.read().is_empty()
    }
}

impl Claims {
    fn as_slice(&self) -> &[Arc<Workload>] {
        match self {
            Self::Pod(workload) => std::slice::from_ref(workload),
            Self::Others(workloads) => workloads,
        }
    }

    /// A workload that changes keeps its place: only a first claim makes it the newest.
    fn with(&self, new: &Arc<Workload>) -> Self {
        let mut workloads = self.as_slice().to_vec();
        match workloads.iter_mut().find(|known| known.uid == new.uid) {
            Some(known) => *known = Arc::clone(new),
            None => workloads.push(Arc::clone(new)),
        }
        Self::of(workloads)
    }

    /// `None` where no claim is left.
    fn without(&self, uid: &WorkloadUid) -> Option<Self> {
        let mut workloads = self.as_slice().to_vec();
        workloads.retain(|known| known.uid != *uid);
        (!workloads.is_empty()).then(|| Self::of(workloads))
    }

    fn of(workloads: Vec<Arc<Workload>>) -> Self {
        match &workloads[..] {
            [workload] if !workload.host_network => Self::Pod(Arc::clone(workload)),
            _ => Self::Others(workloads.into()),
        }
    }
}

fn newest_pod(claims: &[Arc<Workload>]) -> Option<&Arc<Workload>> {
    newest(claims, |workload| !workload.host_network)
}

/// The newest of those that fit, an enrolled one before any other.
fn newest(claims: &[Arc<Workload>], fits: impl Fn(&Workload) -> bool) -> Option<&Arc<Workload>> {
    let fitting = || claims.iter().rev().filter(|workload| fits(workload));
    fitting().find(|workload| workload.enrolled).or_else(|| fitting().next())
}
