//! A second evaluator, written from Istio's documentation alone: slow, without indexes, sharing no code with the first.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::policy::{
    Action, AuthorizationPolicy, Condition, ConditionValues, Flow, MtlsMode, PeerAuthentication, Rule,
    Source, StringMatch,
};

/// The answer, as text: `allow`, `allow <id>`, `deny <id>`, `not allowed <ids, sorted>`, `mtls <id>`.
pub(super) fn answer(
    root: &str,
    authorizations: &[AuthorizationPolicy],
    authentications: &[PeerAuthentication],
    flow: &Flow<'_>,
) -> String {
    if flow.identity.is_none()
        && let (MtlsMode::Strict, Some(id)) = mtls(root, authentications, flow)
    {
        return format!("mtls {id}");
    }
    let mut denying = Vec::new();
    let mut allowing = Vec::new();
    let mut allow_policies = Vec::new();
    for policy in authorizations {
        let here = *policy.namespace == *root || *policy.namespace == *flow.namespace;
        if !here || !selects(&policy.selector, flow.labels) || policy.dry_run {
            continue;
        }
        let id = format!("{}/{}", policy.namespace, policy.name);
        let hit = policy.rules.iter().any(|r| rule(policy.action, r, flow));
        match policy.action {
            Action::Deny if hit => denying.push(id),
            Action::Deny => {}
            Action::Allow => {
                if hit {
                    allowing.push(id.clone());
                }
                allow_policies.push(id);
            }
        }
    }
    allow_policies.sort();
    match (denying.is_empty(), allow_policies.is_empty(), allowing.is_empty()) {
        (false, _, _) => format!("deny {denying:?}"),
        (_, true, _) => "allow".into(),
        (_, _, false) => format!("allow {allowing:?}"),
        _ => format!("not allowed {allow_policies:?}"),
    }
}

pub(super) fn mtls(root: &str, all: &[PeerAuthentication], flow: &Flow<'_>) -> (MtlsMode, Option<String>) {
    let mut sorted: Vec<&PeerAuthentication> = all.iter().collect();
    sorted.sort_by_key(|p| (p.created, p.name.clone()));
    let first = |wanted: &dyn Fn(&PeerAuthentication) -> bool| sorted.iter().copied().find(|p| wanted(p));
    let mesh = first(&|p| *p.namespace == *root && p.selector.is_empty());
    let mut namespace = None;
    let mut workload = None;
    if flow.namespace != root {
        namespace = first(&|p| *p.namespace == *flow.namespace && p.selector.is_empty());
        workload = first(&|p| {
            *p.namespace == *flow.namespace && !p.selector.is_empty() && selects(&p.selector, flow.labels)
        });
    }
    let mut mode = (MtlsMode::Permissive, None);
    for level in [mesh, namespace, workload].into_iter().flatten() {
        if level.mode != MtlsMode::Unset {
            mode = (level.mode, Some(format!("{}/{}", level.namespace, level.name)));
        }
    }
    if let Some(workload) = workload
        && let Some(port) = workload.ports.get(&flow.destination_port)
        && *port != MtlsMode::Unset
    {
        mode = (*port, Some(format!("{}/{}", workload.namespace, workload.name)));
    }
    mode
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|pair| labels.iter().any(|label| label == pair))
}

fn rule(action: Action, rule: &Rule, flow: &Flow<'_>) -> bool {
    let deny = action == Action::Deny;
    if rule.unsupported && !deny {
        return false;
    }
    let from = rule.from.is_empty()
        || rule.from.iter().any(|s| if *s == Source::default() { deny } else { source(s, flow) });
    let to = rule.to.is_empty()
        || rule.to.iter().any(|operation| {
            if operation.ports.is_empty() && operation.not_ports.is_empty() {
                return deny;
            }
            (operation.ports.is_empty() || operation.ports.contains(&flow.destination_port))
                && !operation.not_ports.contains(&flow.destination_port)
        });
    let when = rule.when.iter().all(|condition| when(deny, condition, flow));
    from && to && when
}

fn source(source: &Source, flow: &Flow<'_>) -> bool {
    let id = principal(flow);
    let ns = namespace(flow);
    let domain = id.as_ref().map(|id| id.split('/').next().unwrap().to_owned());
    let account = ns.as_ref().map(|ns| format!("{ns}/{}", id.as_ref().unwrap().rsplit('/').next().unwrap()));
    let addresses = [
        (&source.ip_blocks, &source.not_ip_blocks, flow.source_ip),
        (&source.remote_ip_blocks, &source.not_remote_ip_blocks, flow.remote_ip),
    ];
    let texts = [
        (&source.principals, &source.not_principals, id),
        (&source.namespaces, &source.not_namespaces, ns),
        (&source.service_accounts, &source.not_service_accounts, account),
        (&source.trust_domains, &source.not_trust_domains, domain),
    ];
    addresses.iter().all(|(yes, no, ip)| (yes.is_empty() || in_any(yes, *ip)) && !in_any(no, *ip))
        && texts.iter().all(|(yes, no, text)| (yes.is_empty() || is_any(yes, text)) && !is_any(no, text))
}

fn when(deny: bool, condition: &Condition, flow: &Flow<'_>) -> bool {
    let (some, hit) = compare(&condition.values, flow);
    let (some_not, hit_not) = compare(&condition.not_values, flow);
    if !some && !some_not {
        return deny;
    }
    (!some || hit) && !hit_not
}

/// Whether there are values, and whether one of them holds.
fn compare(values: &ConditionValues, flow: &Flow<'_>) -> (bool, bool) {
    match values {
        ConditionValues::SourceIp(v) => (!v.is_empty(), in_any(v, flow.source_ip)),
        ConditionValues::RemoteIp(v) => (!v.is_empty(), in_any(v, flow.remote_ip)),
        ConditionValues::DestinationIp(v) => (!v.is_empty(), in_any(v, flow.destination_ip)),
        ConditionValues::SourceNamespace(v) => (!v.is_empty(), is_any(v, &namespace(flow))),
        ConditionValues::SourcePrincipal(v) => (!v.is_empty(), is_any(v, &principal(flow))),
        ConditionValues::DestinationPort(v) => (!v.is_empty(), v.contains(&flow.destination_port)),
    }
}

fn principal(flow: &Flow<'_>) -> Option<String> {
    flow.identity.map(|id| id.to_string().replacen("spiffe://", "", 1))
}

fn namespace(flow: &Flow<'_>) -> Option<String> {
    let principal = principal(flow)?;
    let parts: Vec<&str> = principal.split('/').collect();
    match parts[..] {
        [_, "ns", namespace, "sa", _] => Some(namespace.into()),
        _ => None,
    }
}

fn in_any(nets: &[IpNet], ip: IpAddr) -> bool {
    let ip = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    };
    nets.iter().any(|net| net.contains(&ip))
}

fn is_any(matches: &[StringMatch], value: &Option<String>) -> bool {
    let Some(value) = value else { return false };
    matches.iter().any(|m| match m {
        StringMatch::Exact(text) => text == value,
        StringMatch::Prefix(text) => value.get(..text.len()) == Some(text),
        StringMatch::Suffix(text) => value.len() >= text.len() && value[value.len() - text.len()..] == *text,
        StringMatch::Presence => !value.is_empty(),
    })
}
