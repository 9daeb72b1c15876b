//! Services by VIP, by hostname and by name, with the endpoints that can be used now.
//!
//! What a connection asks (a ready endpoint of this port, near this zone) is computed when a slice changes, not when a
//! connection comes: the answer is two look-ups and one random index however many endpoints there are. Services and
//! slices arrive in any order. An endpoint answers for a VIP of its own address family only, as with kube-proxy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::intern::ZonePool;
use super::object::{EndpointSlice, Service};

/// (namespace, name)
type Name = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
pub(super) struct Services {
    by_name: HashMap<Name, Known>,
    by_vip: HashMap<IpAddr, Name>,
    by_hostname: HashMap<Arc<str>, Name>,
    /// Which Service a slice belongs to.
    slices: HashMap<Name, Name>,
    pool: ZonePool,
}

/// A Service, its slices, or both: whichever came first.
#[derive(Debug, Default)]
struct Known {
    service: Option<Arc<Service>>,
    slices: BTreeMap<Arc<str>, EndpointSlice>,
    /// Ready endpoints by port name.
    ready: BTreeMap<Arc<str>, Ready>,
}

/// The ready endpoints of one port, by family and zone: a handful of groups, so that a connection walks them.
#[derive(Debug)]
struct Ready {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    ipv6: bool,
    zone: Arc<str>,
    endpoints: Vec<(IpAddr, u16)>,
}

/// Endpoints by family and zone; a set, since one that moves between slices is in both for a moment.
type Grouped = BTreeMap<(bool, Arc<str>), BTreeSet<(IpAddr, u16)>>;

/// What a VIP's port leads to.
pub(super) enum Choice<'a> {
    /// A ready endpoint.
    Endpoint(&'a Arc<Service>, SocketAddr),
    /// The Service is known, but nothing can serve that port.
    None(&'a Arc<Service>),
}

impl Services {
    pub(super) fn put(&mut self, mut service: Service) {
        for vip in &mut service.vips {
            *vip = vip.to_canonical();
        }
        let name = (Arc::clone(&service.namespace), Arc::clone(&service.name));
        self.forget_addresses(&name);
        for vip in &service.vips {
            self.by_vip.insert(*vip, name.clone());
        }
        self.by_hostname.insert(Arc::clone(&service.hostname), name.clone());
        self.by_name.entry(name).or_default().service = Some(Arc::new(service));
    }

    pub(super) fn remove(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let name = (Arc::clone(namespace), Arc::clone(name));
        self.forget_addresses(&name);
        if let Some(known) = self.by_name.get_mut(&name) {
            known.service = None;
            self.forget_if_empty(&name);
        }
    }

    pub(super) fn put_slice(&mut self, mut slice: EndpointSlice) {
        self.remove_slice(&slice.namespace, &slice.name);
        for endpoint in &mut slice.endpoints {
            endpoint.address = endpoint.address.to_canonical();
        }
        self.pool.share(&mut slice);
        let name = (Arc::clone(&slice.namespace), Arc::clone(&slice.name));
        let service = (Arc::clone(&slice.namespace), Arc::clone(&slice.service));
        self.slices.insert(name, service.clone());
        let known = self.by_name.entry(service).or_default();
        known.slices.insert(Arc::clone(&slice.name), slice);
        known.count_ready();
    }

    pub(super) fn remove_slice(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let slice = (Arc::clone(namespace), Arc::clone(name));
        let Some(service) = self.slices.remove(&slice) else { return };
        let Some(known) = self.by_name.get_mut(&service) else { return };
        if let Some(old) = known.slices.remove(name) {
            self.pool.give_back(&old);
        }
        known.count_ready();
        self.forget_if_empty(&service);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_name.values().filter_map(|known| known.service.as_ref())
    }

    /// Chooses an endpoint for a VIP's port; `None` where the address is no VIP.
    pub(super) fn choose(
        &self,
        vip: SocketAddr,
        zone: &str,
        except: &[SocketAddr],
        random: impl Fn(usize) -> usize,
    ) -> Option<Choice<'_>> {
        let address = vip.ip().to_canonical();
        let known = self.by_name.get(self.by_vip.get(&address)?)?;
        let service = known.service.as_ref()?;
        let port = service.ports.iter().find(|port| port.port == vip.port());
        let backend = port
            .and_then(|port| known.ready.get(&port.name))
            .and_then(|ready| ready.choose(address.is_ipv6(), zone, except, random));
        Some(backend.map_or(Choice::None(service), |to| Choice::Endpoint(service, to)))
    }

    /// The target port at one endpoint, ready or not, of the Service with that hostname.
    pub(super) fn target_port(&self, hostname: &str, port: u16, endpoint: IpAddr) -> Option<u16> {
        let known = self.by_name.get(self.by_hostname.get(hostname)?)?;
        let port = known.service.as_ref()?.ports.iter().find(|declared| declared.port == port)?;
        let endpoint = endpoint.to_canonical();
        let has = |slice: &&EndpointSlice| slice.endpoints.iter().any(|e| e.address == endpoint);
        let mut ports = known.slices.values().filter(has).flat_map(|slice| &slice.ports);
        ports.find(|target| target.name == port.name).map(|target| target.port)
    }

    /// Another Service may have taken an address over before this one's end was told: only own entries go.
    fn forget_addresses(&mut self, name: &Name) {
        let Some(old) = self.by_name.get(name).and_then(|known| known.service.as_ref()) else { return };
        for vip in &old.vips {
            if self.by_vip.get(vip) == Some(name) {
                self.by_vip.remove(vip);
            }
        }
        if self.by_hostname.get(&old.hostname) == Some(name) {
            self.by_hostname.remove(&old.hostname);
        }
    }

    fn forget_if_empty(&mut self, name: &Name) {
        if self.by_name.get(name).is_some_and(|known| known.service.is_none() && known.slices.is_empty()) {
            self.by_name.remove(name);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
            && self.by_vip.is_empty()
            && self.by_hostname.is_empty()
            && self.slices.is_empty()
            && self.pool.is_empty()
    }
}

impl Known {
    fn count_ready(&mut self) {
        let mut ports: BTreeMap<Arc<str>, Grouped> = BTreeMap::new();
        for slice in self.slices.values() {
            for port in &slice.ports {
                let grouped = ports.entry(Arc::clone(&port.name)).or_default();
                for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
                    let group = (endpoint.address.is_ipv6(), Arc::clone(&endpoint.zone));
                    grouped.entry(group).or_default().insert((endpoint.address, port.port));
                }
            }
        }
        self.ready = ports.into_iter().map(|(name, grouped)| (name, Ready::of(grouped))).collect();
    }
}

impl Ready {
    fn of(grouped: Grouped) -> Self {
        let group = |((ipv6, zone), endpoints): ((bool, Arc<str>), BTreeSet<_>)| Group {
            ipv6,
            zone,
            endpoints: endpoints.into_iter().collect(),
        };
        Self { groups: grouped.into_iter().map(group).collect() }
    }

    /// One of the same zone where there is one, otherwise any; `random(n)` gives an index below `n`.
    fn choose(
        &self,
        ipv6: bool,
        zone: &str,
        except: &[SocketAddr],
        random: impl Fn(usize) -> usize,
    ) -> Option<SocketAddr> {
        let family = self.groups.iter().filter(|group| group.ipv6 == ipv6);
        let near = family.clone().filter(|group| !zone.is_empty() && *group.zone == *zone);
        pick(near, except, &random).or_else(|| pick(family, except, &random))
    }
}

/// A random one, or the next that has not just failed.
fn pick<'a>(
    groups: impl Iterator<Item = &'a Group> + Clone,
    except: &[SocketAddr],
    random: impl Fn(usize) -> usize,
) -> Option<SocketAddr> {
    let count = groups.clone().map(|group| group.endpoints.len()).sum();
    if count == 0 {
        return None;
    }
    let first = random(count);
    let all = groups.flat_map(|group| &group.endpoints);
    let from_first = all.clone().skip(first).chain(all.take(first));
    from_first.map(|(address, port)| SocketAddr::new(*address, *port)).find(|to| !except.contains(to))
}
