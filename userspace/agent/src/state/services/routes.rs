//! What the VIPs of one Service lead to: computed when the Service or one of its slices changes, not when a connection
//! comes, which then asks one table and picks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::state::affinity::belonging;
use crate::state::object::{EndpointSlice, Service, ServicePort};
use crate::state::services::topology::{self, Candidate};
use crate::state::services::{Asker, Choice};

/// A Service and the endpoints that each of its ports can use now. Each of its VIPs has a clone.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    pub(super) service: Arc<Service>,
    /// Of all ports, side by side: a Service has a handful, so that a connection walks them, and what it waits for is memory.
    groups: SmallVec<[Group; 3]>,
}

/// The usable endpoints of one port that share family and zone.
#[derive(Clone, Debug)]
struct Group {
    /// The VIP's, or a node's.
    port: u16,
    ipv6: bool,
    zone: Arc<str>,
    endpoints: Arc<[(IpAddr, u16)]>,
}

/// Endpoints by family and zone; a set, since one that moves between slices is in both for a moment.
type Grouped = BTreeMap<(bool, Arc<str>), BTreeSet<(IpAddr, u16)>>;

impl Routes {
    /// Under `ports`: where it is reached by others than its own.
    pub(super) fn of<'a>(
        service: Arc<Service>,
        ports: &[ServicePort],
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let ready = usable(&service, slices);
        let of_port = |port: &ServicePort| {
            let (port, grouped) = (port.port, ready.get(&*port.name));
            grouped.into_iter().flatten().map(move |((ipv6, zone), endpoints)| Group {
                port,
                ipv6: *ipv6,
                zone: Arc::clone(zone),
                endpoints: endpoints.iter().copied().collect(),
            })
        };
        let groups = ports.iter().flat_map(of_port).collect();
        Self { service, groups }
    }

    pub(super) fn chosen(&self, vip: SocketAddr, asker: Asker<'_>) -> Choice {
        let service = Arc::clone(&self.service);
        match self.choose(vip, asker) {
            Some(endpoint) => Choice::Endpoint(service, endpoint),
            None => Choice::None(service),
        }
    }

    /// One of the same zone where there is one, otherwise any, but none that has just failed. What the kernel has chosen is kept, and a Service with affinity gives a client the same one each time. An endpoint
    /// answers for a VIP of its own address family only, as with kube-proxy.
    fn choose(&self, vip: SocketAddr, Asker { zone, except, wish, random }: Asker<'_>) -> Option<SocketAddr> {
        let (near, family) = self.groups(vip, zone);
        let is_ready = |choice: &SocketAddr| all(family.clone()).any(|ready| ready == *choice);
        if let Some(choice) = wish.choice.filter(|choice| !except.contains(choice)).filter(is_ready) {
            return Some(choice);
        }
        if let Some(client) = wish.client.filter(|_| self.service.affinity) {
            let usable = |endpoints: Vec<SocketAddr>| {
                let usable: Vec<_> = endpoints.into_iter().filter(|to| !except.contains(to)).collect();
                belonging(client, &usable)
            };
            return usable(all(near).collect()).or_else(|| usable(all(family).collect()));
        }
        pick(near, except, random).or_else(|| pick(family, except, random))
    }

    /// All that a port of the VIP can use now.
    pub(super) fn endpoints(&self, vip: SocketAddr) -> Vec<SocketAddr> {
        let (_, family) = self.groups(vip, "");
        all(family).collect()
    }

    /// From which one is chosen, where one of them is as `is_here` says.
    pub(super) fn candidates(
        &self,
        vip: SocketAddr,
        zone: &str,
        is_here: impl Fn(SocketAddr) -> bool,
    ) -> Option<Vec<SocketAddr>> {
        let (near, family) = self.groups(vip, zone);
        let is_far = all(near.clone()).next().is_none();
        let candidates = || near.clone().chain(family.clone().filter(|_| is_far));
        all(candidates()).any(is_here).then(|| all(candidates()).collect())
    }

    /// The groups of the zone, and all of the VIP's family.
    fn groups<'s>(
        &'s self,
        vip: SocketAddr,
        zone: &str,
    ) -> (impl Iterator<Item = &'s Group> + Clone, impl Iterator<Item = &'s Group> + Clone) {
        let ipv6 = vip.ip().to_canonical().is_ipv6();
        let family = self.groups.iter().filter(move |group| group.port == vip.port() && group.ipv6 == ipv6);
        let near = family.clone().filter(move |group| !zone.is_empty() && *group.zone == *zone);
        (near, family)
    }
}

/// The endpoints of these groups.
fn all<'a>(groups: impl Iterator<Item = &'a Group> + Clone) -> impl Iterator<Item = SocketAddr> {
    groups.flat_map(|group| &*group.endpoints).map(|(address, port)| SocketAddr::new(*address, *port))
}

/// By the port's name.
fn usable<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> BTreeMap<&'a str, Grouped> {
    let mut ports: BTreeMap<&str, [Vec<Candidate<'a>>; 2]> = BTreeMap::new();
    for slice in slices {
        for port in &slice.ports {
            let families = ports.entry(&port.name).or_default();
            for endpoint in &slice.endpoints {
                families[usize::from(endpoint.address.is_ipv6())].push((endpoint, port.port));
            }
        }
    }
    let of_port = |(name, families): (_, [Vec<_>; 2])| (name, grouped(service, families));
    ports.into_iter().map(of_port).collect()
}

fn grouped(service: &Service, families: [Vec<Candidate<'_>>; 2]) -> Grouped {
    let mut grouped = Grouped::new();
    for candidates in families {
        let chosen = topology::choose(service, candidates);
        for (endpoint, port) in chosen.endpoints {
            // Whoever wrote the hints has weighed the zones already.
            let zone = if chosen.by_hints { "".into() } else { Arc::clone(&endpoint.zone) };
            let group = (endpoint.address.is_ipv6(), zone);
            grouped.entry(group).or_default().insert((endpoint.address, port));
        }
    }
    grouped
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
    let all = groups.flat_map(|group| &*group.endpoints);
    let from_first = all.clone().skip(first).chain(all.take(first));
    from_first.map(|(address, port)| SocketAddr::new(*address, *port)).find(|to| !except.contains(to))
}
