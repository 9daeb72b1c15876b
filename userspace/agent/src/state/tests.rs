//! What `state` promises; the files below are sorted by the question a reader asks, this one holds the fixtures.

use std::collections::BTreeMap;

use signet_identity::SpiffeId;

use super::*;
use crate::config::SameNode;

mod churn;
mod destinations;
mod epochs;
mod workloads;

fn with(events: &[Event]) -> State {
    let state = State::new("istio-system");
    for event in events {
        state.apply(event);
    }
    state
}

fn pod(name: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: uid(name),
        name: name.into(),
        template: template().into(),
        node: "n1".into(),
        zone: "".into(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        host_network: false,
        enrolled: true,
        same_node: SameNode::Direct,
        cgroup: None,
    }
}

fn template() -> Template {
    Template {
        namespace: "ns".into(),
        service_account: "sa".into(),
        identity: SpiffeId::parse("spiffe://td/ns/ns/sa/sa").unwrap(),
        cluster: "Kubernetes".into(),
        labels: BTreeMap::from([("app".into(), "x".into())]),
        ports: Ports::new(),
        workload_name: Some("app".into()),
        workload_type: "deployment",
        canonical_name: Some("app".into()),
        canonical_revision: "latest".into(),
    }
}

fn service(name: &str, vip: &str, ports: &[(&str, u16)]) -> Service {
    Service {
        namespace: "ns".into(),
        name: name.into(),
        hostname: format!("{name}.ns.svc.cluster.local").into(),
        vips: vec![ip(vip)],
        ports: service_ports(ports),
        affinity: false,
        local: false,
        external: External::default(),
    }
}

fn slice(name: &str, service: &str, ports: &[(&str, u16)], endpoints: &[(&str, bool, &str)]) -> Event {
    let endpoint = |(address, ready, zone): &(&str, bool, &str)| Endpoint {
        ready: *ready,
        zone: (*zone).into(),
        ..Endpoint::at(ip(address))
    };
    Event::EndpointSlice(EndpointSlice {
        namespace: "ns".into(),
        name: name.into(),
        service: service.into(),
        ports: service_ports(ports),
        endpoints: endpoints.iter().map(endpoint).collect(),
    })
}

fn service_ports(ports: &[(&str, u16)]) -> Vec<ServicePort> {
    ports.iter().map(|(name, port)| ServicePort { name: (*name).into(), port: *port }).collect()
}

fn target(state: &State, address: &str, port: u16) -> String {
    match state.resolve(ip(address), port, "", &[]) {
        Target::Workload { workload, address, port, service } => {
            let of = service.map_or(String::new(), |service| format!(" of {}", service.name));
            format!("workload {} {}{of}", workload.uid, SocketAddr::new(address, port))
        }
        Target::Endpoint { address, port, service } => {
            format!("endpoint {} of {}", SocketAddr::new(address, port), service.name)
        }
        Target::NoEndpoint { service } => format!("no endpoint of {}", service.name),
        Target::Awaited { kind, address, service } => {
            let of = service.map_or(String::new(), |service| format!(" of {}", service.name));
            format!("awaited {kind:?} {address}{of}")
        }
        Target::Unknown => "unknown".into(),
    }
}

fn uid(text: &str) -> WorkloadUid {
    WorkloadUid::new(text)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const VIP: &str = "10.96.0.1";
