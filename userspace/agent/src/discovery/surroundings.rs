//! What an object's meaning depends on besides itself: its namespace's labels, its node's zone, the mesh.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node};
use signet_identity::SpiffeId;
use signet_manifests::{Document, DocumentError};

use crate::config::SameNode;
use crate::discovery::DiscoveryOptions;
use crate::discovery::enrolment::{self, Labels, UnknownValue};

/// Namespaces and nodes of one pass.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The mesh.
    pub(crate) options: DiscoveryOptions,
    namespaces: BTreeMap<Arc<str>, NamespaceLabels>,
    zones: BTreeMap<Arc<str>, Arc<str>>,
}

/// What a Namespace says for the workloads in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NamespaceLabels {
    enrolled: Option<bool>,
    same_node: Option<SameNode>,
}

impl Surroundings {
    /// Of a mesh without namespaces and nodes.
    pub(crate) fn new(options: DiscoveryOptions) -> Self {
        Self { options, namespaces: BTreeMap::new(), zones: BTreeMap::new() }
    }

    /// True when `other` would give the same answers.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        self.namespaces == other.namespaces && self.zones == other.zones
    }

    /// Takes a Namespace or a Node in; leaves other documents alone.
    pub(crate) fn take(&mut self, document: &Document) -> Result<(), DocumentError> {
        let name = document.key().name.clone();
        if document.is("", "Namespace") {
            let labels = document.parse::<Namespace>()?.metadata.labels.unwrap_or_default();
            let (enrolled, same_node) = (mode(document, &labels)?, own_same_node(document, &labels)?);
            self.namespaces.insert(name, NamespaceLabels { enrolled, same_node });
        } else if document.is("", "Node") {
            let labels = document.parse::<Node>()?.metadata.labels.unwrap_or_default();
            if let Some(zone) = labels.get(ZONE) {
                self.zones.insert(name, zone.as_str().into());
            }
        }
        Ok(())
    }

    /// What `before` knew of a Namespace or Node whose document cannot be read now. A Namespace that nobody ever
    /// understood is in the mesh, and encrypts everything: somebody meant its pods, and out of it they would talk in clear.
    pub(crate) fn keep(&mut self, document: &Document, before: &Self) {
        let name = &document.key().name;
        if document.is("", "Namespace") {
            let safe = NamespaceLabels { enrolled: Some(true), same_node: Some(SameNode::Mtls) };
            self.namespaces.insert(name.clone(), before.namespaces.get(name).copied().unwrap_or(safe));
        }
        if let Some(zone) = before.zones.get(name) {
            self.zones.insert(name.clone(), zone.clone());
        }
    }

    /// Whether a workload with these labels is in the mesh.
    pub(crate) fn enrolled(&self, document: &Document, labels: &Labels) -> Result<bool, DocumentError> {
        let own = mode(document, labels)?;
        Ok(own.or(self.namespace(document).enrolled).unwrap_or(false))
    }

    /// How a workload with these labels talks to others of its node.
    pub(crate) fn same_node(&self, document: &Document, labels: &Labels) -> Result<SameNode, DocumentError> {
        let own = own_same_node(document, labels)?;
        Ok(own.or(self.namespace(document).same_node).unwrap_or(self.options.same_node))
    }

    fn namespace(&self, document: &Document) -> NamespaceLabels {
        self.namespaces.get(&document.key().namespace).copied().unwrap_or_default()
    }

    /// The zone of a node, or of what carries these labels.
    pub(crate) fn zone(&self, node: &str, labels: &Labels) -> Arc<str> {
        let own = || labels.get(ZONE).map_or("", String::as_str).into();
        self.zones.get(node).cloned().unwrap_or_else(own)
    }

    /// The SPIFFE ID of a service account.
    pub(crate) fn identity(
        &self,
        document: &Document,
        service_account: &str,
    ) -> Result<SpiffeId, DocumentError> {
        let namespace = &document.key().namespace;
        SpiffeId::for_service_account(&self.options.trust_domain, namespace, service_account).map_err(|e| {
            document.error(
                "spec.serviceAccountName",
                format!("{namespace}/{service_account} has no SPIFFE ID: {e}"),
            )
        })
    }

    /// `<cluster>/<group>/<kind>/<namespace>/<name>/<metadata.uid>`.
    pub(crate) fn uid(&self, document: &Document, uid: &str) -> String {
        let key = document.key();
        format!("{}/{}/{}/{}/{}/{uid}", self.options.cluster, key.group, key.kind, key.namespace, key.name)
    }
}

fn mode(document: &Document, labels: &Labels) -> Result<Option<bool>, DocumentError> {
    enrolment::mode(labels).map_err(|unknown| mistake(document, &unknown))
}

fn own_same_node(document: &Document, labels: &Labels) -> Result<Option<SameNode>, DocumentError> {
    enrolment::same_node(labels).map_err(|unknown| mistake(document, &unknown))
}

fn mistake(document: &Document, UnknownValue { label, value, legal }: &UnknownValue) -> DocumentError {
    let [one, other] = legal;
    document.error(&format!("metadata.labels[{label}]"), format!("{value:?} is neither {one} nor {other}"))
}

/// A well-known label of nodes and, from Kubernetes 1.35 on, of pods.
const ZONE: &str = "topology.kubernetes.io/zone";
