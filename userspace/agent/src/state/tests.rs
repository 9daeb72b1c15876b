use std::collections::{BTreeMap, HashSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use signet_identity::SpiffeId;

use super::*;
use crate::policy::{Action, MtlsMode, Rule};

// ---- workloads ----

#[test]
fn a_pod_is_found_by_uid_and_by_each_of_its_addresses() {
    let state = with(&[Event::Workload(pod("u1", &["10.0.0.1", "fd00::1"]).into())]);
    assert_eq!(state.workload(&uid("u1")).unwrap().uid, uid("u1"));
    assert_eq!(uids(&state, "10.0.0.1"), ["u1"]);
    assert_eq!(uids(&state, "fd00::1"), ["u1"]);
    assert_eq!(uids(&state, "::ffff:10.0.0.1"), ["u1"]);
    assert!(uids(&state, "10.0.0.2").is_empty());
}

#[test]
fn an_address_that_a_pod_gave_up_is_no_longer_its() {
    let state = with(&[
        Event::Workload(pod("u1", &["10.0.0.1"]).into()),
        Event::Workload(pod("u1", &["10.0.0.2"]).into()),
    ]);
    assert!(uids(&state, "10.0.0.1").is_empty());
    assert_eq!(uids(&state, "10.0.0.2"), ["u1"]);
}

#[test]
fn the_newest_enrolled_pod_has_the_address_until_it_is_gone() {
    let outsider = Workload { enrolled: false, ..pod("u3", &["10.0.0.1"]) };
    let state = with(&[
        Event::Workload(pod("u1", &["10.0.0.1"]).into()),
        Event::Workload(pod("u2", &["10.0.0.1"]).into()),
        Event::Workload(outsider.into()),
        // A late word of the oldest does not make it the newest.
        Event::Workload(Workload { zone: "z".into(), ..pod("u1", &["10.0.0.1"]) }.into()),
    ]);
    assert_eq!(uids(&state, "10.0.0.1"), ["u2"]);
    state.apply(&Event::WorkloadGone(uid("u2")));
    assert_eq!(uids(&state, "10.0.0.1"), ["u1"]);
    state.apply(&Event::WorkloadGone(uid("u1")));
    assert_eq!(uids(&state, "10.0.0.1"), ["u3"]);
    assert!(state.workload(&uid("u1")).is_none());
}

#[test]
fn host_network_workloads_share_an_address_and_the_port_tells_them_apart() {
    let state = with(&[
        Event::Workload(host("h1", &[80]).into()),
        Event::Workload(host("h2", &[443]).into()),
        Event::Workload(Workload { enrolled: false, ..host("proxy", &[443]) }.into()),
    ]);
    assert_eq!(uids(&state, NODE), ["h1", "h2", "proxy"]);
    assert_eq!(target(&state, NODE, 80), "workload h1 192.168.0.1:80");
    assert_eq!(target(&state, NODE, 443), "workload h2 192.168.0.1:443");
    assert_eq!(target(&state, NODE, 10250), "unknown");
}

#[test]
fn a_host_network_workload_that_declares_no_port_may_be_meant_by_any() {
    let state = with(&[Event::Workload(host("h1", &[80]).into()), Event::Workload(host("h2", &[]).into())]);
    assert_eq!(target(&state, NODE, 80), "workload h1 192.168.0.1:80");
    assert_eq!(target(&state, NODE, 9000), "workload h2 192.168.0.1:9000");
}

// ---- destinations ----

#[test]
fn a_pod_address_leads_to_its_workload_with_the_port_unchanged() {
    let state = with(&[Event::Workload(pod("u1", &["10.0.0.1"]).into())]);
    assert_eq!(target(&state, "10.0.0.1", 8080), "workload u1 10.0.0.1:8080");
    assert_eq!(target(&state, "10.0.0.2", 8080), "unknown");
}

#[test]
fn a_vip_leads_to_the_target_port_of_a_ready_endpoint() {
    let state = with(&[
        Event::Workload(pod("u1", &["10.0.0.1"]).into()),
        Event::Service(service("web", VIP, &[("http", 80)])),
        slice("web-1", "web", &[("http", 8080)], &[("10.0.0.1", true, ""), ("10.0.0.2", false, "")]),
    ]);
    assert_eq!(target(&state, VIP, 80), "workload u1 10.0.0.1:8080 of web");
}

#[test]
fn an_endpoint_that_is_no_workload_is_an_endpoint() {
    let state = with(&[
        slice("web-1", "web", &[("", 8080)], &[("203.0.113.1", true, "")]),
        Event::Service(service("web", VIP, &[("", 80)])),
    ]);
    assert_eq!(target(&state, VIP, 80), "endpoint 203.0.113.1:8080 of web");
}

#[test]
fn a_vip_without_that_port_or_a_ready_endpoint_is_no_endpoint() {
    let state = with(&[Event::Service(service("web", VIP, &[("http", 80)]))]);
    assert_eq!(target(&state, VIP, 80), "no endpoint of web");
    state.apply(&slice("web-1", "web", &[("http", 8080)], &[("10.0.0.2", false, "")]));
    assert_eq!(target(&state, VIP, 80), "no endpoint of web");
    state.apply(&slice("web-1", "web", &[("http", 8080)], &[("10.0.0.2", true, "")]));
    assert_eq!(target(&state, VIP, 80), "endpoint 10.0.0.2:8080 of web");
    assert_eq!(target(&state, VIP, 81), "no endpoint of web");
    state.apply(&Event::EndpointSliceGone("ns".into(), "web-1".into()));
    assert_eq!(target(&state, VIP, 80), "no endpoint of web");
    state.apply(&Event::ServiceGone("ns".into(), "web".into()));
    assert_eq!(target(&state, VIP, 80), "unknown");
}

#[test]
fn every_endpoint_of_the_own_zone_is_used_and_no_other() {
    let state = three_zones();
    let seen = targets(&state, "b", &[]);
    assert_eq!(seen, set(&["10.0.1.1:8080", "10.0.1.2:8080"]));
}

#[test]
fn every_endpoint_is_used_from_a_zone_that_has_none() {
    let state = three_zones();
    let all = set(&["10.0.0.1:8080", "10.0.1.1:8080", "10.0.1.2:8080", "10.0.2.1:8080"]);
    assert_eq!(targets(&state, "elsewhere", &[]), all);
    assert_eq!(targets(&state, "", &[]), all);
}

#[test]
fn endpoints_that_have_just_failed_are_passed_over() {
    let state = three_zones();
    let failed: Vec<SocketAddr> = ["10.0.1.1:8080", "10.0.1.2:8080"].map(|a| a.parse().unwrap()).into();
    assert_eq!(targets(&state, "b", &failed[..1]), set(&["10.0.1.2:8080"]));
    assert_eq!(targets(&state, "b", &failed), set(&["10.0.0.1:8080", "10.0.2.1:8080"]));
    let all: Vec<SocketAddr> = targets(&state, "", &[]).iter().map(|a| a.parse().unwrap()).collect();
    assert_eq!(targets(&state, "b", &all), set(&["none"]));
}

#[test]
fn a_vip_leads_to_endpoints_of_its_own_family() {
    let mut dual = service("web", VIP, &[("http", 80)]);
    dual.vips.push("fd00::80".parse().unwrap());
    let state = with(&[
        Event::Service(dual),
        slice("web-4", "web", &[("http", 8080)], &[("10.0.0.1", true, "a")]),
        slice("web-6", "web", &[("http", 8080)], &[("fd00::1", true, "a")]),
    ]);
    assert_eq!(target(&state, VIP, 80), "endpoint 10.0.0.1:8080 of web");
    assert_eq!(target(&state, "fd00::80", 80), "endpoint [fd00::1]:8080 of web");
}

#[test]
fn a_vip_that_moves_to_another_service_survives_the_end_of_the_first() {
    let state = with(&[
        Event::Service(service("old", VIP, &[("http", 80)])),
        Event::Service(service("new", VIP, &[("http", 80)])),
        Event::ServiceGone("ns".into(), "old".into()),
    ]);
    assert_eq!(target(&state, VIP, 80), "no endpoint of new");
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let state = with(&[
        Event::Service(service("web", VIP, &[("http", 80)])),
        slice("s", "web", &[("http", 8080)], &[("10.0.0.1", true, "")]),
        slice("s", "api", &[("http", 8080)], &[("10.0.0.1", true, "")]),
    ]);
    assert_eq!(target(&state, VIP, 80), "no endpoint of web");
}

#[test]
fn a_hostname_gives_the_target_port_of_its_own_endpoints_only() {
    let state = with(&[
        Event::Service(service("web", VIP, &[("http", 80), ("admin", 81)])),
        slice("web-1", "web", &[("http", 8080)], &[("10.0.0.1", false, "")]),
        slice("web-2", "web", &[("http", 9090)], &[("10.0.0.2", true, "")]),
    ]);
    let port = |port, endpoint: &str| state.target_port("web.ns.svc.cluster.local", port, ip(endpoint));
    assert_eq!(port(80, "10.0.0.1"), Some(8080));
    assert_eq!(port(80, "10.0.0.2"), Some(9090));
    assert_eq!(port(80, "10.0.0.3"), None);
    assert_eq!(port(81, "10.0.0.1"), None);
    assert_eq!(state.target_port("other.ns.svc.cluster.local", 80, ip("10.0.0.1")), None);
}

// ---- epochs ----

#[test]
fn what_policies_look_at_moves_the_epoch_and_nothing_else_does() {
    let state = State::new("istio-system");
    let first = pod("u1", &["10.0.0.1"]);
    assert!(!state.apply(&Event::Workload(first.clone().into())));
    assert!(!state.apply(&Event::Workload(first.clone().into())));
    assert!(!state.apply(&Event::Workload(Workload { zone: "z".into(), ..first.clone() }.into())));
    let labels = Arc::new(BTreeMap::from([("app".into(), "y".into())]));
    assert!(state.apply(&Event::Workload(Workload { labels, ..first.clone() }.into())));
    let identity = SpiffeId::parse("spiffe://td/ns/ns/sa/other").unwrap();
    assert!(state.apply(&Event::Workload(Workload { identity, ..first.clone() }.into())));
    assert!(state.apply(&Event::Workload(Workload { enrolled: false, ..first }.into())));
    assert!(!state.apply(&Event::Service(service("web", VIP, &[("http", 80)]))));
    assert!(!state.apply(&Event::Synced));
}

#[test]
fn a_policy_counts_as_soon_as_it_is_applied_and_no_longer_than_it_is_there() {
    let state = with(&[Event::Workload(pod("u1", &["10.0.0.1"]).into())]);
    assert!(plaintext(&state).is_ok());
    assert!(state.apply(&Event::PeerAuthentication(strict().into())));
    assert_eq!(plaintext(&state), Err(Denial::MtlsRequired("ns/default".into())));
    assert!(state.apply(&Event::Authorization(deny_all().into())));
    assert!(!state.apply(&Event::Authorization(deny_all().into())));
    assert!(state.apply(&Event::PeerAuthenticationGone("ns".into(), "default".into())));
    assert_eq!(plaintext(&state), Err(Denial::Denied("ns/no".into())));
    assert!(state.apply(&Event::AuthorizationGone("ns".into(), "no".into())));
    assert_eq!(plaintext(&state).unwrap().epoch(), state.epoch());
}

// ---- churn ----

#[test]
fn replicas_share_what_their_template_says() {
    let state = with(&[
        Event::Workload(pod("u1", &["10.0.0.1"]).into()),
        Event::Workload(pod("u2", &["10.0.0.2"]).into()),
    ]);
    let [a, b] = ["u1", "u2"].map(|u| state.workload(&uid(u)).unwrap());
    assert!(Arc::ptr_eq(&a.labels, &b.labels));
    assert!(Arc::ptr_eq(&a.ports, &b.ports));
    assert!(Arc::ptr_eq(&a.namespace, &b.namespace));
    assert!(std::ptr::eq(a.identity.as_str(), b.identity.as_str()));
}

proptest! {
    #[test]
    fn a_mesh_that_came_and_went_leaves_nothing_behind(events in vec(event(), 0..60)) {
        let state = State::new("istio-system");
        for event in &events {
            state.apply(event);
        }
        for event in &events {
            state.apply(&end_of(event));
        }
        let inner = state.inner.read();
        prop_assert!(inner.workloads.is_empty());
        prop_assert!(inner.services.is_empty());
    }

    #[test]
    fn an_address_leads_to_someone_who_has_it(events in vec(event(), 0..60), address in address()) {
        let state = State::new("istio-system");
        events.iter().for_each(|event| { state.apply(event); });
        let holders: HashSet<_> =
            state.workloads().iter().filter(|w| w.addresses.contains(&address)).map(|w| w.uid.clone()).collect();
        let found: HashSet<_> = state.workloads_at(address).iter().map(|w| w.uid.clone()).collect();
        prop_assert_eq!(found.is_empty(), holders.is_empty());
        prop_assert!(found.is_subset(&holders));
    }
}

prop_compose! {
    fn some_workload()(
        name in select(&["u1", "u2", "u3"]),
        addresses in vec(address(), 0..3),
        host_network in any::<bool>(),
        enrolled in any::<bool>(),
    ) -> Workload {
        Workload { addresses, host_network, enrolled, ..pod(name, &[]) }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let endpoints =
        vec((address().prop_map(|a| a.to_string()), any::<bool>(), select(&["", "a", "b"])), 0..4);
    prop_oneof![
        some_workload().prop_map(|workload| Event::Workload(workload.into())),
        some_workload().prop_map(|workload| Event::WorkloadGone(workload.uid)),
        (service_name(), address()).prop_map(|(name, vip)| Event::Service(service(
            name,
            &vip.to_string(),
            &[("http", 80)]
        ))),
        service_name().prop_map(|name| Event::ServiceGone("ns".into(), name.into())),
        (select(&["s1", "s2"]), service_name(), endpoints).prop_map(|(name, service, endpoints)| {
            let endpoints: Vec<_> =
                endpoints.iter().map(|(a, ready, zone)| (a.as_str(), *ready, *zone)).collect();
            slice(name, service, &[("http", 8080)], &endpoints)
        }),
    ]
}

fn service_name() -> impl Strategy<Value = &'static str> {
    select(&["web", "api"])
}

fn address() -> impl Strategy<Value = IpAddr> {
    select(&["10.0.0.1", "10.0.0.2", "fd00::1"]).prop_map(ip)
}

fn end_of(event: &Event) -> Event {
    match event {
        Event::Workload(workload) => Event::WorkloadGone(workload.uid.clone()),
        Event::Service(service) => Event::ServiceGone(service.namespace.clone(), service.name.clone()),
        Event::EndpointSlice(slice) => Event::EndpointSliceGone(slice.namespace.clone(), slice.name.clone()),
        other => other.clone(),
    }
}

// ---- fixtures ----

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
        namespace: "ns".into(),
        service_account: "sa".into(),
        identity: SpiffeId::parse("spiffe://td/ns/ns/sa/sa").unwrap(),
        node: "n1".into(),
        zone: "".into(),
        cluster: "Kubernetes".into(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        host_network: false,
        enrolled: true,
        labels: Arc::new(BTreeMap::from([("app".into(), "x".into())])),
        ports: Arc::new([]),
        workload_name: "app".into(),
        workload_type: "deployment".into(),
        canonical_name: "app".into(),
        canonical_revision: "latest".into(),
        cgroup: None,
    }
}

fn host(name: &str, ports: &[u16]) -> Workload {
    let ports = ports.iter().map(|port| ContainerPort { name: None, port: *port }).collect();
    Workload { host_network: true, ports, ..pod(name, &[NODE]) }
}

fn service(name: &str, vip: &str, ports: &[(&str, u16)]) -> Service {
    Service {
        namespace: "ns".into(),
        name: name.into(),
        hostname: format!("{name}.ns.svc.cluster.local").into(),
        vips: vec![ip(vip)],
        ports: service_ports(ports),
    }
}

fn slice(name: &str, service: &str, ports: &[(&str, u16)], endpoints: &[(&str, bool, &str)]) -> Event {
    let endpoint = |(address, ready, zone): &(&str, bool, &str)| Endpoint {
        address: ip(address),
        ready: *ready,
        zone: (*zone).into(),
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

fn three_zones() -> State {
    with(&[
        Event::Service(service("web", VIP, &[("http", 80)])),
        slice("web-1", "web", &[("http", 8080)], &[("10.0.0.1", true, "a"), ("10.0.1.1", true, "b")]),
        slice("web-2", "web", &[("http", 8080)], &[("10.0.1.2", true, "b"), ("10.0.1.1", true, "b")]),
        slice("web-3", "web", &[("http", 8080)], &[("10.0.2.1", true, "c"), ("10.0.2.2", false, "b")]),
    ])
}

/// What many questions for the VIP lead to. 200 draws miss one of four with a chance below 10⁻²⁴.
fn targets(state: &State, zone: &str, except: &[SocketAddr]) -> HashSet<String> {
    let one = |_| match state.resolve(ip(VIP), 80, zone, except) {
        Target::Endpoint { address, port, .. } => SocketAddr::new(address, port).to_string(),
        Target::NoEndpoint { .. } => "none".into(),
        other => format!("{other:?}"),
    };
    (0..200).map(one).collect()
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
        Target::Unknown => "unknown".into(),
    }
}

fn plaintext(state: &State) -> Result<Permit, Denial> {
    state.authorize(&Flow {
        identity: None,
        source_ip: ip("10.0.0.7"),
        remote_ip: ip("10.0.0.7"),
        namespace: "ns",
        labels: &BTreeMap::new(),
        destination_ip: ip("10.0.0.1"),
        destination_port: 80,
    })
}

fn strict() -> PeerAuthentication {
    PeerAuthentication {
        namespace: "ns".into(),
        name: "default".into(),
        selector: BTreeMap::new(),
        mode: MtlsMode::Strict,
        ports: BTreeMap::new(),
        created: 0,
    }
}

fn deny_all() -> AuthorizationPolicy {
    AuthorizationPolicy {
        namespace: "ns".into(),
        name: "no".into(),
        selector: BTreeMap::new(),
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule::default()],
        warnings: vec![],
    }
}

fn uids(state: &State, address: &str) -> Vec<String> {
    state.workloads_at(ip(address)).iter().map(|workload| workload.uid.to_string()).collect()
}

fn set(texts: &[&str]) -> HashSet<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

fn uid(text: &str) -> WorkloadUid {
    WorkloadUid::new(text)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const VIP: &str = "10.96.0.1";
const NODE: &str = "192.168.0.1";
