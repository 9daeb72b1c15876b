//! What a source has told so far, and what to tell next: pure, changes of objects in, events out.
//!
//! One changed object costs the work for that object; a changed Namespace or Node that of the workloads it concerns, which
//! are found by index. The order of the events matters, because between two of them the world is as they left it:
//! policies come before the workloads they guard and go after everything else, and a workload that is gone leaves its
//! address before the next one takes it.
//!
//! Of a workload it keeps the very copy that was told, and the view keeps that one too: 100,000 pods are known once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use signet_manifests::{Document, DocumentError, ObjectKey};

use crate::discovery::DiscoveryOptions;
use crate::discovery::convert::{self, convert};
use crate::discovery::surroundings::{Dependents, Surroundings};
use crate::state::{Event, Workload, WorkloadPool};

/// The objects in force. Owned by its source's task.
#[derive(Debug)]
pub(crate) struct Known {
    surroundings: Surroundings,
    entries: BTreeMap<Arc<ObjectKey>, Entry>,
    /// The workloads of `entries` by node.
    on_node: BTreeMap<Arc<str>, BTreeSet<Arc<ObjectKey>>>,
    /// Every document that cannot be understood now.
    faults: BTreeMap<ObjectKey, DocumentError>,
    /// What the workloads of `entries` share.
    pool: WorkloadPool,
    /// The groups and kinds of `entries`: a handful.
    names: BTreeSet<Arc<str>>,
}

/// What has happened to one object.
#[derive(Debug)]
pub(crate) enum Change {
    /// It is new, or another.
    Put(Arc<Document>),
    /// It is gone.
    Gone(ObjectKey),
}

/// What is known of one document.
#[derive(Clone, Debug)]
struct Entry {
    fact: Fact,
    standing: Standing,
    /// A workload that knows its zone by itself.
    located: bool,
}

/// What a document means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fact {
    Workload(Arc<Workload>),
    Other(Box<Event>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The fact was told.
    Told,
    /// It was told in place of a document that was never understood.
    StandIn,
    /// A workload that is not told before its Namespace is known.
    Waiting,
}

impl Known {
    /// Knows nothing yet.
    pub(crate) fn new(options: DiscoveryOptions) -> Self {
        Self {
            surroundings: Surroundings::new(options),
            entries: BTreeMap::new(),
            on_node: BTreeMap::new(),
            faults: BTreeMap::new(),
            pool: WorkloadPool::default(),
            names: BTreeSet::new(),
        }
    }

    /// Takes changes over; what to tell, in order.
    pub(crate) fn update(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Event> {
        let (mut events, mut stale) = (Vec::new(), BTreeSet::new());
        let depended_on = |change: &Change| Dependents::of(change.key()).is_some();
        let (surroundings, objects): (Vec<_>, Vec<_>) = changes.into_iter().partition(depended_on);
        for change in &surroundings {
            stale.extend(self.surround(change));
        }
        // A Node tells of its pods' addresses besides.
        let nodes = surroundings.into_iter().filter(|change| &*change.key().kind == "Node");
        for change in objects.into_iter().chain(nodes) {
            match change {
                Change::Put(document) => self.put(&document, &mut events),
                Change::Gone(key) => self.remove(&key, &mut events),
            }
        }
        for dependents in stale {
            self.settle_again(&dependents, &mut events);
        }
        events.sort_by_key(order);
        events
    }

    /// Every document that cannot be understood now.
    pub(crate) fn faults(&self) -> impl ExactSizeIterator<Item = &DocumentError> {
        self.faults.values()
    }

    /// What is wrong with one document.
    pub(crate) fn fault(&self, key: &ObjectKey) -> Option<&DocumentError> {
        self.faults.get(key)
    }

    /// Forgets the objects of a kind that are not to be kept; what to tell, in order.
    pub(crate) fn retain(
        &mut self,
        group: &str,
        kind: &str,
        keep: impl Fn(&ObjectKey) -> bool,
    ) -> Vec<Event> {
        let is_gone = |key: &&ObjectKey| *key.group == *group && *key.kind == *kind && !keep(key);
        let entries = self.entries.keys().map(|key| &**key).filter(is_gone);
        let faults = self.faults.keys().filter(is_gone);
        let mut gone: BTreeSet<ObjectKey> = entries.chain(faults).cloned().collect();
        gone.extend(self.surroundings.keys().filter(|key| is_gone(&key)));
        self.update(gone.into_iter().map(Change::Gone))
    }

    /// Takes a Namespace or Node over; what depends on it, where that gets other answers now.
    fn surround(&mut self, change: &Change) -> Option<Dependents> {
        let dependents = Dependents::of(change.key())?;
        let changed = match change {
            Change::Put(document) => {
                let (changed, understood) = self.surroundings.put(document);
                self.note(document.key(), understood.err());
                changed
            }
            Change::Gone(key) => {
                self.note(key, None);
                self.surroundings.remove(&dependents)
            }
        };
        changed.then_some(dependents)
    }

    fn put(&mut self, document: &Document, events: &mut Vec<Event>) {
        let before = self.take(document.key());
        let (next, fault) = match convert(document, &self.surroundings.options) {
            Ok(fact) => (fact.map(|fact| self.entry(fact, before.as_ref())), None),
            Err(fault) => (self.in_place_of(document, &fault, before.as_ref()), Some(fault)),
        };
        self.note(document.key(), fault);
        self.replace(document.key(), before, next, events);
    }

    fn remove(&mut self, key: &ObjectKey, events: &mut Vec<Event>) {
        self.note(key, None);
        let before = self.take(key);
        self.replace(key, before, None, events);
    }

    fn settle_again(&mut self, dependents: &Dependents, events: &mut Vec<Event>) {
        for key in self.dependent(dependents) {
            let Some(before) = self.take(&key) else { continue };
            let next = self.settled(before.clone(), Some(&before));
            self.replace(&key, Some(before), Some(next), events);
        }
    }

    /// Tells the difference, and keeps what is in force now.
    fn replace(
        &mut self,
        key: &ObjectKey,
        before: Option<Entry>,
        next: Option<Entry>,
        events: &mut Vec<Event>,
    ) {
        let next = next.map(|next| Entry { fact: self.shared(next.fact, before.as_ref()), ..next });
        tell(before.as_ref(), next.as_ref(), events);
        if let Some(next) = next {
            self.keep(key, next);
        }
        if let Some(Entry { fact: Fact::Workload(workload), .. }) = before {
            self.pool.give_back(&workload);
        }
    }

    /// The copy that was told before, where it says the same.
    fn shared(&mut self, fact: Fact, before: Option<&Entry>) -> Fact {
        let told = before.filter(|before| before.fact == fact).map(|before| before.fact.clone());
        match told.unwrap_or(fact) {
            Fact::Workload(workload) => Fact::Workload(self.pool.adopt(workload)),
            other @ Fact::Other(_) => other,
        }
    }

    /// The workloads whose meaning depends on a Namespace or Node.
    fn dependent(&self, dependents: &Dependents) -> Vec<ObjectKey> {
        match dependents {
            Dependents::OnNode(node) => {
                self.on_node.get(node).into_iter().flatten().map(|key| (**key).clone()).collect()
            }
            Dependents::OfNamespace(name) => {
                WORKLOAD_KINDS.iter().flat_map(|(group, kind)| self.of_namespace(group, kind, name)).collect()
            }
        }
    }

    fn of_namespace(&self, group: &str, kind: &str, namespace: &Arc<str>) -> Vec<ObjectKey> {
        let first = ObjectKey {
            group: group.into(),
            kind: kind.into(),
            namespace: namespace.clone(),
            name: "".into(),
        };
        let same = |key: &&Arc<ObjectKey>| {
            (&key.group, &key.kind, &key.namespace) == (&first.group, &first.kind, &first.namespace)
        };
        let from = self.entries.range::<ObjectKey, _>(&first..).map(|(key, _)| key);
        from.take_while(same).map(|key| (**key).clone()).collect()
    }

    fn entry(&self, fact: Event, before: Option<&Entry>) -> Entry {
        let located = matches!(&fact, Event::Workload(workload) if !workload.zone.is_empty());
        self.settled(Entry { fact: fact.into(), standing: Standing::Told, located }, before)
    }

    /// The entry with what Namespace and Node say of its workload.
    fn settled(&self, mut entry: Entry, before: Option<&Entry>) -> Entry {
        let Fact::Workload(workload) = &mut entry.fact else { return entry };
        let told = before.filter(|before| before.standing == Standing::Told).and_then(Entry::workload);
        let settled = self.surroundings.settle(Arc::make_mut(workload), entry.located, told);
        entry.standing = if settled { Standing::Told } else { Standing::Waiting };
        entry
    }

    /// Of a document that cannot be understood the last good version stays in force; without one, a stand-in where its
    /// absence would open something.
    fn in_place_of(
        &self,
        document: &Document,
        fault: &DocumentError,
        before: Option<&Entry>,
    ) -> Option<Entry> {
        if let Some(good) = before.filter(|before| before.standing != Standing::StandIn) {
            return Some(good.clone());
        }
        let fact = convert::failsafe(document, fault)?.into();
        Some(Entry { fact, standing: Standing::StandIn, located: false })
    }

    fn take(&mut self, key: &ObjectKey) -> Option<Entry> {
        let (key, entry) = self.entries.remove_entry(key)?;
        let node = entry.workload().map(|workload| &workload.node);
        if let Some(node) = node
            && let Some(keys) = self.on_node.get_mut(node)
        {
            keys.remove(&key);
            if keys.is_empty() {
                self.on_node.remove(node);
            }
        }
        Some(entry)
    }

    fn keep(&mut self, key: &ObjectKey, entry: Entry) {
        let key = self.compact(key, &entry);
        if let Some(workload) = entry.workload() {
            self.on_node.entry(workload.node.clone()).or_default().insert(key.clone());
        }
        self.entries.insert(key, entry);
    }

    /// The key, made of copies that others have too.
    fn compact(&mut self, key: &ObjectKey, entry: &Entry) -> Arc<ObjectKey> {
        let shared = entry.workload().map(|workload| (&workload.namespace, &workload.name));
        let (namespace, name) = shared.unwrap_or((&key.namespace, &key.name));
        Arc::new(ObjectKey {
            group: self.name(&key.group),
            kind: self.name(&key.kind),
            namespace: namespace.clone(),
            name: name.clone(),
        })
    }

    fn name(&mut self, name: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        self.names.insert(name.clone());
        name.clone()
    }

    fn note(&mut self, key: &ObjectKey, fault: Option<DocumentError>) {
        match fault {
            Some(fault) => drop(self.faults.insert(key.clone(), fault)),
            None => drop(self.faults.remove(key)),
        }
    }
}

impl Entry {
    fn workload(&self) -> Option<&Workload> {
        match &self.fact {
            Fact::Workload(workload) => Some(workload),
            Fact::Other(_) => None,
        }
    }

    fn told(&self) -> Option<&Fact> {
        (self.standing != Standing::Waiting).then_some(&self.fact)
    }
}

impl Fact {
    fn event(&self) -> Event {
        match self {
            Self::Workload(workload) => Event::Workload(workload.clone()),
            Self::Other(event) => Event::clone(event),
        }
    }

    fn gone(&self) -> Option<Event> {
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

impl Change {
    fn key(&self) -> &ObjectKey {
        match self {
            Self::Put(document) => document.key(),
            Self::Gone(key) => key,
        }
    }
}

/// What has to be said so that `before` becomes `next`.
fn tell(before: Option<&Entry>, next: Option<&Entry>, events: &mut Vec<Event>) {
    let (before, next) = (before.and_then(Entry::told), next.and_then(Entry::told));
    if before == next {
        return;
    }
    let (gone, replaced_by) = (before.and_then(Fact::gone), next.and_then(Fact::gone));
    if gone != replaced_by {
        events.extend(gone);
    }
    events.extend(next.map(Fact::event));
}

fn order(event: &Event) -> u8 {
    match event {
        Event::Authorization(_) | Event::PeerAuthentication(_) | Event::Ranges(_) => 0,
        Event::WorkloadGone(_) => 1,
        Event::Workload(_) | Event::Service(_) | Event::EndpointSlice(_) => 2,
        Event::ServiceGone(..) | Event::EndpointSliceGone(..) => 3,
        Event::AuthorizationGone(..) | Event::PeerAuthenticationGone(..) | Event::RangesGone(..) => 4,
        Event::Synced => 5,
    }
}

/// Group and kind of what becomes a workload.
const WORKLOAD_KINDS: [(&str, &str); 2] = [("", "Pod"), ("networking.istio.io", "WorkloadEntry")];

#[cfg(test)]
mod tests;
