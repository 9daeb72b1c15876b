//! Policies and flows over a small alphabet, so that they meet often.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use signet_identity::SpiffeId;

use crate::policy::{
    Action, AuthorizationPolicy, Condition, ConditionValues, Flow, MtlsMode, Operation, PeerAuthentication,
    Rule, Source, StringMatch,
};

pub(super) const ROOT: &str = "istio-system";

/// A flow that owns what [`Flow`] borrows.
#[derive(Clone, Debug)]
pub(super) struct OwnedFlow {
    pub(super) identity: Option<SpiffeId>,
    pub(super) source_ip: IpAddr,
    pub(super) remote_ip: IpAddr,
    pub(super) namespace: &'static str,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) destination_ip: IpAddr,
    pub(super) destination_port: u16,
}

impl OwnedFlow {
    pub(super) fn flow(&self) -> Flow<'_> {
        Flow {
            identity: self.identity.as_ref(),
            source_ip: self.source_ip,
            remote_ip: self.remote_ip,
            namespace: self.namespace,
            labels: &self.labels,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
        }
    }
}

prop_compose! {
    pub(super) fn flow()(
        identity in option::weighted(0.8, select(IDENTITIES)),
        source_ip in address(),
        remote_ip in address(),
        namespace in select(NAMESPACES),
        labels in labels(),
        destination_ip in address(),
        destination_port in port(),
    ) -> OwnedFlow {
        let identity = identity.map(|id| SpiffeId::parse(id).unwrap());
        OwnedFlow { identity, source_ip, remote_ip, namespace, labels, destination_ip, destination_port }
    }
}

prop_compose! {
    pub(super) fn authorization()(
        namespace in select(NAMESPACES),
        name in 0..6u8,
        selector in selector(),
        action in select(&[Action::Allow, Action::Deny]),
        dry_run in prop::bool::weighted(0.1),
        rules in vec(rule(), 0..3),
    ) -> AuthorizationPolicy {
        let name = format!("p{name}").into();
        AuthorizationPolicy { namespace: namespace.into(), name, selector, action, dry_run, rules, warnings: vec![] }
    }
}

prop_compose! {
    pub(super) fn authentication()(
        namespace in select(NAMESPACES),
        name in 0..6u8,
        selector in selector(),
        mode in mode(),
        ports in btree_map(port(), mode(), 0..3),
        created in 0..3i64,
    ) -> PeerAuthentication {
        let (namespace, name) = (namespace.into(), format!("p{name}").into());
        PeerAuthentication { namespace, name, selector, mode, ports, created, warnings: vec![] }
    }
}

/// At most one of each (namespace, name), as in a cluster.
pub(super) fn distinct<T>(objects: Vec<T>, key: impl Fn(&T) -> (Arc<str>, Arc<str>)) -> Vec<T> {
    objects
        .into_iter()
        .map(|object| (key(&object), object))
        .collect::<BTreeMap<_, _>>()
        .into_values()
        .collect()
}

prop_compose! {
    fn rule()(
        from in vec(source(), 0..3),
        to in vec((vec(port(), 0..2), vec(port(), 0..2)), 0..3),
        when in vec(condition(), 0..2),
        unsupported in prop::bool::weighted(0.15),
    ) -> Rule {
        let to = to.into_iter().map(|(ports, not_ports)| Operation { ports, not_ports }).collect();
        Rule { from, to, when, unsupported }
    }
}

prop_compose! {
    fn source()(
        (principals, not_principals) in pair(principal(), 3),
        (namespaces, not_namespaces) in pair(namespace(), 3),
        (service_accounts, not_service_accounts) in pair(service_account(), 2),
        (trust_domains, not_trust_domains) in pair(trust_domain(), 2),
        (ip_blocks, not_ip_blocks) in pair(block(), 2),
        (remote_ip_blocks, not_remote_ip_blocks) in pair(block(), 2),
    ) -> Source {
        Source {
            principals, not_principals, namespaces, not_namespaces, service_accounts, not_service_accounts,
            trust_domains, not_trust_domains, ip_blocks, not_ip_blocks, remote_ip_blocks, not_remote_ip_blocks,
        }
    }
}

/// Mostly empty: a source with all its fields set matches nearly nothing.
fn pair<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T> + Clone,
    most: usize,
) -> impl Strategy<Value = (Vec<T>, Vec<T>)> {
    let some = |value| prop_oneof![3 => Just(vec![]), 1 => vec(value, 0..=most)];
    (some(value.clone()), some(value))
}

fn condition() -> impl Strategy<Value = Condition> {
    let both = |pair: (ConditionValues, ConditionValues)| Condition { values: pair.0, not_values: pair.1 };
    prop_oneof![
        pair(block(), 2).prop_map(|(a, b)| (ConditionValues::SourceIp(a), ConditionValues::SourceIp(b))),
        pair(block(), 2).prop_map(|(a, b)| (ConditionValues::RemoteIp(a), ConditionValues::RemoteIp(b))),
        pair(block(), 2)
            .prop_map(|(a, b)| (ConditionValues::DestinationIp(a), ConditionValues::DestinationIp(b))),
        pair(port(), 2)
            .prop_map(|(a, b)| (ConditionValues::DestinationPort(a), ConditionValues::DestinationPort(b))),
        pair(namespace(), 2)
            .prop_map(|(a, b)| (ConditionValues::SourceNamespace(a), ConditionValues::SourceNamespace(b))),
        pair(principal(), 2)
            .prop_map(|(a, b)| (ConditionValues::SourcePrincipal(a), ConditionValues::SourcePrincipal(b))),
    ]
    .prop_map(both)
}

fn principal() -> impl Strategy<Value = StringMatch> + Clone {
    text(&["td/ns/a/sa/s", "td/ns/b/sa/s", "td/ns/", "/sa/t", "td/other", "é", ""])
}

fn namespace() -> impl Strategy<Value = StringMatch> + Clone {
    text(&["a", "b", "ab", ""])
}

fn service_account() -> impl Strategy<Value = StringMatch> + Clone {
    text(&["a/s", "a/t", "b/s", "/s", "a/"])
}

fn trust_domain() -> impl Strategy<Value = StringMatch> + Clone {
    text(&["td", "other", "t", "d", ""])
}

fn text(values: &'static [&'static str]) -> impl Strategy<Value = StringMatch> + Clone {
    prop_oneof![
        3 => select(values).prop_map(|v| StringMatch::Exact(v.into())),
        1 => select(values).prop_map(|v| StringMatch::Prefix(v.into())),
        1 => select(values).prop_map(|v| StringMatch::Suffix(v.into())),
        1 => Just(StringMatch::Presence),
    ]
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(select(&["app", "version", "tier"]).prop_map(String::from), label_value(), 0..4)
}

fn selector() -> impl Strategy<Value = BTreeMap<String, String>> {
    let some = btree_map(select(&["app", "version"]).prop_map(String::from), label_value(), 1..3);
    prop_oneof![1 => Just(BTreeMap::new()), 1 => some]
}

fn label_value() -> impl Strategy<Value = String> {
    select(&["x", "y"]).prop_map(String::from)
}

fn mode() -> impl Strategy<Value = MtlsMode> {
    select(&[MtlsMode::Unset, MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict])
}

fn port() -> impl Strategy<Value = u16> + Clone {
    select(&[80, 443, 9090])
}

fn address() -> impl Strategy<Value = IpAddr> {
    select(&["10.0.0.1", "10.0.1.1", "::ffff:10.0.0.1", "fd00::1", "::1"]).prop_map(|a| a.parse().unwrap())
}

fn block() -> impl Strategy<Value = IpNet> + Clone {
    select(&["10.0.0.0/24", "10.0.1.1/32", "0.0.0.0/0", "::/0", "fd00::/8"]).prop_map(|b| b.parse().unwrap())
}

const NAMESPACES: &[&str] = &[ROOT, "a", "b"];
const IDENTITIES: &[&str] = &[
    "spiffe://td/ns/a/sa/s",
    "spiffe://td/ns/a/sa/t",
    "spiffe://td/ns/b/sa/s",
    "spiffe://td/other",
    "spiffe://td",
];
