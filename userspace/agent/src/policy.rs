//! Rules to tables, and the one question everything asks: may this flow be?
//!
//! The input types mirror Istio's objects after `discovery` has parsed them (nothing here knows YAML); the answer is a
//! [`Permit`] one must hold to go on, or a [`Denial`] that names who said no.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use signet_identity::SpiffeId;

/// Proof that a flow was authorised, and under which epoch of the policy tables. Only [`PolicySet::authorize`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    epoch: u64,
    /// The ALLOW policy that matched (`namespace/name`); `None` where no ALLOW policy applies.
    rule: Option<Arc<str>>,
}

impl Permit {
    /// The policy epoch this permit was made under.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
    /// The ALLOW policy that matched, if one had to.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }
}

/// Why a flow may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A DENY policy (`namespace/name`) matched.
    Denied(Arc<str>),
    /// ALLOW policies apply to the destination and none matched; the list names them.
    NotAllowed(Vec<Arc<str>>),
    /// PeerAuthentication asks for mTLS and the peer has none; the name of the object that said so.
    MtlsRequired(Arc<str>),
    /// A policy is referenced that is not known yet.
    PolicyUnknown(Arc<str>),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(policy) => write!(f, "denied by AuthorizationPolicy {policy}"),
            Self::NotAllowed(policies) => {
                write!(
                    f,
                    "not allowed by any AuthorizationPolicy of the destination ({})",
                    policies.join(", ")
                )
            }
            Self::MtlsRequired(policy) => write!(f, "mTLS required by PeerAuthentication {policy}"),
            Self::PolicyUnknown(policy) => write!(f, "policy {policy} is referenced but not known yet"),
        }
    }
}

/// One connection, as policy sees it.
#[derive(Clone, Debug)]
pub struct Flow<'a> {
    /// The authenticated SPIFFE ID of the client; `None` on plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The address of the connection's peer (`ipBlocks`, `source.ip`).
    pub source_ip: IpAddr,
    /// The original client, where a proxy told it (`remoteIpBlocks`); otherwise the same as `source_ip`.
    pub remote_ip: IpAddr,
    /// The workload's namespace the flow arrives at.
    pub namespace: &'a str,
    /// The destination workload's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The destination address (`destination.ip`).
    pub destination_ip: IpAddr,
    /// The application's port, never 15008.
    pub destination_port: u16,
}

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
    /// The rule uses an attribute that L4 cannot see: in a DENY it counts as matched, in an ALLOW the rule never matches.
    pub unsupported: bool,
}

/// `from[].source`: fields AND-ed, values of a field OR-ed, `not_*` none may match.
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
    /// The peer's address.
    pub ip_blocks: Vec<IpNet>,
    /// Negation of `ip_blocks`.
    pub not_ip_blocks: Vec<IpNet>,
    /// The original client's address.
    pub remote_ip_blocks: Vec<IpNet>,
    /// Negation of `remote_ip_blocks`.
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// `to[].operation`, its L4 part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Destination ports.
    pub ports: Vec<u16>,
    /// Negation of `ports`.
    pub not_ports: Vec<u16>,
}

/// One `when` entry with an L4 key.
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

/// All policies of the mesh that this node knows. One writer (`state`), read under its lock.
#[derive(Debug, Default)]
pub struct PolicySet {
    // H4: indexes
}

impl PolicySet {
    /// Sets the mesh's root namespace (`istio-system` by default).
    #[must_use]
    pub fn new(root_namespace: &str) -> Self {
        let _ = root_namespace;
        todo!("H4")
    }
    /// Adds or replaces by (namespace, name); bumps the epoch.
    pub fn upsert_authorization(&mut self, policy: AuthorizationPolicy) {
        let _ = policy;
        todo!("H4")
    }
    /// Removes; bumps the epoch.
    pub fn remove_authorization(&mut self, namespace: &str, name: &str) {
        let _ = (namespace, name);
        todo!("H4")
    }
    /// Adds or replaces; bumps the epoch.
    pub fn upsert_peer_authentication(&mut self, policy: PeerAuthentication) {
        let _ = policy;
        todo!("H4")
    }
    /// Removes; bumps the epoch.
    pub fn remove_peer_authentication(&mut self, namespace: &str, name: &str) {
        let _ = (namespace, name);
        todo!("H4")
    }
    /// The current epoch: changes whenever an answer could.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        todo!("H4")
    }
    /// Istio's evaluation order: mTLS mode, then any DENY, then ALLOW.
    ///
    /// # Errors
    /// The denial, naming the policy.
    pub fn authorize(&self, flow: &Flow<'_>) -> Result<Permit, Denial> {
        let _ = flow;
        todo!("H4")
    }
    /// The mTLS mode that holds for a workload's port, never `Unset`, and the object that says so.
    #[must_use]
    pub fn mtls_mode(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        port: u16,
    ) -> (MtlsMode, Option<Arc<str>>) {
        let _ = (namespace, labels, port);
        todo!("H4")
    }
}
