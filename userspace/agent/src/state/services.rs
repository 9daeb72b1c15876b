//! Services by VIP, by hostname and by name, with the endpoints that can be used now.
//!
//! Services and slices arrive in any order. What is asked for each connection, the routes of a VIP, is a table of its own:
//! the writer computes them while readers go on, and puts them in place when they are ready.

mod external;
mod routes;
mod topology;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::RwLock;

use self::external::{External, NodeNames, Place};
use self::routes::Routes;
use super::Wish;
use super::intern::ZonePool;
use super::object::{EndpointSlice, Service};
use super::table::{Address, AddressHasher, Table};

/// (namespace, name)
type Name = (Arc<str>, Arc<str>);

/// Written by whoever has the pool of `state`'s writer.
#[derive(Debug, Default)]
pub(super) struct Services {
    vips: Table<Address, Routes, AddressHasher>,
    external: External,
    names: RwLock<Names>,
}

#[derive(Debug, Default)]
struct Names {
    by_name: HashMap<Name, Known>,
    by_hostname: HashMap<Arc<str>, Name>,
    /// Which Service a slice belongs to.
    slices: HashMap<Name, Name>,
}

/// A Service, its slices, or both: whichever came first.
#[derive(Debug, Default)]
struct Known {
    service: Option<Arc<Service>>,
    slices: BTreeMap<Arc<str>, EndpointSlice>,
}

/// Who asks which endpoint, and how one is drawn: `random(n)` gives an index below `n`.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    /// Where it is; endpoints of this zone come first.
    pub(super) zone: &'a str,
    /// Have just failed.
    pub(super) except: &'a [SocketAddr],
    pub(super) wish: Wish,
    pub(super) random: fn(usize) -> usize,
}

/// What a VIP's port leads to.
pub(super) enum Choice {
    /// A ready endpoint.
    Endpoint(Arc<Service>, SocketAddr),
    /// The Service is known, but nothing can serve that port.
    None(Arc<Service>),
}

impl Services {
    /// Adds or replaces. A VIP that stays is never without routes in between: its traffic would pass in clear.
    pub(super) fn put(&self, mut service: Service) {
        for vip in &mut service.vips {
            *vip = vip.to_canonical();
        }
        let service = Arc::new(service);
        let name = name_of(&service);
        let old = self.names.write().put(&name, &service);
        if let Some(routes) = self.routes(&name) {
            for vip in &service.vips {
                self.vips.insert(Address::of(*vip), routes.clone());
            }
        }
        self.external.put(&name, old.as_deref(), self.claims(&name));
        if let Some(old) = old {
            self.withdraw(&name, old.vips.iter().filter(|vip| !service.vips.contains(vip)));
        }
    }

    /// See [`External::put_node`].
    pub(super) fn put_node(&self, name: &Arc<str>, addresses: &[IpAddr]) {
        self.external.put_node(name, addresses);
    }

    /// The nodes that have an address: one, or none.
    pub(super) fn nodes_at(&self, address: IpAddr) -> NodeNames {
        self.external.nodes_at(address)
    }

    pub(super) fn remove(&self, namespace: &Arc<str>, name: &Arc<str>) {
        let name = (Arc::clone(namespace), Arc::clone(name));
        let old = self.names.write().remove(&name);
        self.external.put(&name, old.as_deref(), Vec::new());
        if let Some(old) = old {
            self.withdraw(&name, old.vips.iter());
        }
    }

    pub(super) fn put_slice(&self, mut slice: EndpointSlice, pool: &mut ZonePool) {
        for endpoint in &mut slice.endpoints {
            endpoint.address = endpoint.address.to_canonical();
        }
        pool.share(&mut slice);
        let service = (Arc::clone(&slice.namespace), Arc::clone(&slice.service));
        let (old, former) = self.names.write().put_slice(&service, slice).unzip();
        if let Some(old) = old {
            pool.give_back(&old);
        }
        if let Some(former) = former.filter(|former| *former != service) {
            self.refresh(&former);
        }
        self.refresh(&service);
    }

    pub(super) fn remove_slice(&self, namespace: &Arc<str>, name: &Arc<str>, pool: &mut ZonePool) {
        let slice = (Arc::clone(namespace), Arc::clone(name));
        let removed = self.names.write().remove_slice(&slice);
        if let Some((old, service)) = removed {
            pool.give_back(&old);
            self.refresh(&service);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Service>> {
        self.names.read().by_name.values().filter_map(|known| known.service.clone()).collect()
    }

    /// Chooses an endpoint for a VIP's port; `None` where the address is no VIP.
    pub(super) fn choose(&self, vip: SocketAddr, asker: Asker<'_>) -> Option<Choice> {
        self.vips.with(&Address::of(vip.ip()), |routes| Some(routes?.chosen(vip, asker)))
    }

    /// The same for a Service's port of a node; `None` where it is none.
    pub(super) fn choose_at_node(&self, to: SocketAddr, asker: Asker<'_>) -> Option<Choice> {
        Some(self.external.at_node(to)?.chosen(to, asker))
    }

    /// The same for an external address; `None` where no Service has it.
    pub(super) fn choose_external(&self, to: SocketAddr, asker: Asker<'_>) -> Option<Choice> {
        Some(self.external.at(to)?.chosen(to, asker))
    }

    /// All endpoints of a VIP's port, a Service's port of a node, or, unless the address `is_others`, an external one; `None`
    /// where it is none of these.
    pub(super) fn endpoints(
        &self,
        to: SocketAddr,
        is_others: impl FnOnce() -> bool,
    ) -> Option<Vec<SocketAddr>> {
        let of_vip = self.vips.with(&Address::of(to.ip()), |routes| Some(routes?.endpoints(to)));
        let claimed = || self.external.at(to).filter(|_| !is_others());
        let external = || self.external.at_node(to).or_else(claimed);
        of_vip.or_else(|| Some(external()?.endpoints(to)))
    }

    /// See [`super::State::candidates`].
    pub(super) fn candidates(
        &self,
        zone: &str,
        is_here: impl Fn(SocketAddr) -> bool,
    ) -> Vec<(SocketAddr, bool, Vec<SocketAddr>)> {
        let mut found = Vec::new();
        for vip in self.all().iter().flat_map(|service| service.vips.clone()) {
            self.vips.with(&Address::of(vip), |routes| {
                let Some(routes) = routes else { return };
                for port in &routes.service.ports {
                    let vip = SocketAddr::new(vip, port.port);
                    if let Some(backends) = routes.candidates(vip, zone, &is_here) {
                        found.push((vip, routes.service.affinity, backends));
                    }
                }
            });
        }
        found
    }

    /// The target port at one endpoint, ready or not, of the Service with that hostname.
    pub(super) fn target_port(&self, hostname: &str, port: u16, endpoint: IpAddr) -> Option<u16> {
        let names = self.names.read();
        let known = names.by_name.get(names.by_hostname.get(hostname)?)?;
        let port = known.service.as_ref()?.ports.iter().find(|declared| declared.port == port)?;
        let endpoint = endpoint.to_canonical();
        let has = |slice: &&EndpointSlice| slice.endpoints.iter().any(|e| e.address == endpoint);
        let mut ports = known.slices.values().filter(has).flat_map(|slice| &slice.ports);
        ports.find(|target| target.name == port.name).map(|target| target.port)
    }

    /// Whether a slice of the Service says that the pod of an endpoint is meant.
    pub(super) fn leads_to_pod(&self, service: &Service, endpoint: IpAddr) -> bool {
        let names = self.names.read();
        let known = names.by_name.get(&name_of(service));
        let endpoints =
            known.into_iter().flat_map(|known| known.slices.values()).flat_map(|slice| &slice.endpoints);
        endpoints.into_iter().any(|known| known.pod && known.address == endpoint)
    }

    /// Whether any slice of the Service is known.
    pub(super) fn has_slices(&self, service: &Service) -> bool {
        self.names.read().by_name.get(&name_of(service)).is_some_and(|known| !known.slices.is_empty())
    }

    /// Computed under the read lock alone: it takes a while for a large Service.
    fn routes(&self, name: &Name) -> Option<Routes> {
        let names = self.names.read();
        let known = names.by_name.get(name)?;
        let service = known.service.as_ref().filter(|service| !service.vips.is_empty())?;
        Some(Routes::of(Arc::clone(service), &service.ports, known.slices.values()))
    }

    /// The same for where else it is reached.
    fn claims(&self, name: &Name) -> Vec<(Place, Routes)> {
        let names = self.names.read();
        let known = names.by_name.get(name);
        let claims = known.and_then(|known| Some((known.service.as_deref()?, known.slices.values())));
        claims.map(|(service, slices)| external::claims(service, slices)).unwrap_or_default()
    }

    /// Puts a Service's routes in place where it has the VIP; another Service may have taken it over.
    fn refresh(&self, name: &Name) {
        self.external.put(name, None, self.claims(name));
        let Some(routes) = self.routes(name) else { return };
        for vip in &routes.service.vips {
            let renew = |old: Routes| if is_of(&old, name) { routes.clone() } else { old };
            self.vips.change(Address::of(*vip), |old| old.map(renew));
        }
    }

    /// Another Service may have taken a VIP over before this one's end was told: only own entries go.
    fn withdraw<'a>(&self, name: &Name, vips: impl Iterator<Item = &'a IpAddr>) {
        for vip in vips {
            self.vips.change(Address::of(*vip), |routes| routes.filter(|routes| !is_of(routes, name)));
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Names { by_name, by_hostname, slices } = &*self.names.read();
        self.vips.is_empty()
            && self.external.is_empty()
            && by_name.is_empty()
            && by_hostname.is_empty()
            && slices.is_empty()
    }
}

impl Names {
    /// Adds or replaces; returns what was there.
    fn put(&mut self, name: &Name, service: &Arc<Service>) -> Option<Arc<Service>> {
        let old = self.by_name.entry(name.clone()).or_default().service.replace(Arc::clone(service));
        self.forget_hostname(name, old.as_deref());
        self.by_hostname.insert(Arc::clone(&service.hostname), name.clone());
        old
    }

    fn remove(&mut self, name: &Name) -> Option<Arc<Service>> {
        let old = self.by_name.get_mut(name)?.service.take();
        self.forget_hostname(name, old.as_deref());
        self.forget_if_empty(name);
        old
    }

    /// Adds or replaces; returns what was there, and the Service it belonged to.
    fn put_slice(&mut self, service: &Name, slice: EndpointSlice) -> Option<(EndpointSlice, Name)> {
        let name = (Arc::clone(&slice.namespace), Arc::clone(&slice.name));
        let old = self.remove_slice(&name);
        self.slices.insert(name, service.clone());
        let known = self.by_name.entry(service.clone()).or_default();
        known.slices.insert(Arc::clone(&slice.name), slice);
        old
    }

    fn remove_slice(&mut self, name: &Name) -> Option<(EndpointSlice, Name)> {
        let service = self.slices.remove(name)?;
        let old = self.by_name.get_mut(&service)?.slices.remove(&name.1)?;
        self.forget_if_empty(&service);
        Some((old, service))
    }

    /// Another Service may have taken it over.
    fn forget_hostname(&mut self, name: &Name, old: Option<&Service>) {
        if let Some(old) = old
            && self.by_hostname.get(&old.hostname) == Some(name)
        {
            self.by_hostname.remove(&old.hostname);
        }
    }

    fn forget_if_empty(&mut self, name: &Name) {
        if self.by_name.get(name).is_some_and(|known| known.service.is_none() && known.slices.is_empty()) {
            self.by_name.remove(name);
        }
    }
}

fn name_of(service: &Service) -> Name {
    (Arc::clone(&service.namespace), Arc::clone(&service.name))
}

fn is_of(routes: &Routes, (namespace, name): &Name) -> bool {
    routes.service.namespace == *namespace && routes.service.name == *name
}
