//! Objects of an API server: one change at a time, in any order, written by anybody.

use super::*;
use crate::discovery::Origin;
use crate::state::{CgroupName, State};

fn cluster() -> Known {
    let origin = Origin::Cluster { node: "n1".into() };
    Known::new(DiscoveryOptions { origin, ..testing::options() })
}

fn put(known: &mut Known, yaml: &str) -> Vec<Event> {
    known.update([Change::Put(testing::document(yaml))])
}

fn gone(known: &mut Known, yaml: &str) -> Vec<Event> {
    known.update([Change::Gone(testing::document(yaml).key().clone())])
}

/// A pod of `shop` with an address, on this node.
fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}}}\n\
         spec: {{nodeName: n1, containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n"
    )
}

fn namespace(mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{signet.dev/mode: {mode}}}}}\n"
    )
}

fn workloads(events: &[Event]) -> Vec<(&str, bool)> {
    let mut found = Vec::new();
    for event in events {
        let Event::Workload(workload) = event else { panic!("{event:?}") };
        found.push((&*workload.name, workload.enrolled));
    }
    found.sort_unstable();
    found
}

#[test]
fn a_pod_is_not_told_before_its_namespace_says_whether_it_is_in_the_mesh() {
    let mut known = cluster();
    assert_eq!(put(&mut known, &pod("a")), []);
    assert_eq!(workloads(&put(&mut known, &namespace("enabled"))), [("a", true)]);
}

#[test]
fn a_pod_that_says_it_itself_waits_for_no_namespace() {
    let mut known = cluster();
    let opted_out = pod("a").replace("uid: uid-a", "uid: uid-a, labels: {istio.io/dataplane-mode: none}");
    assert_eq!(workloads(&put(&mut known, &opted_out)), [("a", false)]);
}

#[test]
fn a_namespace_that_changes_changes_its_own_pods_alone() {
    let mut known = cluster();
    put(&mut known, &namespace("enabled"));
    put(&mut known, "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n");
    put(&mut known, &pod("a"));
    put(&mut known, &pod("b"));
    put(&mut known, &pod("c").replace("namespace: shop", "namespace: other"));
    assert_eq!(workloads(&put(&mut known, &namespace("disabled"))), [("a", false), ("b", false)]);
    assert_eq!(put(&mut known, &namespace("disabled")), []);
}

#[test]
fn a_node_that_changes_its_zone_changes_its_own_pods_alone() {
    let mut known = cluster();
    put(&mut known, &namespace("enabled"));
    put(&mut known, &pod("a"));
    put(&mut known, &pod("b").replace("nodeName: n1", "nodeName: n2"));
    let events = put(&mut known, NODE);
    assert!(
        matches!(&events[..], [Event::Workload(w)] if &*w.name == "a" && &*w.zone == "eu-1a"),
        "{events:?}"
    );
    let events = gone(&mut known, NODE);
    assert!(matches!(&events[..], [Event::Workload(w)] if w.zone.is_empty()), "{events:?}");
}

#[test]
fn a_pod_that_outlives_its_namespace_stays_in_the_mesh() {
    let mut known = cluster();
    put(&mut known, &namespace("enabled"));
    put(&mut known, &pod("a"));
    assert_eq!(gone(&mut known, &namespace("enabled")), []);
    let moved = pod("a").replace("10.0.0.1", "10.0.0.2");
    assert_eq!(workloads(&put(&mut known, &moved)), [("a", true)]);
    assert!(matches!(&gone(&mut known, &moved)[..], [Event::WorkloadGone(_)]));
}

#[test]
fn a_pod_of_this_node_is_told_before_it_has_an_address_and_one_of_another_is_not() {
    let mut known = cluster();
    put(&mut known, &namespace("enabled"));
    let starting = |node: &str| {
        pod("a")
            .replace("nodeName: n1", &format!("nodeName: {node}"))
            .replace("podIP: 10.0.0.1", "phase: Pending")
    };
    assert_eq!(put(&mut known, &starting("n2")), []);
    let events = put(&mut known, &starting("n1"));
    assert!(matches!(&events[..], [Event::Workload(w)] if w.addresses.is_empty()), "{events:?}");
}

#[test]
fn a_cgroup_is_kubelets_whatever_the_pod_says_and_only_on_its_own_node() {
    let of = |node: &str| {
        let mut known = cluster();
        put(&mut known, &namespace("enabled"));
        let lying = pod("a")
            .replace("uid: uid-a", "uid: uid-a, annotations: {signet.dev/cgroup: kubepods/podvictim}")
            .replace("nodeName: n1", &format!("nodeName: {node}"));
        let events = put(&mut known, &lying);
        let [Event::Workload(workload)] = &events[..] else { panic!("{events:?}") };
        workload.cgroup.clone()
    };
    assert_eq!(of("n1"), Some(CgroupName::Pod("uid-a".into())));
    assert_eq!(of("n2"), None);
}

#[test]
fn the_view_keeps_the_very_copy_of_the_source() {
    let (mut known, state) = (cluster(), State::new("istio-system"));
    for yaml in [pod("a"), namespace("enabled"), pod("b"), NODE.into(), namespace("disabled")] {
        for event in put(&mut known, &yaml) {
            state.apply(&event);
        }
    }
    for name in ["a", "b"] {
        let entry = known.entries.take(testing::document(&pod(name)).key()).expect("it is in force");
        let Fact::Workload(kept) = entry.fact else { panic!("{entry:?}") };
        assert_eq!((&*kept.zone, kept.enrolled), ("eu-1a", false));
        assert!(Arc::ptr_eq(&kept, &state.workload(&kept.uid).expect("it was told")), "{name}");
    }
}

#[test]
fn what_is_gone_leaves_nothing() {
    let mut known = cluster();
    let all = [namespace("enabled"), pod("a"), pod("b"), NODE.into(), DENY.into()];
    for yaml in &all {
        put(&mut known, yaml);
    }
    put(&mut known, &pod("b").replace("podIP: 10.0.0.1", "podIP: nonsense"));
    assert_eq!(known.faults().count(), 1);
    for yaml in &all {
        gone(&mut known, yaml);
    }
    assert!(known.entries.is_empty() && known.faults.is_empty());
    assert!(known.pool.is_empty());
}
