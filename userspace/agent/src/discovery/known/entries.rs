//! What each document in force means, by its key.
//!
//! Nearly all are workloads, of which a node may know 100,000: they are kept by namespace, and there by the name that the
//! workload itself has, so that one costs two words. Those of a node are looked for among all, since a Node seldom moves to
//! another zone and an index would cost more than the workloads do here.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use signet_manifests::ObjectKey;

use crate::discovery::convert;
use crate::discovery::surroundings::Dependents;
use crate::state::{Event, Workload};

/// The entries of a source.
#[derive(Debug, Default)]
pub(super) struct Entries {
    workloads: BTreeMap<(WorkloadKind, Arc<str>), HashSet<Named>>,
    others: BTreeMap<ObjectKey, Entry>,
    /// The groups and kinds of `others`: a handful.
    names: BTreeSet<Arc<str>>,
}

/// What is known of one document.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) fact: Fact,
    pub(super) standing: Standing,
    /// A workload that knows its zone by itself.
    pub(super) located: bool,
}

/// What a document means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Workload(Arc<Workload>),
    Other(Box<Event>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The fact was told.
    Told,
    /// It was told in place of a document that was never understood.
    StandIn,
    /// A workload that is not told before its Namespace is known.
    Waiting,
}

/// What becomes a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum WorkloadKind {
    Pod,
    WorkloadEntry,
}

/// The entry of a workload, found by the workload's name.
#[derive(Debug)]
struct Named {
    workload: Arc<Workload>,
    standing: Standing,
    located: bool,
}

impl Entries {
    /// Takes the entry of a document out.
    pub(super) fn take(&mut self, key: &ObjectKey) -> Option<Entry> {
        let Some(kind) = WorkloadKind::of(&key.group, &key.kind) else { return self.others.remove(key) };
        let namespace = (kind, key.namespace.clone());
        let named = self.workloads.get_mut(&namespace)?;
        let taken = named.take(&*key.name);
        if named.is_empty() {
            self.workloads.remove(&namespace);
        }
        taken.map(Entry::from)
    }

    /// Keeps what a document means now, in place of what was taken. Those of a workload's kind mean a workload or nothing.
    pub(super) fn keep(&mut self, key: &ObjectKey, entry: Entry) {
        match (WorkloadKind::of(&key.group, &key.kind), entry) {
            (Some(kind), Entry { fact: Fact::Workload(workload), standing, located }) => {
                let namespace = (kind, workload.namespace.clone());
                self.workloads.entry(namespace).or_default().insert(Named { workload, standing, located });
            }
            (_, entry) => {
                let (group, kind) = (self.name(&key.group), self.name(&key.kind));
                self.others.insert(ObjectKey { group, kind, ..key.clone() }, entry);
            }
        }
    }

    /// The documents of a kind.
    pub(super) fn of_kind(&self, group: &str, kind: &str) -> impl Iterator<Item = ObjectKey> {
        let workload_kind = WorkloadKind::of(group, kind);
        let workloads = self.workloads(move |of, _| Some(of) == workload_kind);
        let others = self.others.keys().filter(move |key| *key.group == *group && *key.kind == *kind);
        workloads.map(|(kind, workload)| kind.key(workload)).chain(others.cloned())
    }

    /// The workloads whose meaning depends on a Namespace or Node, in order.
    pub(super) fn dependent(&self, dependents: &Dependents) -> Vec<ObjectKey> {
        let key = |(kind, workload): (WorkloadKind, &Workload)| kind.key(workload);
        let mut keys: Vec<_> = match dependents {
            Dependents::OfNamespace(name) => self.workloads(|_, of| of == &**name).map(key).collect(),
            Dependents::OnNode(name) => {
                let all = self.workloads(|_, _| true);
                all.filter(|(_, workload)| workload.node == *name).map(key).collect()
            }
        };
        keys.sort_unstable();
        keys
    }

    /// The workloads of the kinds and namespaces that fit.
    fn workloads(
        &self,
        fits: impl Fn(WorkloadKind, &str) -> bool,
    ) -> impl Iterator<Item = (WorkloadKind, &Workload)> {
        let fitting = self.workloads.iter().filter(move |((kind, namespace), _)| fits(*kind, namespace));
        fitting.flat_map(|((kind, _), all)| all.iter().map(|named| (*kind, &*named.workload)))
    }

    fn name(&mut self, name: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        self.names.insert(name.clone());
        name.clone()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.others.is_empty()
    }
}

impl WorkloadKind {
    fn of(group: &str, kind: &str) -> Option<Self> {
        match (group, kind) {
            ("", "Pod") => Some(Self::Pod),
            ("networking.istio.io", "WorkloadEntry") => Some(Self::WorkloadEntry),
            _ => None,
        }
    }

    /// The key of the document that says this workload.
    fn key(self, workload: &Workload) -> ObjectKey {
        let (group, kind) = match self {
            Self::Pod => ("", "Pod"),
            Self::WorkloadEntry => ("networking.istio.io", "WorkloadEntry"),
        };
        ObjectKey {
            group: group.into(),
            kind: kind.into(),
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
        }
    }
}

impl Entry {
    pub(super) fn workload(&self) -> Option<&Workload> {
        match &self.fact {
            Fact::Workload(workload) => Some(workload),
            Fact::Other(_) => None,
        }
    }

    pub(super) fn told(&self) -> Option<&Fact> {
        (self.standing != Standing::Waiting).then_some(&self.fact)
    }
}

impl From<Named> for Entry {
    fn from(Named { workload, standing, located }: Named) -> Self {
        Self { fact: Fact::Workload(workload), standing, located }
    }
}

impl Fact {
    pub(super) fn event(&self) -> Event {
        match self {
            Self::Workload(workload) => Event::Workload(workload.clone()),
            Self::Other(event) => Event::clone(event),
        }
    }

    pub(super) fn gone(&self) -> Option<Event> {
        match self {
            Self::Workload(workload) => Some(Event::WorkloadGone(workload.uid.clone())),
            Self::Other(event) => convert::gone(event),
        }
    }
}

impl From<Event> for Fact {
    fn from(event: Event) -> Self {
        match event {
            Event::Workload(workload) => Self::Workload(workload),
            other => Self::Other(Box::new(other)),
        }
    }
}

impl Borrow<str> for Named {
    fn borrow(&self) -> &str {
        &self.workload.name
    }
}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.workload.name.hash(state);
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.workload.name == other.workload.name
    }
}

impl Eq for Named {}
