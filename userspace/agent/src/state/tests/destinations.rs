//! Where an address leads.

use std::collections::HashSet;

use super::*;

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
fn what_is_inside_the_cluster_and_not_told_of_is_awaited() {
    let ranges = |kind, block: &str| {
        Event::Ranges(Ranges {
            kind,
            owner: "r".into(),
            blocks: vec![block.parse().unwrap()],
            node: Vec::new(),
        })
    };
    let state = with(&[ranges(RangeKind::Services, "10.96.0.0/16"), ranges(RangeKind::Pods, "10.0.0.0/24")]);
    assert_eq!(target(&state, VIP, 80), "awaited Services 10.96.0.1");
    assert_eq!(target(&state, "10.0.0.1", 80), "awaited Pods 10.0.0.1");
    assert_eq!(target(&state, "10.0.1.1", 80), "unknown");
    state.apply(&Event::Service(service("web", VIP, &[("http", 80)])));
    assert_eq!(target(&state, VIP, 80), "awaited Services 10.96.0.1 of web");
    state.apply(&slice("web-1", "web", &[("http", 8080)], &[]));
    assert_eq!(target(&state, VIP, 80), "no endpoint of web");
    state.apply(&slice("web-1", "web", &[("http", 8080)], &[("10.0.0.1", true, "")]));
    assert_eq!(target(&state, VIP, 80), "awaited Pods 10.0.0.1 of web");
    state.apply(&Event::Workload(pod("u1", &["10.0.0.1"]).into()));
    assert_eq!(target(&state, VIP, 80), "workload u1 10.0.0.1:8080 of web");
    let ports = [ContainerPort { name: None, port: 80, at_node: None }].into_iter().collect();
    let template = Template { ports, ..template() }.into();
    let host = Workload { host_network: true, template, ..pod("u2", &["10.0.0.9"]) };
    state.apply(&Event::Workload(host.into()));
    assert_eq!(target(&state, "10.0.0.9", 81), "unknown");
    state.apply(&Event::RangesGone(RangeKind::Pods, "r".into()));
    assert_eq!(target(&state, "10.0.0.2", 80), "unknown");
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
fn a_client_without_a_zone_does_not_prefer_endpoints_without_one() {
    let state = three_zones();
    state.apply(&slice("web-4", "web", &[("http", 8080)], &[("10.0.3.1", true, "")]));
    assert_eq!(targets(&state, "", &[]).len(), 5);
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

/// A Service that is reached at an address and a node's port, besides its VIP.
fn exposed(name: &str, vip: &str, address: &str, node_port: u16) -> Service {
    let node_ports = service_ports(&[("http", node_port)]);
    let external = External { addresses: vec![ip(address)], node_ports };
    Service { external, ..service(name, vip, &[("http", 80)]) }
}

fn node(pods: &str, address: &str) -> Event {
    let (blocks, node) = (vec![pods.parse().unwrap()], vec![ip(address)]);
    Event::Ranges(Ranges { kind: RangeKind::Pods, owner: "n1".into(), blocks, node })
}

#[test]
fn an_external_address_and_a_nodes_port_lead_where_the_vip_does() {
    let state = with(&[
        node("10.0.0.0/24", "192.0.2.9"),
        Event::Workload(pod("u1", &["10.0.0.1"]).into()),
        Event::Service(Service { local: true, ..exposed("web", VIP, "198.51.100.1", 30080) }),
    ]);
    assert_eq!(target(&state, "198.51.100.1", 80), "no endpoint of web");
    state.apply(&slice("web-1", "web", &[("http", 8080)], &[("10.0.0.1", true, "")]));
    let there = "workload u1 10.0.0.1:8080 of web";
    assert_eq!(target(&state, VIP, 80), "no endpoint of web", "it is not on this node");
    assert_eq!(target(&state, "198.51.100.1", 80), there);
    assert_eq!(target(&state, "192.0.2.9", 30080), there);
    for (other, port) in
        [("198.51.100.1", 30080), ("198.51.100.1", 81), ("192.0.2.9", 80), ("192.0.2.8", 30080)]
    {
        assert_eq!(target(&state, other, port), "unknown", "{other}:{port}");
    }
    state.apply(&Event::RangesGone(RangeKind::Services, "n1".into()));
    assert_eq!(target(&state, "192.0.2.9", 30080), there, "a ServiceCIDR of the Node's name is gone");
    state.apply(&Event::RangesGone(RangeKind::Pods, "n1".into()));
    assert_eq!(target(&state, "192.0.2.9", 30080), "unknown");
    state.apply(&Event::Service(service("web", VIP, &[("http", 80)])));
    assert_eq!(target(&state, "198.51.100.1", 80), "unknown");
}

/// A pod with a port of its node's addresses.
fn with_port_at_node(uid: &str, addresses: &[&str], node: &str, at_node: u16) -> Event {
    let ports = [ContainerPort { name: None, port: 8080, at_node: Some(at_node) }].into_iter().collect();
    let template = Template { ports, ..template() }.into();
    Event::Workload(Workload { template, node: node.into(), ..pod(uid, addresses) }.into())
}

#[test]
fn a_pods_port_of_its_node_leads_to_the_pod() {
    let state = with(&[
        node("10.0.0.0/24", "192.0.2.9"),
        with_port_at_node("u1", &["10.0.0.1", "fd00::1"], "n1", 9000),
        with_port_at_node("u2", &["10.0.1.1"], "n2", 9000),
    ]);
    assert_eq!(target(&state, "192.0.2.9", 9000), "workload u1 10.0.0.1:8080");
    assert_eq!(target(&state, "::ffff:192.0.2.9", 9000), "workload u1 10.0.0.1:8080");
    for (other, port) in [("192.0.2.9", 8080), ("192.0.2.8", 9000)] {
        assert_eq!(target(&state, other, port), "unknown", "{other}:{port}");
    }
    let behind = |port| state.enrolled_behind(SocketAddr::new(ip("192.0.2.9"), port));
    assert_eq!(behind(9000).first().map(|(_, at)| at.to_string()).as_deref(), Some("10.0.0.1:8080"));
    // Its successor, told of before its end.
    state.apply(&with_port_at_node("u3", &["10.0.0.3"], "n1", 9000));
    assert_eq!(target(&state, "192.0.2.9", 9000), "workload u3 10.0.0.3:8080");
    // Whoever may make pods must not take the clients of a workload of the mesh on the node's own address.
    let host = Workload { host_network: true, ..pod("u5", &["192.0.2.9"]) };
    state.apply(&Event::Workload(host.into()));
    assert_eq!(target(&state, "192.0.2.9", 9000), "workload u5 192.0.2.9:9000");
    state.apply(&Event::WorkloadGone(uid("u5")));
    state.apply(&with_port_at_node("u4", &[], "n1", 9000));
    assert_eq!(target(&state, "192.0.2.9", 9000), "workload u3 10.0.0.3:8080", "the next has no address yet");
    state.apply(&Event::WorkloadGone(uid("u4")));
    state.apply(&with_port_at_node("u1", &["10.0.0.1"], "n1", 9001));
    assert_eq!(target(&state, "192.0.2.9", 9001), "workload u1 10.0.0.1:8080");
    state.apply(&Event::WorkloadGone(uid("u3")));
    assert_eq!(target(&state, "192.0.2.9", 9000), "unknown");
    state.apply(&with_port_at_node("u6", &[], "n1", 9000));
    assert_eq!(target(&state, "192.0.2.9", 9000), "awaited Pods 192.0.2.9");
}

#[test]
fn a_claim_outweighs_nothing_that_an_address_is() {
    let state = with(&[
        node("10.0.0.0/24", "192.0.2.9"),
        Event::Workload(pod("u1", &["10.0.0.1"]).into()),
        Event::Service(service("web", VIP, &[("http", 80)])),
    ]);
    for (index, address) in [VIP, "10.0.0.1", "10.0.0.2"].into_iter().enumerate() {
        let before = target(&state, address, 80);
        let behind = |state: &State| state.enrolled_behind(SocketAddr::new(ip(address), 80)).len();
        let behind_before = behind(&state);
        let name = format!("claims-{index}");
        state.apply(&Event::Service(exposed(&name, &format!("10.96.7.{index}"), address, 31000)));
        assert_eq!((target(&state, address, 80), behind(&state)), (before, behind_before));
    }
}

#[test]
fn a_nodes_port_may_have_the_number_of_another_port_of_the_service() {
    let ports = service_ports(&[("a", 30081), ("b", 80)]);
    let node_ports = service_ports(&[("a", 30080), ("b", 30081)]);
    let external = External { addresses: vec![ip("198.51.100.1")], node_ports };
    let state = with(&[
        node("10.0.0.0/24", "192.0.2.9"),
        Event::Service(Service { ports, external, ..service("web", VIP, &[]) }),
        slice("web-1", "web", &[("a", 1), ("b", 2)], &[("203.0.113.1", true, "")]),
    ]);
    for (address, port, expected) in [
        ("192.0.2.9", 30081, 2),
        ("192.0.2.9", 30080, 1),
        ("198.51.100.1", 30081, 1),
        ("198.51.100.1", 80, 2),
    ] {
        let expected = format!("endpoint 203.0.113.1:{expected} of web");
        assert_eq!(target(&state, address, port), expected, "{address}:{port}");
    }
}

#[test]
fn services_divide_an_address_and_the_first_keeps_what_two_claim() {
    let state = with(&[
        Event::Service(exposed("first", VIP, "198.51.100.1", 30080)),
        Event::Service(exposed("second", "10.96.0.2", "198.51.100.1", 30081)),
    ]);
    let other = Service {
        ports: service_ports(&[("http", 81)]),
        ..exposed("other", "10.96.0.3", "198.51.100.1", 30082)
    };
    state.apply(&Event::Service(other));
    assert_eq!(target(&state, "198.51.100.1", 80), "no endpoint of first");
    assert_eq!(target(&state, "198.51.100.1", 81), "no endpoint of other");
    state.apply(&Event::Service(exposed("first", VIP, "198.51.100.1", 30080)));
    assert_eq!(target(&state, "198.51.100.1", 80), "no endpoint of first", "told again");
    state.apply(&Event::ServiceGone("ns".into(), "first".into()));
    assert_eq!(target(&state, "198.51.100.1", 80), "no endpoint of second");
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

fn set(texts: &[&str]) -> HashSet<String> {
    texts.iter().map(|text| text.to_string()).collect()
}
