//! What an object's meaning depends on besides itself: its namespace's labels, its node's zone, the mesh.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node};
use signet_manifests::{Document, DocumentError, ObjectKey};

use crate::config::SameNode;
use crate::discovery::enrolment::{self, Labels, UnknownValue};
use crate::discovery::{DiscoveryOptions, Origin};
use crate::state::Workload;

/// The Namespaces and Nodes in force.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The mesh.
    pub(crate) options: DiscoveryOptions,
    namespaces: BTreeMap<Arc<str>, Said>,
    zones: BTreeMap<Arc<str>, Arc<str>>,
    /// The configuration does not say this node's zone, so its Node does.
    is_zone_found: bool,
}

/// What the labels of one object say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    enrolled: Option<bool>,
    same_node: Option<SameNode>,
}

/// The workloads whose meaning depends on one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dependents {
    /// Those of the Namespace with this name.
    OfNamespace(Arc<str>),
    /// Those on the Node with this name.
    OnNode(Arc<str>),
}

impl Dependents {
    /// Of a Namespace or Node; `None` for what nothing else depends on.
    pub(crate) fn of(key: &ObjectKey) -> Option<Self> {
        match (&*key.group, &*key.kind) {
            ("", "Namespace") => Some(Self::OfNamespace(key.name.clone())),
            ("", "Node") => Some(Self::OnNode(key.name.clone())),
            _ => None,
        }
    }
}

impl Surroundings {
    /// Of a mesh without namespaces and nodes.
    pub(crate) fn new(options: DiscoveryOptions) -> Self {
        let is_zone_found = options.zone.is_empty();
        Self { options, namespaces: BTreeMap::new(), zones: BTreeMap::new(), is_zone_found }
    }

    /// Takes a Namespace or a Node in. True when it gives other answers than before.
    ///
    /// Of one that cannot be understood the last answer stays. A Namespace that nobody ever understood is in the mesh,
    /// and encrypts everything: somebody meant its pods, and out of it they would talk in clear.
    pub(crate) fn put(&mut self, document: &Document) -> (bool, Result<(), DocumentError>) {
        let name = &document.key().name;
        if document.is("", "Node") {
            return match zone(document) {
                Ok(zone) => {
                    if self.is_zone_found && **name == *self.options.node {
                        self.options.zone = zone.as_deref().unwrap_or_default().to_owned();
                    }
                    (self.set_zone(name, zone), Ok(()))
                }
                Err(fault) => (false, Err(fault)),
            };
        }
        let said = namespace_labels(document);
        let safe = Said { enrolled: Some(true), same_node: Some(SameNode::Mtls) };
        let last = self.namespaces.get(name).copied().unwrap_or(safe);
        let next = said.as_ref().copied().unwrap_or(last);
        let changed = self.namespaces.insert(name.clone(), next) != Some(next);
        (changed, said.map(drop))
    }

    /// A Namespace or Node is gone. True when there are other answers than before.
    pub(crate) fn remove(&mut self, gone: &Dependents) -> bool {
        match gone {
            Dependents::OfNamespace(name) => {
                self.namespaces.remove(name).is_some_and(|said| said != Said::default())
            }
            Dependents::OnNode(name) => self.set_zone(name, None),
        }
    }

    /// The Namespaces and Nodes that answer for something.
    pub(crate) fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        let key = |kind: &str, name: &Arc<str>| ObjectKey {
            group: "".into(),
            kind: kind.into(),
            namespace: "".into(),
            name: name.clone(),
        };
        let namespaces = self.namespaces.keys().map(move |name| key("Namespace", name));
        namespaces.chain(self.zones.keys().map(move |name| key("Node", name)))
    }

    fn set_zone(&mut self, node: &Arc<str>, zone: Option<Arc<str>>) -> bool {
        match zone {
            Some(zone) => self.zones.insert(node.clone(), zone.clone()) != Some(zone),
            None => self.zones.remove(node).is_some(),
        }
    }

    /// Writes into a workload what it has from its Namespace and Node. `located`: it knows its zone by itself. False
    /// while its Namespace is not known and must be: whether it is in the mesh cannot be said.
    pub(crate) fn settle(&self, workload: &mut Workload, located: bool, before: Option<&Workload>) -> bool {
        if !located {
            workload.zone = self.zone(&workload.node, &workload.labels);
        }
        let own = Said {
            enrolled: enrolment::mode(&workload.labels).unwrap_or_default(),
            same_node: enrolment::same_node(&workload.labels).unwrap_or_default(),
        };
        let namespace = self.said_for(workload, before);
        let enrolled = own.enrolled.or_else(|| Some(namespace?.enrolled.unwrap_or(false)));
        // What is not known yet may ask for encryption.
        let same_node = own.same_node.or(namespace.map_or(Some(SameNode::Mtls), |said| said.same_node));
        let Some(enrolled) = enrolled else { return false };
        workload.enrolled = enrolled;
        workload.same_node = same_node.unwrap_or(self.options.same_node);
        true
    }

    /// What a workload's Namespace says; `None` while that is not known and must be. Of a Namespace that is gone before its
    /// last pods are, the last word stays.
    fn said_for(&self, workload: &Workload, before: Option<&Workload>) -> Option<Said> {
        let elided = || matches!(self.options.origin, Origin::Directory).then(Said::default);
        let last =
            |before: &Workload| Said { enrolled: Some(before.enrolled), same_node: Some(before.same_node) };
        let last = || before.filter(|before| before.uid == workload.uid).map(last);
        self.namespaces.get(&workload.namespace).copied().or_else(elided).or_else(last)
    }

    /// The zone of a node, or of what carries these labels.
    fn zone(&self, node: &str, labels: &Labels) -> Arc<str> {
        let own = || labels.get(ZONE).map_or("", String::as_str).into();
        self.zones.get(node).cloned().unwrap_or_else(own)
    }
}

fn namespace_labels(document: &Document) -> Result<Said, DocumentError> {
    said(document, &document.parse::<Namespace>()?.metadata.labels.unwrap_or_default())
}

fn zone(document: &Document) -> Result<Option<Arc<str>>, DocumentError> {
    let labels = document.parse::<Node>()?.metadata.labels.unwrap_or_default();
    Ok(labels.get(ZONE).map(|zone| zone.as_str().into()))
}

/// Refuses labels of ours whose values mean nothing.
pub(crate) fn legal(document: &Document, labels: &Labels) -> Result<(), DocumentError> {
    said(document, labels).map(drop)
}

fn said(document: &Document, labels: &Labels) -> Result<Said, DocumentError> {
    let mistake = |UnknownValue { label, value, legal: [one, other] }: UnknownValue| {
        document
            .error(&format!("metadata.labels[{label}]"), format!("{value:?} is neither {one} nor {other}"))
    };
    Ok(Said {
        enrolled: enrolment::mode(labels).map_err(mistake)?,
        same_node: enrolment::same_node(labels).map_err(mistake)?,
    })
}

/// A well-known label of nodes and, from Kubernetes 1.35 on, of pods.
const ZONE: &str = "topology.kubernetes.io/zone";
