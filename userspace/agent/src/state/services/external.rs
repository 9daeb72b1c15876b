//! Services as the cluster's own clients reach them by other ways than a VIP: at external addresses, a load balancer's among
//! them, and at a port of any node. kube-proxy answers for all of these on the client's own node, so they are in the mesh
//! as the VIPs are.
//!
//! Any Service can claim any address, so a claim never outweighs what an address is otherwise: `state` asks here for what
//! is no VIP, no pod's, and in no range of the cluster's. A node's port is the Service's whoever else listens there, as
//! with kube-proxy. Two Services may share an address and divide its ports; of two
//! that claim the same port, the one that was told first has it as long as it lasts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::RwLock;
use smallvec::SmallVec;

use super::routes::Routes;
use super::{Name, is_of};
use crate::state::object::{EndpointSlice, Service};

/// Written by `state`'s writer.
#[derive(Debug, Default)]
pub(super) struct External {
    /// In the order in which they were told: the first has the place.
    claims: RwLock<HashMap<Place, Vec<Routes>>>,
    nodes: RwLock<Nodes>,
}

/// What a Service can claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Address(SocketAddr),
    NodePort(u16),
}

#[derive(Debug, Default)]
struct Nodes {
    by_name: HashMap<Arc<str>, Vec<IpAddr>>,
    /// Two where a node has been renamed and its end is not told of yet.
    by_address: HashMap<IpAddr, NodeNames>,
}

/// Names of nodes, nearly always one.
pub(in crate::state) type NodeNames = SmallVec<[Arc<str>; 1]>;

impl External {
    /// What a port of an address leads to, where the address is a node's and the port a Service's.
    pub(super) fn at_node(&self, to: SocketAddr) -> Option<Routes> {
        let routes = self.first(Place::NodePort(to.port()))?;
        self.nodes.read().by_address.contains_key(&to.ip().to_canonical()).then_some(routes)
    }

    /// What an external address and port lead to.
    pub(super) fn at(&self, to: SocketAddr) -> Option<Routes> {
        self.first(address(to.ip(), to.port()))
    }

    /// Takes over what a Service claims now, and forgets what it claimed before.
    pub(super) fn put(&self, name: &Name, old: Option<&Service>, claimed: Vec<(Place, Routes)>) {
        let is_kept = |place: &Place| claimed.iter().any(|(claimed, _)| claimed == place);
        let mut claims = self.claims.write();
        for place in old.into_iter().flat_map(places).filter(|place| !is_kept(place)) {
            if let Some(all) = claims.get_mut(&place) {
                all.retain(|routes| !is_of(routes, name));
                if all.is_empty() {
                    claims.remove(&place);
                }
            }
        }
        for (place, routes) in claimed {
            let all = claims.entry(place).or_default();
            match all.iter_mut().find(|known| is_of(known, name)) {
                Some(known) => *known = routes,
                None => all.push(routes),
            }
        }
    }

    /// A node's own addresses; none where it is gone.
    pub(super) fn put_node(&self, name: &Arc<str>, addresses: &[IpAddr]) {
        self.nodes.write().put(name, addresses.iter().map(IpAddr::to_canonical).collect());
    }

    /// The nodes that have an address.
    pub(super) fn nodes_at(&self, address: IpAddr) -> NodeNames {
        self.nodes.read().by_address.get(&address.to_canonical()).cloned().unwrap_or_default()
    }

    fn first(&self, place: Place) -> Option<Routes> {
        self.claims.read().get(&place)?.first().cloned()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.claims.read().is_empty() && self.nodes.read().by_name.is_empty()
    }
}

impl Nodes {
    fn put(&mut self, name: &Arc<str>, addresses: Vec<IpAddr>) {
        for address in &addresses {
            self.by_address.entry(*address).or_default().push(Arc::clone(name));
        }
        let old = match addresses.is_empty() {
            true => self.by_name.remove(name),
            false => self.by_name.insert(Arc::clone(name), addresses),
        };
        for address in old.into_iter().flatten() {
            if let Some(names) = self.by_address.get_mut(&address) {
                // The oldest entry of this name: the newer one, if there is one, is the new.
                if let Some(oldest) = names.iter().position(|known| known == name) {
                    names.remove(oldest);
                }
                if names.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
    }
}

/// What a Service claims, and what each place leads to; nothing for the many that have VIPs alone.
pub(super) fn claims<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
) -> Vec<(Place, Routes)> {
    if places(service).next().is_none() {
        return Vec::new();
    }
    // `internalTrafficPolicy` is the VIPs' alone.
    let service = Arc::new(Service { local: false, ..service.clone() });
    // A node's port may have the number of another port of the Service.
    let own = Routes::of(Arc::clone(&service), &service.ports, slices.clone());
    let nodes = Routes::of(Arc::clone(&service), &service.external.node_ports, slices);
    let routes = |place: &Place| match place {
        Place::Address(_) => own.clone(),
        Place::NodePort(_) => nodes.clone(),
    };
    places(&service).map(|place| (place, routes(&place))).collect()
}

fn places(service: &Service) -> impl Iterator<Item = Place> {
    let external = &service.external;
    let at = |ip: &IpAddr| service.ports.iter().map(|port| address(*ip, port.port)).collect::<Vec<_>>();
    let node_ports = external.node_ports.iter().map(|port| Place::NodePort(port.port));
    external.addresses.iter().flat_map(at).chain(node_ports)
}

fn address(ip: IpAddr, port: u16) -> Place {
    Place::Address(SocketAddr::new(ip.to_canonical(), port))
}
