//! What comes and goes.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

#[test]
fn replicas_share_what_their_template_says() {
    let state = with(&[
        Event::Workload(pod("u1", &["10.0.0.1"]).into()),
        Event::Workload(pod("u2", &["10.0.0.2"]).into()),
    ]);
    let [a, b] = ["u1", "u2"].map(|u| state.workload(&uid(u)).unwrap());
    assert!(Arc::ptr_eq(&a.template, &b.template));
    assert!(Arc::ptr_eq(&a.node, &b.node));
    assert!(Arc::ptr_eq(&a.zone, &b.zone));
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
        prop_assert!(state.workloads.is_empty());
        prop_assert!(state.services.is_empty());
        let pools = state.pools.lock();
        prop_assert!(pools.workloads.is_empty() && pools.zones.is_empty());
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
        addresses in vec(address(), 0..3).prop_map(Addresses::from),
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
