//! Who has an address.

use super::*;

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
    state.apply(&Event::Workload(host("h3", &[]).into()));
    let owners = |port| state.owners(ip(NODE), port).iter().map(|w| w.uid.to_string()).collect::<Vec<_>>();
    assert_eq!((owners(80), owners(9000)), (vec!["h1".to_string()], vec!["h2".into(), "h3".into()]));
}

fn host(name: &str, ports: &[u16]) -> Workload {
    let ports = ports.iter().map(|port| ContainerPort { name: None, port: *port, at_node: None }).collect();
    let template = Template { ports, ..template() }.into();
    Workload { host_network: true, template, ..pod(name, &[NODE]) }
}

fn uids(state: &State, address: &str) -> Vec<String> {
    state.workloads_at(ip(address)).iter().map(|workload| workload.uid.to_string()).collect()
}

const NODE: &str = "192.168.0.1";
