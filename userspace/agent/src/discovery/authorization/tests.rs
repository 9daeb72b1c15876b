//! AuthorizationPolicies as people write them, and what becomes of what L4 cannot keep.

use proptest::prelude::*;

use super::*;
use crate::discovery::testing;
use crate::policy::{ConditionValues, StringMatch};

/// A policy `foo/p` with this spec (indented by two).
fn parse(spec: &str) -> Result<AuthorizationPolicy, DocumentError> {
    let head =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: foo}\n";
    policy(&testing::document(&format!("{head}{spec}")))
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

#[test]
fn the_example_of_the_reference_keeps_all_its_l4_parts() {
    let policy = parse(
        r#"
spec:
  selector:
    matchLabels: {app: httpbin, version: v1}
  action: ALLOW
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/sleep", "*/ns/x/sa/y", "td/*"]
        notNamespaces: ["prod-*"]
        serviceAccounts: ["sleep", "bar/curl"]
    - source:
        ipBlocks: ["203.0.113.4", "10.0.0.0/8"]
        notRemoteIpBlocks: ["fd00::/8"]
        trustDomains: ["*.example"]
        notTrustDomains: ["b.example"]
    to:
    - operation: {ports: ["80", "9090"]}
    - operation: {notPorts: ["22"]}
    when:
    - key: source.namespace
      values: ["foo"]
      notValues: ["bar"]
    - key: destination.port
      values: ["80"]
"#,
    )
    .unwrap();
    assert_eq!((policy.action, policy.selector.len(), policy.warnings.len()), (Action::Allow, 2, 0));
    let rule = &policy.rules[0];
    assert!(!rule.unsupported);
    assert_eq!(
        rule.from[0].principals,
        [
            exact("cluster.local/ns/default/sa/sleep"),
            StringMatch::Suffix("/ns/x/sa/y".into()),
            StringMatch::Prefix("td/".into())
        ]
    );
    assert_eq!(rule.from[0].not_namespaces, [StringMatch::Prefix("prod-".into())]);
    assert_eq!(rule.from[0].service_accounts, [exact("foo/sleep"), exact("bar/curl")]);
    let blocks: Vec<_> = rule.from[1].ip_blocks.iter().map(ToString::to_string).collect();
    assert_eq!(blocks, ["203.0.113.4/32", "10.0.0.0/8"]);
    assert_eq!(rule.from[1].not_remote_ip_blocks.len(), 1);
    assert_eq!(rule.from[1].trust_domains, [StringMatch::Suffix(".example".into())]);
    assert_eq!(rule.from[1].not_trust_domains, [exact("b.example")]);
    assert_eq!((&rule.to[0].ports, &rule.to[1].not_ports), (&vec![80, 9090], &vec![22]));
    assert_eq!(rule.when[0].values, ConditionValues::SourceNamespace(vec![exact("foo")]));
    assert_eq!(rule.when[0].not_values, ConditionValues::SourceNamespace(vec![exact("bar")]));
    assert_eq!(rule.when[1].values, ConditionValues::DestinationPort(vec![80]));
}

#[test]
fn no_spec_an_empty_spec_and_no_rules_all_deny_by_allowing_nothing() {
    for spec in ["", "spec:\n", "spec: {}\n", "spec: {action: ALLOW}\n", "spec: {rules: []}\n"] {
        let policy = parse(spec).unwrap();
        assert_eq!((policy.action, policy.rules.len()), (Action::Allow, 0), "{spec:?}");
    }
}

#[test]
fn an_empty_rule_matches_everything() {
    assert_eq!(parse("spec: {rules: [{}]}").unwrap().rules, [Rule::default()]);
}

#[test]
fn what_cannot_be_understood_is_named_by_its_path() {
    for (spec, path) in [
        ("spec: {rule: []}", "spec.rule"),
        ("spec: {action: PERMIT}", "spec.action"),
        ("spec: {selector: {matchExpressions: []}}", "spec.selector.matchExpressions"),
        ("spec: {rules: [{form: []}]}", "spec.rules[0].form"),
        ("spec: {rules: [{from: []}]}", "spec.rules[0].from"),
        ("spec: {rules: [{to: []}]}", "spec.rules[0].to"),
        ("spec: {rules: [{when: []}]}", "spec.rules[0].when"),
        ("spec: {rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source"),
        ("spec: {rules: [{from: [{source: {princpals: [a]}}]}]}", "spec.rules[0].from[0].source.princpals"),
        (
            "spec: {rules: [{from: [{source: {principals: [a, 'b*c']}}]}]}",
            "spec.rules[0].from[0].source.principals[1]",
        ),
        (
            "spec: {rules: [{from: [{source: {ipBlocks: [localhost]}}]}]}",
            "spec.rules[0].from[0].source.ipBlocks[0]",
        ),
        (
            "spec: {rules: [{from: [{source: {serviceAccounts: ['*']}}]}]}",
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        ("spec: {rules: [{to: [{operation: {}}]}]}", "spec.rules[0].to[0].operation"),
        ("spec: {rules: [{to: [{operation: {ports: ['http']}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
        ("spec: {rules: [{to: [{operation: {ports: ['0']}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
        ("spec: {rules: [{to: [{operation: {ports: [80]}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
        ("spec: {rules: [{when: [{key: source.ip, values: [x]}]}]}", "spec.rules[0].when[0].values"),
        ("spec: {rules: [{when: [{key: source.ip, notValues: [x]}]}]}", "spec.rules[0].when[0].notValues"),
        ("spec: {rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0].values"),
        ("spec: {rules: [{when: [{key: destination.labels, values: [x]}]}]}", "spec.rules[0].when[0].key"),
        ("spec: {action: DENY}", "spec.rules"),
        ("spec: {}\nspcc: {}", "spcc"),
    ] {
        let error = parse(spec).unwrap_err();
        assert_eq!(error.field, path, "{spec}: {error}");
    }
}

#[test]
fn an_attribute_of_http_marks_its_rule_and_says_so() {
    for (rule, field) in [
        ("to: [{operation: {methods: [GET], ports: ['80']}}]", "to[0].operation.methods"),
        ("to: [{operation: {notPaths: [/admin]}}]", "to[0].operation.notPaths"),
        ("to: [{operation: {hosts: [a.example]}}]", "to[0].operation.hosts"),
        ("from: [{source: {requestPrincipals: ['*']}}]", "from[0].source.requestPrincipals"),
        ("when: [{key: 'request.headers[x]', values: [y]}]", "when[0].key request.headers[x]"),
        ("when: [{key: connection.sni, notValues: [y]}]", "when[0].key connection.sni"),
    ] {
        let policy = parse(&format!("spec: {{action: DENY, rules: [{{{rule}}}, {{}}]}}")).unwrap();
        assert!(policy.rules[0].unsupported && !policy.rules[1].unsupported, "{rule}");
        assert!(policy.warnings[0].starts_with(&format!("spec.rules[0].{field}: ")), "{:?}", policy.warnings);
        assert!(policy.warnings[0].ends_with("this rule denies as if it matched"), "{:?}", policy.warnings);
    }
    let policy = parse("spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}").unwrap();
    assert!(policy.warnings[0].ends_with("this rule allows nothing"), "{:?}", policy.warnings);
}

#[test]
fn custom_denies_what_it_would_have_asked_about() {
    let policy =
        parse("spec: {action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {ports: ['80']}}]}]}")
            .unwrap();
    assert_eq!(policy.action, Action::Deny);
    assert!(policy.rules[0].unsupported && policy.rules[0].to[0].ports == [80]);
    assert!(policy.warnings[0].contains("CUSTOM"), "{:?}", policy.warnings);
}

#[test]
fn audit_and_gateway_policies_match_nothing_and_say_so() {
    for spec in [
        "spec: {action: AUDIT, rules: [{}]}",
        "spec: {targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}], rules: [{}]}",
        "spec: {targetRef: {kind: Service, group: '', name: w}, action: DENY, rules: [{}]}",
    ] {
        let policy = parse(spec).unwrap();
        assert_eq!(
            (policy.action, policy.rules.len(), policy.warnings.len()),
            (Action::Deny, 0, 1),
            "{spec}"
        );
    }
}

#[test]
fn a_dry_run_is_told_by_its_annotation() {
    let of = |value: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, annotations: {{istio.io/dry-run: '{value}'}}}}\nspec: {{}}\n"
        );
        policy(&testing::document(&text)).unwrap().dry_run
    };
    assert!(of("true") && !of("false") && !of("yes"));
}

/// Anything that could stand somewhere in a policy.
fn node() -> impl Strategy<Value = serde_json::Value> {
    let words = prop::sample::select(vec![
        "source.ip",
        "10.0.0.0/8",
        "*",
        "a*",
        "",
        "80",
        "ALLOW",
        "DENY",
        "x",
        "request.headers[a]",
    ]);
    let leaf = prop_oneof![
        words.prop_map(serde_json::Value::from),
        any::<i32>().prop_map(serde_json::Value::from),
        Just(serde_json::Value::Null),
    ];
    let keys = prop::sample::select(vec![
        "selector",
        "matchLabels",
        "action",
        "rules",
        "from",
        "to",
        "when",
        "source",
        "operation",
        "principals",
        "ports",
        "ipBlocks",
        "key",
        "values",
        "notValues",
        "methods",
        "targetRefs",
    ]);
    leaf.prop_recursive(6, 64, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_spec_panics_and_none_widens(spec in node()) {
        let text = serde_json::json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p"}, "spec": spec,
        });
        let rules = spec.pointer("/rules").and_then(|rules| rules.as_array()).map_or(0, Vec::len);
        if let Ok(policy) = policy(&testing::document(&text.to_string())) {
            prop_assert!(policy.rules.len() == rules || policy.rules.is_empty());
        }
    }
}
