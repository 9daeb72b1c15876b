//! Istio's policy objects after `discovery` has parsed them: plain data, no behaviour.
//!
//! They keep the shape of the YAML (rules of sources, operations and conditions), so that a view prints what its author
//! wrote; `rule` says what they mean, `index` finds those that apply.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

/// `PeerAuthentication.spec.mtls.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Inherit: from the workload, namespace, mesh; PERMISSIVE where nobody says.
    #[default]
    Unset,
    /// Plaintext only is expected; mTLS is accepted too.
    Disable,
    /// Both.
    Permissive,
    /// mTLS only.
    Strict,
}

/// A PeerAuthentication, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerAuthentication {
    /// `metadata.namespace`; the root namespace makes it mesh-wide when it has no selector.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.selector.matchLabels`; empty means the whole namespace.
    pub selector: BTreeMap<String, String>,
    /// `spec.mtls.mode`.
    pub mode: MtlsMode,
    /// `spec.portLevelMtls`.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// `metadata.creationTimestamp`, seconds since 1970: the oldest of two equals wins, as in Istio.
    pub created: i64,
    /// What of the object has no effect, in words for the policy's status.
    pub warnings: Vec<String>,
}

/// `AuthorizationPolicy.spec.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Let what matches pass, and nothing else.
    Allow,
    /// Refuse what matches.
    Deny,
}

/// An AuthorizationPolicy, parsed. `rules` are OR-ed; an empty list matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuthorizationPolicy {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.selector.matchLabels`; empty means the whole namespace (or mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    /// `spec.action`; AUDIT and CUSTOM do not get here.
    pub action: Action,
    /// The annotation `istio.io/dry-run: "true"`: evaluated and logged, never enforced.
    pub dry_run: bool,
    /// `spec.rules`.
    pub rules: Vec<Rule>,
    /// What of the object could not be kept at L4, in words for the policy's status.
    pub warnings: Vec<String>,
}

/// One rule: every non-empty part must match. With no parts at all it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `from[].source`, OR-ed; empty means any source.
    pub from: Vec<Source>,
    /// `to[].operation`, OR-ed; empty means any operation.
    pub to: Vec<Operation>,
    /// `when[]`, AND-ed.
    pub when: Vec<Condition>,
    /// The rule also uses an attribute that L4 cannot see. In a DENY that attribute counts as matched, so that the rest
    /// decides; in an ALLOW the rule never matches.
    pub unsupported: bool,
}

/// `from[].source`: fields AND-ed, values of a field OR-ed, `not_*` none may match. One without any field (Istio's API
/// server refuses it) matches in a DENY only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Source {
    /// SPIFFE IDs without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Negation of `principals`.
    pub not_principals: Vec<StringMatch>,
    /// Namespaces of the peer's SPIFFE ID.
    pub namespaces: Vec<StringMatch>,
    /// Negation of `namespaces`.
    pub not_namespaces: Vec<StringMatch>,
    /// `<namespace>/<service account>`; a bare name has got the policy's namespace.
    pub service_accounts: Vec<StringMatch>,
    /// Negation of `service_accounts`.
    pub not_service_accounts: Vec<StringMatch>,
    /// Trust domains of the peer's SPIFFE ID.
    pub trust_domains: Vec<StringMatch>,
    /// Negation of `trust_domains`.
    pub not_trust_domains: Vec<StringMatch>,
    /// The peer's address.
    pub ip_blocks: Vec<IpNet>,
    /// Negation of `ip_blocks`.
    pub not_ip_blocks: Vec<IpNet>,
    /// The original client's address.
    pub remote_ip_blocks: Vec<IpNet>,
    /// Negation of `remote_ip_blocks`.
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// `to[].operation`, its L4 part. Without any port it matches in a DENY only, like an empty [`Source`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Destination ports.
    pub ports: Vec<u16>,
    /// Negation of `ports`.
    pub not_ports: Vec<u16>,
}

/// One `when` entry with an L4 key. Without any value it matches in a DENY only, like an empty [`Source`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What is compared, with its values.
    pub values: ConditionValues,
    /// The same for `notValues`.
    pub not_values: ConditionValues,
}

/// The values of a `when` entry, typed by its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum ConditionValues {
    /// `source.ip`.
    SourceIp(Vec<IpNet>),
    /// `remote.ip`.
    RemoteIp(Vec<IpNet>),
    /// `source.namespace`.
    SourceNamespace(Vec<StringMatch>),
    /// `source.principal`.
    SourcePrincipal(Vec<StringMatch>),
    /// `destination.ip`.
    DestinationIp(Vec<IpNet>),
    /// `destination.port`.
    DestinationPort(Vec<u16>),
}

/// Istio's string match: `*` is presence, `x*` prefix, `*x` suffix, all else exact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Any non-empty value.
    Presence,
}
