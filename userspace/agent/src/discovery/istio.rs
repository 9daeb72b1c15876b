//! Istio's objects as they stand in a manifest (istio/api `security/v1`, `networking/v1`).
//!
//! `spec` of a policy refuses unknown fields. Attributes that only an HTTP proxy can see are listed so that they are
//! known, and kept untyped: all that matters of them here is that they are there.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::discovery::matches::{Block, Pattern, Port, Principal, ServiceAccount};
use crate::policy::MtlsMode;

/// An object around its `spec`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Resource<S> {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    /// The object's metadata.
    pub(crate) metadata: ObjectMeta,
    /// What is asked for.
    pub(crate) spec: Option<S>,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
}

/// `WorkloadEntry.spec`; what Signet does not use of it is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WorkloadEntrySpec {
    pub(crate) address: String,
    pub(crate) ports: BTreeMap<String, i64>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) locality: String,
    pub(crate) service_account: String,
}

/// `spec.selector`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Selector {
    pub(crate) match_labels: BTreeMap<String, String>,
}

/// `PeerAuthentication.spec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PeerAuthenticationSpec {
    pub(crate) selector: Option<Selector>,
    pub(crate) mtls: Option<Mtls>,
    pub(crate) port_level_mtls: BTreeMap<Port, Mtls>,
}

/// `mtls`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Mtls {
    pub(crate) mode: Mode,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Mode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

impl From<Mode> for MtlsMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Unset => Self::Unset,
            Mode::Disable => Self::Disable,
            Mode::Permissive => Self::Permissive,
            Mode::Strict => Self::Strict,
        }
    }
}

/// `AuthorizationPolicy.spec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AuthorizationPolicySpec {
    pub(crate) selector: Option<Selector>,
    pub(crate) target_ref: Option<IgnoredAny>,
    pub(crate) target_refs: Vec<IgnoredAny>,
    pub(crate) action: ActionName,
    #[serde(rename = "provider")]
    _provider: Option<IgnoredAny>,
    pub(crate) rules: Option<Vec<RuleSpec>>,
}

/// `action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum ActionName {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// `rules[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct RuleSpec {
    pub(crate) from: Option<Vec<Origin>>,
    pub(crate) to: Option<Vec<To>>,
    pub(crate) when: Option<Vec<When>>,
}

/// `from[]`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Origin {
    pub(crate) source: SourceSpec,
}

/// `from[].source`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SourceSpec {
    pub(crate) principals: Vec<Principal>,
    pub(crate) not_principals: Vec<Principal>,
    pub(crate) request_principals: Vec<String>,
    pub(crate) not_request_principals: Vec<String>,
    pub(crate) namespaces: Vec<Pattern>,
    pub(crate) not_namespaces: Vec<Pattern>,
    pub(crate) service_accounts: Vec<ServiceAccount>,
    pub(crate) not_service_accounts: Vec<ServiceAccount>,
    pub(crate) trust_domains: Vec<Pattern>,
    pub(crate) not_trust_domains: Vec<Pattern>,
    pub(crate) ip_blocks: Vec<Block>,
    pub(crate) not_ip_blocks: Vec<Block>,
    pub(crate) remote_ip_blocks: Vec<Block>,
    pub(crate) not_remote_ip_blocks: Vec<Block>,
}

/// `to[]`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct To {
    pub(crate) operation: OperationSpec,
}

/// `to[].operation`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct OperationSpec {
    pub(crate) hosts: Vec<String>,
    pub(crate) not_hosts: Vec<String>,
    pub(crate) ports: Vec<Port>,
    pub(crate) not_ports: Vec<Port>,
    pub(crate) methods: Vec<String>,
    pub(crate) not_methods: Vec<String>,
    pub(crate) paths: Vec<String>,
    pub(crate) not_paths: Vec<String>,
}

/// `when[]`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct When {
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) values: Vec<String>,
    #[serde(default)]
    pub(crate) not_values: Vec<String>,
}
