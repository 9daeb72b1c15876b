//! What a source has told so far, and what to tell next: pure, a snapshot in, events out.
//!
//! The order of the events matters, because between two of them the world is as they left it: policies come before the
//! workloads they guard and go after everything else, and a workload that is gone leaves its address before the next
//! one takes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use signet_manifests::{Document, DocumentError, ObjectKey, Snapshot};

use crate::discovery::DiscoveryOptions;
use crate::discovery::convert::{self, convert};
use crate::discovery::surroundings::Surroundings;
use crate::state::Event;

/// The objects in force. Owned by its source's task.
#[derive(Debug)]
pub(crate) struct Known {
    surroundings: Surroundings,
    entries: BTreeMap<ObjectKey, Entry>,
}

/// What a snapshot has changed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// What to tell, in order.
    pub(crate) events: Vec<Event>,
    /// Every document that cannot be understood now, whether it was so before or not.
    pub(crate) faults: Vec<DocumentError>,
}

/// What is known of one document.
#[derive(Debug)]
struct Entry {
    document: Arc<Document>,
    /// What was told of it, where anything was.
    told: Option<Event>,
    /// `told` stands in for a document that was never understood.
    stand_in: bool,
    fault: Option<DocumentError>,
}

impl Known {
    /// Knows nothing yet.
    pub(crate) fn new(options: DiscoveryOptions) -> Self {
        Self { surroundings: Surroundings::new(options), entries: BTreeMap::new() }
    }

    /// Takes a snapshot over.
    pub(crate) fn update(&mut self, snapshot: &Snapshot) -> Changes {
        let mut changes = Changes::default();
        let same_surroundings = self.update_surroundings(snapshot, &mut changes.faults);
        let mut before = std::mem::take(&mut self.entries);
        for document in &snapshot.documents {
            let before = before.remove(document.key());
            let unchanged = |e: &Entry| same_surroundings && Arc::ptr_eq(&e.document, document);
            let entry = match before {
                Some(entry) if unchanged(&entry) => entry,
                before => self.entry(document, before, &mut changes.events),
            };
            changes.faults.extend(entry.fault.clone());
            self.entries.insert(document.key().clone(), entry);
        }
        let vanished = before.into_values().filter_map(|entry| convert::gone(entry.told.as_ref()?));
        changes.events.extend(vanished);
        changes.events.sort_by_key(order);
        changes
    }

    /// True when nothing has changed that other objects depend on.
    fn update_surroundings(&mut self, snapshot: &Snapshot, faults: &mut Vec<DocumentError>) -> bool {
        let mut next = Surroundings::new(self.surroundings.options.clone());
        for document in &snapshot.documents {
            if let Err(fault) = next.take(document) {
                next.keep(document, &self.surroundings);
                faults.push(fault);
            }
        }
        let same = next.agrees(&self.surroundings);
        self.surroundings = next;
        same
    }

    fn entry(&self, document: &Arc<Document>, before: Option<Entry>, events: &mut Vec<Event>) -> Entry {
        let (told, stand_in) = before.map_or((None, false), |entry| (entry.told, entry.stand_in));
        let (next, stand_in, fault) = match convert(document, &self.surroundings) {
            Ok(next) => (next, false, None),
            // The last good version stays in force.
            Err(fault) if told.is_some() && !stand_in => (told.clone(), false, Some(fault)),
            Err(fault) => (convert::failsafe(document, &fault), true, Some(fault)),
        };
        tell(told.as_ref(), next.as_ref(), events);
        Entry { document: document.clone(), told: next, stand_in, fault }
    }
}

/// What has to be said so that `before` becomes `next`.
fn tell(before: Option<&Event>, next: Option<&Event>, events: &mut Vec<Event>) {
    if before == next {
        return;
    }
    let (gone, replaced_by) = (before.and_then(convert::gone), next.and_then(convert::gone));
    if gone != replaced_by {
        events.extend(gone);
    }
    events.extend(next.cloned());
}

fn order(event: &Event) -> u8 {
    match event {
        Event::Authorization(_) | Event::PeerAuthentication(_) => 0,
        Event::WorkloadGone(_) => 1,
        Event::Workload(_) | Event::Service(_) | Event::EndpointSlice(_) => 2,
        Event::ServiceGone(..) | Event::EndpointSliceGone(..) => 3,
        Event::AuthorizationGone(..) | Event::PeerAuthenticationGone(..) => 4,
        Event::Synced => 5,
    }
}

#[cfg(test)]
mod tests;
