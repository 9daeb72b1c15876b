//! When answers change.

use crate::policy::{Action, MtlsMode, Rule};

use super::*;

#[test]
fn what_policies_look_at_moves_the_epoch_and_nothing_else_does() {
    let state = State::new("istio-system");
    let first = pod("u1", &["10.0.0.1"]);
    assert!(!state.apply(&Event::Workload(first.clone().into())));
    assert!(!state.apply(&Event::Workload(first.clone().into())));
    assert!(!state.apply(&Event::Workload(Workload { zone: "z".into(), ..first.clone() }.into())));
    let template = Template { labels: BTreeMap::from([("app".into(), "y".into())]), ..template() }.into();
    assert!(state.apply(&Event::Workload(Workload { template, ..first.clone() }.into())));
    let identity = SpiffeId::parse("spiffe://td/ns/ns/sa/other").unwrap();
    let template = Template { identity, ..super::template() }.into();
    assert!(state.apply(&Event::Workload(Workload { template, ..first.clone() }.into())));
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
        warnings: vec![],
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
