//! Istio's corner cases, one by one.

use super::*;

#[test]
fn without_an_allow_policy_everything_passes() {
    let permit = set(&[], &[]).authorize(&from_a().flow()).unwrap();
    assert_eq!(permit.rule(), None);
}

#[test]
fn an_allow_policy_without_rules_allows_nothing_and_is_named() {
    let policy = allow("a", "nothing", vec![]);
    let denial = set(&[policy], &[]).authorize(&from_a().flow()).unwrap_err();
    assert_eq!(denial, Denial::NotAllowed(vec!["a/nothing".into()]));
    assert_eq!(denial.to_string(), "not allowed by any AuthorizationPolicy of the destination (a/nothing)");
}

#[test]
fn an_empty_rule_matches_everything() {
    let permit =
        set(&[allow("a", "all", vec![Rule::default()])], &[]).authorize(&plaintext().flow()).unwrap();
    assert_eq!(permit.rule(), Some("a/all"));
}

#[test]
fn a_deny_policy_without_rules_denies_nothing() {
    let policy = AuthorizationPolicy { action: Action::Deny, ..allow("a", "none", vec![]) };
    assert!(set(&[policy], &[]).authorize(&from_a().flow()).is_ok());
}

#[test]
fn a_deny_wins_over_an_allow() {
    let policies = [allow("a", "all", vec![Rule::default()]), deny("a", "no", vec![Rule::default()])];
    let denial = set(&policies, &[]).authorize(&from_a().flow()).unwrap_err();
    assert_eq!(denial, Denial::Denied("a/no".into()));
}

#[test]
fn a_policy_of_the_root_namespace_holds_everywhere_by_its_selector() {
    let policy =
        AuthorizationPolicy { selector: labels(&[("app", "x")]), ..deny(ROOT, "x", vec![Rule::default()]) };
    let set = set(&[policy], &[]);
    assert!(
        set.authorize(&OwnedFlow { labels: labels(&[("app", "x"), ("v", "1")]), ..from_a() }.flow()).is_err()
    );
    assert!(set.authorize(&OwnedFlow { labels: labels(&[("app", "y")]), ..from_a() }.flow()).is_ok());
}

#[test]
fn a_policy_of_another_namespace_does_not_apply() {
    assert!(set(&[deny("b", "no", vec![Rule::default()])], &[]).authorize(&from_a().flow()).is_ok());
}

#[test]
fn plaintext_has_no_principal_and_every_negation_holds() {
    let present = vec![from(Source { principals: vec![StringMatch::Presence], ..Source::default() })];
    let absent = vec![from(Source { not_principals: vec![StringMatch::Presence], ..Source::default() })];
    assert!(set(&[allow("a", "with", present)], &[]).authorize(&plaintext().flow()).is_err());
    assert!(set(&[deny("a", "without", absent.clone())], &[]).authorize(&plaintext().flow()).is_err());
    assert!(set(&[deny("a", "without", absent)], &[]).authorize(&from_a().flow()).is_ok());
}

#[test]
fn an_identity_of_another_shape_has_a_principal_but_no_namespace() {
    let other = OwnedFlow { identity: Some(SpiffeId::parse("spiffe://td/other").unwrap()), ..from_a() };
    let by_principal = vec![from(Source { principals: vec![exact("td/other")], ..Source::default() })];
    let by_namespace = vec![from(Source { namespaces: vec![StringMatch::Presence], ..Source::default() })];
    assert!(set(&[allow("a", "p", by_principal)], &[]).authorize(&other.flow()).is_ok());
    assert!(set(&[allow("a", "p", by_namespace)], &[]).authorize(&other.flow()).is_err());
}

#[test]
fn a_deny_rule_with_an_http_attribute_denies_by_what_is_left_of_it() {
    let rule = Rule {
        to: vec![Operation { ports: vec![80], not_ports: vec![] }],
        unsupported: true,
        ..Rule::default()
    };
    let set = set(&[deny("a", "get", vec![rule])], &[]);
    assert!(set.authorize(&from_a().flow()).is_err());
    assert!(set.authorize(&OwnedFlow { destination_port: 81, ..from_a() }.flow()).is_ok());
}

#[test]
fn a_deny_rule_of_http_attributes_alone_denies_all() {
    let rule = Rule { to: vec![Operation::default()], unsupported: true, ..Rule::default() };
    assert!(set(&[deny("a", "get", vec![rule])], &[]).authorize(&from_a().flow()).is_err());
}

#[test]
fn an_allow_rule_with_an_http_attribute_allows_nothing() {
    let rule = Rule { unsupported: true, ..Rule::default() };
    assert!(set(&[allow("a", "get", vec![rule])], &[]).authorize(&from_a().flow()).is_err());
}

#[test]
fn a_mapped_block_means_the_ipv4_addresses_it_maps() {
    let blocks = vec!["::ffff:10.0.0.0/120".parse().unwrap()];
    let set = set(&[deny("a", "ip", vec![from(Source { ip_blocks: blocks, ..Source::default() })])], &[]);
    assert!(set.authorize(&from_a().flow()).is_err());
    assert!(set.authorize(&OwnedFlow { source_ip: "10.0.1.1".parse().unwrap(), ..from_a() }.flow()).is_ok());
}

#[test]
fn strict_refuses_plaintext_and_names_its_object() {
    let set = set(&[], &[strict(ROOT, "default")]);
    let denial = set.authorize(&plaintext().flow()).unwrap_err();
    assert_eq!(denial, Denial::MtlsRequired(format!("{ROOT}/default").into()));
    assert!(set.authorize(&from_a().flow()).is_ok());
}

#[test]
fn strict_comes_before_any_authorization_policy() {
    let set = set(&[deny("a", "all", vec![Rule::default()])], &[strict("a", "default")]);
    assert_eq!(set.authorize(&plaintext().flow()), Err(Denial::MtlsRequired("a/default".into())));
}

#[test]
fn a_workload_overrides_its_namespace_and_a_port_overrides_the_workload() {
    let namespace = PeerAuthentication { mode: MtlsMode::Permissive, ..strict("a", "ns") };
    let workload = PeerAuthentication {
        selector: labels(&[("app", "x")]),
        ports: [(9090, MtlsMode::Disable), (443, MtlsMode::Unset)].into(),
        ..strict("a", "wl")
    };
    let set = set(&[], &[strict(ROOT, "mesh"), namespace, workload]);
    let mode = |app: &str, port| set.mtls_mode("a", &labels(&[("app", app)]), port);
    assert_eq!(mode("y", 80), (MtlsMode::Permissive, Some("a/ns".into())));
    assert_eq!(mode("x", 80), (MtlsMode::Strict, Some("a/wl".into())));
    assert_eq!(mode("x", 443), (MtlsMode::Strict, Some("a/wl".into())));
    assert_eq!(mode("x", 9090), (MtlsMode::Disable, Some("a/wl".into())));
}

#[test]
fn unset_inherits() {
    let unset = PeerAuthentication { mode: MtlsMode::Unset, ..strict("a", "ns") };
    let set = set(&[], &[strict(ROOT, "mesh"), unset]);
    assert_eq!(set.mtls_mode("a", &labels(&[]), 80), (MtlsMode::Strict, Some(format!("{ROOT}/mesh").into())));
}

#[test]
fn the_oldest_of_two_equals_wins_and_then_the_name() {
    let newer = PeerAuthentication { created: 2, mode: MtlsMode::Permissive, ..strict("a", "a-newer") };
    let older = PeerAuthentication { created: 1, ..strict("a", "z-older") };
    let same = PeerAuthentication { created: 1, ..strict("a", "b-older") };
    let set = set(&[], &[newer, older, same]);
    assert_eq!(set.mtls_mode("a", &labels(&[]), 80), (MtlsMode::Strict, Some("a/b-older".into())));
}

#[test]
fn a_port_of_a_policy_without_selector_has_no_effect() {
    let ports = [(80, MtlsMode::Disable)].into();
    let set = set(&[], &[PeerAuthentication { ports, ..strict("a", "ns") }]);
    assert_eq!(set.mtls_mode("a", &labels(&[]), 80).0, MtlsMode::Strict);
}

#[test]
fn a_selector_in_the_root_namespace_has_no_effect() {
    let policy = PeerAuthentication { selector: labels(&[("app", "x")]), ..strict(ROOT, "wl") };
    let set = set(&[], &[policy]);
    assert_eq!(set.mtls_mode("a", &labels(&[("app", "x")]), 80), (MtlsMode::Permissive, None));
    assert_eq!(set.mtls_mode(ROOT, &labels(&[("app", "x")]), 80), (MtlsMode::Permissive, None));
}

#[test]
fn the_epoch_moves_with_every_change_and_only_then() {
    let mut set = PolicySet::new(ROOT);
    let mut epochs = vec![set.epoch()];
    set.upsert_authorization(allow("a", "p", vec![]));
    epochs.push(set.epoch());
    set.upsert_authorization(allow("a", "p", vec![Rule::default()]));
    epochs.push(set.epoch());
    set.upsert_peer_authentication(strict("a", "p"));
    epochs.push(set.epoch());
    set.remove_authorization("a", "p");
    epochs.push(set.epoch());
    set.remove_peer_authentication("a", "p");
    epochs.push(set.epoch());
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "{epochs:?}");

    set.upsert_authorization(allow("a", "p", vec![]));
    let settled = set.epoch();
    set.upsert_authorization(allow("a", "p", vec![]));
    set.remove_authorization("a", "unknown");
    set.remove_peer_authentication("unknown", "p");
    assert_eq!(set.epoch(), settled);
}

#[test]
fn a_permit_carries_the_epoch_it_was_made_under() {
    let set = set(&[allow("a", "p", vec![Rule::default()])], &[]);
    assert_eq!(set.authorize(&from_a().flow()).unwrap().epoch(), set.epoch());
}

#[test]
fn a_denial_names_a_few_policies_and_counts_the_rest() {
    let ids = (0..20).map(|i| format!("a/p{i:02}").into()).collect();
    let text = Denial::NotAllowed(ids).to_string();
    assert!(text.ends_with("a/p07 and 12 more)"), "{text}");
}

#[test]
fn policies_for_other_labels_are_not_looked_at() {
    let only = |i: usize| AuthorizationPolicy {
        selector: labels(&[("app", &format!("x{i}")), ("tier", "web")]),
        ..deny("a", &format!("p{i}"), vec![Rule::default()])
    };
    let policies: Vec<_> = (0..1000).map(only).collect();
    let set = set(&policies, &[]);
    let flow = OwnedFlow { labels: labels(&[("app", "x7"), ("tier", "web")]), ..from_a() };
    assert_eq!(set.authorize(&flow.flow()), Err(Denial::Denied("a/p7".into())));
    assert_eq!(set.authorizations.looked_at("a", &flow.labels), 1);
}

fn from_a() -> OwnedFlow {
    OwnedFlow {
        identity: Some(SpiffeId::parse("spiffe://td/ns/a/sa/s").unwrap()),
        source_ip: "10.0.0.1".parse().unwrap(),
        remote_ip: "10.0.0.1".parse().unwrap(),
        namespace: "a",
        labels: BTreeMap::new(),
        destination_ip: "10.0.0.9".parse().unwrap(),
        destination_port: 80,
    }
}

fn plaintext() -> OwnedFlow {
    OwnedFlow { identity: None, ..from_a() }
}

fn allow(namespace: &str, name: &str, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        namespace: namespace.into(),
        name: name.into(),
        selector: BTreeMap::new(),
        action: Action::Allow,
        dry_run: false,
        rules,
        warnings: vec![],
    }
}

fn deny(namespace: &str, name: &str, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy { action: Action::Deny, ..allow(namespace, name, rules) }
}

fn strict(namespace: &str, name: &str) -> PeerAuthentication {
    PeerAuthentication {
        namespace: namespace.into(),
        name: name.into(),
        selector: BTreeMap::new(),
        mode: MtlsMode::Strict,
        ports: BTreeMap::new(),
        created: 0,
        warnings: vec![],
    }
}

fn from(source: Source) -> Rule {
    Rule { from: vec![source], ..Rule::default() }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}
