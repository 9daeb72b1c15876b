//! What an object's meaning depends on besides itself: its namespace's labels, its node's zone, the mesh.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node};
use signet_identity::SpiffeId;
use signet_manifests::{Document, DocumentError};

use crate::discovery::DiscoveryOptions;
use crate::discovery::enrolment::{self, Labels, UnknownMode};

/// Namespaces and nodes of one pass.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The mesh.
    pub(crate) options: DiscoveryOptions,
    namespaces: BTreeMap<Arc<str>, Option<bool>>,
    zones: BTreeMap<Arc<str>, Arc<str>>,
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
            self.namespaces.insert(name, mode(document, &labels)?);
        } else if document.is("", "Node") {
            let labels = document.parse::<Node>()?.metadata.labels.unwrap_or_default();
            if let Some(zone) = labels.get(ZONE) {
                self.zones.insert(name, zone.as_str().into());
            }
        }
        Ok(())
    }

    /// What `before` knew of a Namespace or Node whose document cannot be read now. A Namespace that nobody ever
    /// understood is in the mesh: somebody meant its pods, and out of it they would talk in clear.
    pub(crate) fn keep(&mut self, document: &Document, before: &Self) {
        let name = &document.key().name;
        if document.is("", "Namespace") {
            self.namespaces.insert(name.clone(), before.namespaces.get(name).copied().unwrap_or(Some(true)));
        }
        if let Some(zone) = before.zones.get(name) {
            self.zones.insert(name.clone(), zone.clone());
        }
    }

    /// Whether a workload with these labels is in the mesh.
    pub(crate) fn enrolled(&self, document: &Document, labels: &Labels) -> Result<bool, DocumentError> {
        let own = mode(document, labels)?;
        let namespace = || self.namespaces.get(&document.key().namespace).copied().flatten();
        Ok(own.or_else(namespace).unwrap_or(false))
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
    enrolment::mode(labels).map_err(|UnknownMode(value)| {
        let field = format!("metadata.labels[{}]", enrolment::MODE);
        document.error(&field, format!("{value:?} is neither enabled nor disabled"))
    })
}

/// A well-known label of nodes and, from Kubernetes 1.35 on, of pods.
const ZONE: &str = "topology.kubernetes.io/zone";
