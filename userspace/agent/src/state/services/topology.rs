//! Which endpoints of a Service a client of this node may use: as kube-proxy on this node chooses (kubernetes
//! `pkg/proxy/topology.go`, `CategorizeEndpoints`), so that the mesh sends nobody where the cluster would not.

use crate::state::object::{Endpoint, Hint, Service};

/// An endpoint and its port.
pub(super) type Candidate<'a> = (&'a Endpoint, u16);

/// What may be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen<'a> {
    pub(super) endpoints: Vec<Candidate<'a>>,
    /// Topology hints have decided.
    pub(super) by_hints: bool,
}

/// Chooses among the endpoints of one port and family.
pub(super) fn choose<'a>(service: &Service, all: Vec<Candidate<'a>>) -> Chosen<'a> {
    if service.local {
        let here = all.into_iter().filter(|(endpoint, _)| endpoint.here).collect();
        return Chosen { endpoints: ready_or_draining(here), by_hints: false };
    }
    let hints: [fn(&Endpoint) -> Hint; 2] = [|endpoint| endpoint.node_hint, |endpoint| endpoint.zone_hint];
    for hint in hints {
        if let Some(endpoints) = meant_for_here(&all, hint) {
            return Chosen { endpoints, by_hints: true };
        }
    }
    Chosen { endpoints: ready_or_draining(all), by_hints: false }
}

/// Hints count where every ready endpoint has one, and one of them is for here.
fn meant_for_here<'a>(all: &[Candidate<'a>], hint: fn(&Endpoint) -> Hint) -> Option<Vec<Candidate<'a>>> {
    let ready = || all.iter().filter(|(endpoint, _)| endpoint.ready);
    if ready().any(|(endpoint, _)| hint(endpoint) == Hint::None) {
        return None;
    }
    let here: Vec<_> = ready().filter(|(endpoint, _)| hint(endpoint) == Hint::Here).copied().collect();
    (!here.is_empty()).then_some(here)
}

/// While none is ready, those that still serve while they end.
fn ready_or_draining(all: Vec<Candidate<'_>>) -> Vec<Candidate<'_>> {
    let is_any_ready = all.iter().any(|(endpoint, _)| endpoint.ready);
    let usable = |endpoint: &Endpoint| if is_any_ready { endpoint.ready } else { endpoint.draining };
    all.into_iter().filter(|(endpoint, _)| usable(endpoint)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::External;

    fn service(local: bool) -> Service {
        Service {
            namespace: "ns".into(),
            name: "web".into(),
            hostname: "web.ns.svc.cluster.local".into(),
            vips: Vec::new(),
            ports: Vec::new(),
            affinity: false,
            local,
            external: External::default(),
        }
    }

    /// The last bytes of the endpoints that are chosen.
    fn chosen(local: bool, endpoints: &[Endpoint]) -> Vec<u8> {
        let all = endpoints.iter().map(|endpoint| (endpoint, 80)).collect();
        let last = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(v4) => v4.octets()[3],
            std::net::IpAddr::V6(v6) => v6.octets()[15],
        };
        choose(&service(local), all).endpoints.iter().map(|(endpoint, _)| last(endpoint.address)).collect()
    }

    fn endpoint(last: u8) -> Endpoint {
        Endpoint::at([10, 0, 0, last].into())
    }

    fn hinted(last: u8, zone_hint: Hint) -> Endpoint {
        Endpoint { zone_hint, ..endpoint(last) }
    }

    #[test]
    fn a_local_service_leads_to_this_node_or_nowhere() {
        let here = Endpoint { here: true, ..endpoint(1) };
        assert_eq!(chosen(true, &[here.clone(), endpoint(2)]), [1]);
        assert_eq!(chosen(true, &[endpoint(2)]), Vec::<u8>::new());
        let unready = Endpoint { ready: false, ..here };
        assert_eq!(chosen(true, &[unready.clone(), endpoint(2)]), Vec::<u8>::new());
        assert_eq!(chosen(true, &[Endpoint { draining: true, ..unready }, endpoint(2)]), [1]);
    }

    #[test]
    fn hints_decide_where_every_ready_endpoint_has_one_and_one_is_for_here() {
        let (here, elsewhere) = (hinted(1, Hint::Here), hinted(2, Hint::Elsewhere));
        assert_eq!(chosen(false, &[here.clone(), elsewhere.clone()]), [1]);
        assert_eq!(chosen(false, &[here.clone(), elsewhere.clone(), endpoint(3)]), [1, 2, 3]);
        assert_eq!(chosen(false, &[elsewhere.clone(), hinted(3, Hint::Elsewhere)]), [2, 3]);
        let unready = Endpoint { ready: false, ..endpoint(4) };
        assert_eq!(chosen(false, &[here.clone(), elsewhere.clone(), unready]), [1]);
        let on_this_node = Endpoint { node_hint: Hint::Here, ..here.clone() };
        let on_another = Endpoint { node_hint: Hint::Elsewhere, ..hinted(5, Hint::Here) };
        assert_eq!(chosen(false, &[on_another.clone(), on_this_node]), [1]);
        assert_eq!(chosen(false, &[on_another, here]), [5, 1]);
    }

    #[test]
    fn what_drains_serves_only_while_nothing_is_ready() {
        let draining = Endpoint { ready: false, draining: true, ..endpoint(1) };
        let gone = Endpoint { ready: false, ..endpoint(2) };
        assert_eq!(chosen(false, &[draining.clone(), gone.clone(), endpoint(3)]), [3]);
        assert_eq!(chosen(false, &[draining, gone.clone()]), [1]);
        assert_eq!(chosen(false, &[gone]), Vec::<u8>::new());
    }
}
