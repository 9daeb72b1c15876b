//! What a source has told so far, and what to tell next: pure, changes of objects in, events out.
//!
//! One changed object costs the work for that object; a changed Namespace or Node that of the workloads it concerns, and a
//! look at the others. The order of the events matters, because between two of them the world is as they left it: policies
//! come before the workloads they guard and go after everything else, and a workload that is gone leaves its address before
//! the next one takes it.
//!
//! Of a workload it keeps the very copy that was told, and the view keeps that one too: 100,000 pods are known once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use signet_manifests::{Document, DocumentError, ObjectKey};

use crate::discovery::DiscoveryOptions;
use crate::discovery::convert::{self, convert};
use crate::discovery::surroundings::{Dependents, Surroundings};
use crate::state::{Event, WorkloadPool};

use self::entries::{Entries, Entry, Fact, Standing};

mod entries;

/// The objects in force. Owned by its source's task.
#[derive(Debug)]
pub(crate) struct Known {
    surroundings: Surroundings,
    entries: Entries,
    /// Every document that cannot be understood now.
    faults: BTreeMap<ObjectKey, DocumentError>,
    /// What the workloads of `entries` share.
    pool: WorkloadPool,
}

/// What has happened to one object.
#[derive(Debug)]
pub(crate) enum Change {
    /// It is new, or another.
    Put(Arc<Document>),
    /// It is gone.
    Gone(ObjectKey),
}

impl Known {
    /// Knows nothing yet.
    pub(crate) fn new(options: DiscoveryOptions) -> Self {
        Self {
            surroundings: Surroundings::new(options),
            entries: Entries::default(),
            faults: BTreeMap::new(),
            pool: WorkloadPool::default(),
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
        let is_of_kind = |key: &ObjectKey| *key.group == *group && *key.kind == *kind;
        let entries = self.entries.of_kind(group, kind);
        let faults = self.faults.keys().filter(|key| is_of_kind(key)).cloned();
        let surroundings = self.surroundings.keys().filter(is_of_kind);
        let known = entries.chain(faults).chain(surroundings);
        let gone: BTreeSet<ObjectKey> = known.filter(|key| !keep(key)).collect();
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
        let before = self.entries.take(document.key());
        let (next, fault) = match convert(document, &self.surroundings.options) {
            Ok(fact) => (fact.map(|fact| self.entry(fact, before.as_ref())), None),
            Err(fault) => (self.in_place_of(document, &fault, before.as_ref()), Some(fault)),
        };
        self.note(document.key(), fault);
        self.replace(document.key(), before, next, events);
    }

    fn remove(&mut self, key: &ObjectKey, events: &mut Vec<Event>) {
        self.note(key, None);
        let before = self.entries.take(key);
        self.replace(key, before, None, events);
    }

    fn settle_again(&mut self, dependents: &Dependents, events: &mut Vec<Event>) {
        for key in self.entries.dependent(dependents) {
            let Some(before) = self.entries.take(&key) else { continue };
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
            self.entries.keep(key, next);
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

    fn note(&mut self, key: &ObjectKey, fault: Option<DocumentError>) {
        match fault {
            Some(fault) => drop(self.faults.insert(key.clone(), fault)),
            None => drop(self.faults.remove(key)),
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

#[cfg(test)]
mod tests;
