//! What a node may ask for: the identity of a workload that runs on it, and nothing else.

use std::sync::Arc;

use prost_types::Struct;
use prost_types::value::Kind;
use signet_apiserver::Fault;
use signet_identity::{SpiffeId, TrustDomain};
use signet_proto::istio_ca::IMPERSONATED_IDENTITY;

use crate::inventory::Reader;
use crate::token::Node;

/// An identity that may be signed for a node. Only [`grant`] makes one, and only a grant can be signed.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    identity: SpiffeId,
    node: Arc<str>,
}

impl Grant {
    /// Who the certificate will be for.
    pub(crate) fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The node that asked.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// A grant that nobody asked for: the CA's proof to itself that what it signs is accepted. Its certificate is never
    /// given out, and its key is dropped with it.
    pub(crate) fn for_self_check(identity: SpiffeId) -> Self {
        Self { identity, node: "".into() }
    }
}

/// Why a node gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrantError {
    /// The request names no identity.
    #[error("node {node} names no {IMPERSONATED_IDENTITY}")]
    NoIdentity {
        /// Who asked.
        node: Arc<str>,
    },
    /// What it names is no SPIFFE ID, or not one of a service account.
    #[error("node {node} asks for {asked:?}, which is no SPIFFE ID of a service account")]
    Malformed {
        /// Who asked.
        node: Arc<str>,
        /// What for, at most [`SHOWN`] characters.
        asked: String,
    },
    /// It is of a trust domain that is not ours.
    #[error("node {node} asks for {identity} of another trust domain")]
    ForeignTrustDomain {
        /// Who asked.
        node: Arc<str>,
        /// What for.
        identity: SpiffeId,
    },
    /// No workload on that node has it.
    #[error("node {node} asks for {identity}, which no workload there has")]
    NotOnNode {
        /// Who asked.
        node: Arc<str>,
        /// What for.
        identity: SpiffeId,
    },
    /// Nobody can say whether one has.
    #[error("node {node} asks for {identity}, of which nobody can say now whether it is there: {fault}")]
    Unavailable {
        /// Who asked.
        node: Arc<str>,
        /// What for.
        identity: SpiffeId,
        /// Why.
        fault: Box<Fault>,
    },
}

impl GrantError {
    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NoIdentity { .. } => "identity_missing",
            Self::Malformed { .. } => "identity_malformed",
            Self::ForeignTrustDomain { .. } => "identity_foreign_trust_domain",
            Self::NotOnNode { .. } => "identity_not_on_node",
            Self::Unavailable { .. } => "inventory_unavailable",
        }
    }
}

/// Decides on the identity that a request's metadata names.
pub(crate) async fn grant(
    node: &Node,
    metadata: Option<&Struct>,
    trust_domain: &TrustDomain,
    inventory: &Reader,
) -> Result<Grant, GrantError> {
    let node = node.name().clone();
    let identity = requested(&node, metadata)?;
    if identity.trust_domain() != trust_domain {
        return Err(GrantError::ForeignTrustDomain { node, identity });
    }
    let Some((namespace, service_account)) = identity.service_account() else {
        return Err(malformed(&node, identity.as_str()));
    };
    match inventory.finds(&node, namespace, service_account).await {
        Ok(true) => Ok(Grant { identity, node }),
        Ok(false) => Err(GrantError::NotOnNode { node, identity }),
        Err(fault) => Err(GrantError::Unavailable { node, identity, fault: fault.into() }),
    }
}

fn requested(node: &Arc<str>, metadata: Option<&Struct>) -> Result<SpiffeId, GrantError> {
    let value = metadata.and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
    match value.and_then(|value| value.kind.as_ref()) {
        None => Err(GrantError::NoIdentity { node: node.clone() }),
        Some(Kind::StringValue(text)) => SpiffeId::parse(text).map_err(|_| malformed(node, text)),
        Some(_) => Err(malformed(node, "(no string)")),
    }
}

fn malformed(node: &Arc<str>, asked: &str) -> GrantError {
    GrantError::Malformed { node: node.clone(), asked: asked.chars().take(SHOWN).collect() }
}

/// How much of an unchecked text the log shows, in characters.
const SHOWN: usize = 128;

#[cfg(test)]
mod tests;
