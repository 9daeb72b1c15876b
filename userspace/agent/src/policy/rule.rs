//! What a rule means: does it match this flow?
//!
//! The semantics are istio/ztunnel `src/rbac.rs` with istio/istio `ambient/authorization.go` before it, except in one
//! place: a source, operation or condition of which nothing is left at L4 never matches there, which opens a DENY. Here
//! it matches in a DENY and not in an ALLOW. An attribute that the peer does not have (plaintext, or a SPIFFE ID of
//! another shape than Istio's) equals no value, so `notPrincipals: ["*"]` is how a policy says "without identity".

use std::net::IpAddr;

use ipnet::IpNet;

use super::Flow;
use super::object::{
    Action, AuthorizationPolicy, Condition, ConditionValues, Operation, Rule, Source, StringMatch,
};

/// A flow with its client's identity taken apart once, for all the policies it meets.
pub(super) struct Attributes<'a> {
    principal: Option<&'a str>,
    namespace: Option<&'a str>,
    service_account: Option<String>,
    trust_domain: Option<&'a str>,
    source_ip: IpAddr,
    remote_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Attributes<'a> {
    pub(super) fn of(flow: &Flow<'a>) -> Self {
        let account = flow.identity.and_then(|id| id.service_account());
        Self {
            principal: flow.identity.map(|id| id.as_str().strip_prefix("spiffe://").unwrap_or(id.as_str())),
            namespace: account.map(|(namespace, _)| namespace),
            service_account: account.map(|(namespace, name)| format!("{namespace}/{name}")),
            trust_domain: flow.identity.map(|id| id.trust_domain().as_str()),
            source_ip: flow.source_ip.to_canonical(),
            remote_ip: flow.remote_ip.to_canonical(),
            destination_ip: flow.destination_ip.to_canonical(),
            destination_port: flow.destination_port,
        }
    }
}

impl AuthorizationPolicy {
    pub(super) fn matches(&self, flow: &Attributes<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(self.action, flow))
    }
}

impl Rule {
    fn matches(&self, action: Action, flow: &Attributes<'_>) -> bool {
        if self.unsupported && action == Action::Allow {
            return false;
        }
        any_of(&self.from, |source| source.matches(action, flow)).unwrap_or(true)
            && any_of(&self.to, |operation| operation.matches(action, flow)).unwrap_or(true)
            && self.when.iter().all(|condition| condition.matches(action, flow))
    }
}

impl Source {
    fn matches(&self, action: Action, flow: &Attributes<'_>) -> bool {
        if *self == Self::default() {
            return nothing_to_compare(action);
        }
        let account = flow.service_account.as_deref();
        fits(&self.principals, &self.not_principals, |m| m.matches(flow.principal))
            && fits(&self.namespaces, &self.not_namespaces, |m| m.matches(flow.namespace))
            && fits(&self.service_accounts, &self.not_service_accounts, |m| m.matches(account))
            && fits(&self.trust_domains, &self.not_trust_domains, |m| m.matches(flow.trust_domain))
            && fits(&self.ip_blocks, &self.not_ip_blocks, |net| contains(net, flow.source_ip))
            && fits(&self.remote_ip_blocks, &self.not_remote_ip_blocks, |net| contains(net, flow.remote_ip))
    }
}

impl Operation {
    fn matches(&self, action: Action, flow: &Attributes<'_>) -> bool {
        if *self == Self::default() {
            return nothing_to_compare(action);
        }
        fits(&self.ports, &self.not_ports, |port| *port == flow.destination_port)
    }
}

impl Condition {
    fn matches(&self, action: Action, flow: &Attributes<'_>) -> bool {
        match (self.values.hit(flow), self.not_values.hit(flow)) {
            (None, None) => nothing_to_compare(action),
            (values, not_values) => values.unwrap_or(true) && !not_values.unwrap_or(false),
        }
    }
}

impl ConditionValues {
    /// Whether one of the values holds; `None` where there are none.
    fn hit(&self, flow: &Attributes<'_>) -> Option<bool> {
        match self {
            Self::SourceIp(nets) => any_of(nets, |net| contains(net, flow.source_ip)),
            Self::RemoteIp(nets) => any_of(nets, |net| contains(net, flow.remote_ip)),
            Self::SourceNamespace(values) => any_of(values, |m| m.matches(flow.namespace)),
            Self::SourcePrincipal(values) => any_of(values, |m| m.matches(flow.principal)),
            Self::DestinationIp(nets) => any_of(nets, |net| contains(net, flow.destination_ip)),
            Self::DestinationPort(ports) => any_of(ports, |port| *port == flow.destination_port),
        }
    }
}

impl StringMatch {
    fn matches(&self, value: Option<&str>) -> bool {
        let Some(value) = value else { return false };
        match self {
            Self::Exact(exact) => value == exact,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_str()),
            Self::Presence => !value.is_empty(),
        }
    }
}

/// What counts where an entry has nothing that could be compared: only the answer that refuses more.
fn nothing_to_compare(action: Action) -> bool {
    action == Action::Deny
}

fn fits<T>(values: &[T], not_values: &[T], holds: impl Fn(&T) -> bool) -> bool {
    any_of(values, &holds).unwrap_or(true) && !any_of(not_values, &holds).unwrap_or(false)
}

fn any_of<T>(values: &[T], holds: impl Fn(&T) -> bool) -> Option<bool> {
    (!values.is_empty()).then(|| values.iter().any(holds))
}

/// Whether a canonical address is in a block; a block inside `::ffff:0:0/96` means the IPv4 addresses it maps.
fn contains(net: &IpNet, address: IpAddr) -> bool {
    match (net, address) {
        (IpNet::V6(net), IpAddr::V4(v4)) if net.prefix_len() >= 96 => net.contains(&v4.to_ipv6_mapped()),
        _ => net.contains(&address),
    }
}
