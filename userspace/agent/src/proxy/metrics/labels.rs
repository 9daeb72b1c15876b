//! Istio's label set for TCP metrics, in Istio's order. What is not known is `unknown`.

use std::fmt::{Error, Write};
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use signet_identity::SpiffeId;

use crate::proxy::parties::{Direction, Parties, Party, Path};

/// The labels of one connection's metrics. Cloning and making them allocates nothing but what baggage has told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    reporter: Reporter,
    source_workload: Text,
    source_canonical_service: Text,
    source_canonical_revision: Text,
    source_workload_namespace: Text,
    source_principal: Principal,
    source_app: Text,
    source_version: Text,
    source_cluster: Text,
    destination_service: Text,
    destination_service_namespace: Text,
    destination_service_name: Text,
    destination_workload: Text,
    destination_canonical_service: Text,
    destination_canonical_revision: Text,
    destination_workload_namespace: Text,
    destination_principal: Principal,
    destination_app: Text,
    destination_version: Text,
    destination_cluster: Text,
    request_protocol: Protocol,
    response_flags: ResponseFlags,
    connection_security_policy: SecurityPolicy,
}

/// `response_flags`: why a connection ended before its ends wanted it to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum ResponseFlags {
    /// It did not.
    #[default]
    None,
    /// Policy, here or at the other node.
    Deny,
    /// The destination could not be reached.
    Connect,
    /// The mTLS handshake.
    TlsFailure,
    /// HTTP/2 inside of it.
    H2HandshakeFailure,
    /// The local workload has no SVID.
    IdentityError,
}

/// A label value that may be unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Text(Option<Arc<str>>);

/// A proven SPIFFE ID, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Principal(Option<SpiffeId>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reporter {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Protocol {
    Tcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SecurityPolicy {
    Unknown,
    MutualTls,
    /// Ours: both ends are known to the kernel, and nothing has left the node.
    SameNode,
}

/// What the labels of one end are made of; `source_` and `destination_` have the same eight.
#[derive(Default)]
struct End {
    workload: Text,
    namespace: Text,
    canonical_name: Text,
    canonical_revision: Text,
    cluster: Text,
    principal: Principal,
}

impl Labels {
    /// The labels of a connection as it is known now.
    #[must_use]
    pub(crate) fn of(parties: &Parties, response_flags: ResponseFlags) -> Self {
        let reporter = parties.direction.into();
        let policy = match parties.path {
            Some(Path::Direct) => SecurityPolicy::SameNode,
            _ if parties.is_mutual_tls() => SecurityPolicy::MutualTls,
            _ => SecurityPolicy::Unknown,
        };
        let service = parties.service.as_deref();
        Self {
            destination_service: service.map(|s| &s.hostname).into(),
            destination_service_namespace: service.map(|s| &s.namespace).into(),
            destination_service_name: service.map(|s| &s.name).into(),
            ..Self::between(
                reporter,
                End::of(&parties.source),
                End::of(&parties.destination),
                response_flags,
                policy,
            )
        }
    }

    /// The same without names: where the table is full, connections are still counted.
    #[must_use]
    pub(super) fn summary(&self) -> Self {
        Self::between(
            self.reporter,
            End::default(),
            End::default(),
            self.response_flags,
            self.connection_security_policy,
        )
    }

    fn between(
        reporter: Reporter,
        source: End,
        destination: End,
        response_flags: ResponseFlags,
        policy: SecurityPolicy,
    ) -> Self {
        Self {
            reporter,
            source_workload: source.workload,
            source_canonical_service: source.canonical_name.clone(),
            source_canonical_revision: source.canonical_revision.clone(),
            source_workload_namespace: source.namespace,
            source_principal: source.principal,
            source_app: source.canonical_name,
            source_version: source.canonical_revision,
            source_cluster: source.cluster,
            destination_service: Text(None),
            destination_service_namespace: Text(None),
            destination_service_name: Text(None),
            destination_workload: destination.workload,
            destination_canonical_service: destination.canonical_name.clone(),
            destination_canonical_revision: destination.canonical_revision.clone(),
            destination_workload_namespace: destination.namespace,
            destination_principal: destination.principal,
            destination_app: destination.canonical_name,
            destination_version: destination.canonical_revision,
            destination_cluster: destination.cluster,
            request_protocol: Protocol::Tcp,
            response_flags,
            connection_security_policy: policy,
        }
    }
}

impl End {
    fn of(party: &Party) -> Self {
        let principal = Principal(party.identity.clone());
        if let Some(workload) = &party.workload {
            // The same text, and not the handshake's own copy of it for as long as the label set is kept.
            let is_same = principal.0.as_ref() == Some(&workload.identity);
            let principal = if is_same { Principal(Some(workload.identity.clone())) } else { principal };
            return Self {
                workload: Some(workload.workload_name()).into(),
                namespace: Some(&workload.namespace).into(),
                canonical_name: Some(workload.canonical_name()).into(),
                canonical_revision: Some(&workload.canonical_revision).into(),
                cluster: Some(&workload.cluster).into(),
                principal,
            };
        }
        let told = party.baggage.as_deref().cloned().unwrap_or_default();
        Self {
            workload: Text(told.workload_name),
            namespace: Text(told.namespace),
            canonical_name: Text(told.canonical_name),
            canonical_revision: Text(told.canonical_revision),
            cluster: Text(told.cluster),
            principal,
        }
    }
}

impl From<Option<&Arc<str>>> for Text {
    fn from(text: Option<&Arc<str>>) -> Self {
        Self(text.filter(|text| !text.is_empty()).cloned())
    }
}

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), Error> {
        encoder.write_str(self.0.as_deref().unwrap_or("unknown"))
    }
}

impl EncodeLabelValue for Principal {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), Error> {
        encoder.write_str(self.0.as_ref().map_or("unknown", SpiffeId::as_str))
    }
}

impl From<Direction> for Reporter {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Outbound => Self::Source,
            Direction::Inbound => Self::Destination,
        }
    }
}

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), Error> {
        encoder.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

impl EncodeLabelValue for Protocol {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), Error> {
        encoder.write_str("tcp")
    }
}

impl EncodeLabelValue for SecurityPolicy {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), Error> {
        encoder.write_str(match self {
            Self::Unknown => "unknown",
            Self::MutualTls => "mutual_tls",
            Self::SameNode => "same_node",
        })
    }
}

impl EncodeLabelValue for ResponseFlags {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), Error> {
        encoder.write_str(match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::IdentityError => "IDENTITY_ERROR",
        })
    }
}
