//! One copy of what many objects say.
//!
//! A mesh of 100,000 pods has a few hundred templates, whose labels, ports, identities and names would otherwise be most of
//! its memory; nodes and zones are as few. Values are counted: each holder asks once and gives back once, and the last one
//! to give back frees it, so that churn leaves nothing behind. Written under `state`'s write lock; readers never come here.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::object::{EndpointSlice, Template, Workload};

/// The shared copies of one kind of value.
#[derive(Debug)]
pub(super) struct Pool<T> {
    holders: HashMap<T, usize>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { holders: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Pool<T> {
    /// The shared copy of `value`, which has one holder more.
    fn share(&mut self, value: &T) -> T {
        let shared = self.holders.get_key_value(value).map_or(value, |(shared, _)| shared).clone();
        *self.holders.entry(shared.clone()).or_insert(0) += 1;
        shared
    }

    /// Counts one holder less.
    fn give_back(&mut self, value: &T) {
        if let Some(holders) = self.holders.get_mut(value) {
            *holders -= 1;
            if *holders == 0 {
                self.holders.remove(value);
            }
        }
    }
}

/// What workloads share. A source has one too: what it keeps of a workload is then the very copy that the view has.
#[derive(Debug, Default)]
pub struct WorkloadPool {
    templates: Pool<Arc<Template>>,
    /// Names of nodes and zones.
    places: Pool<Arc<str>>,
}

impl WorkloadPool {
    /// The workload with the shared copies of what it says, at canonical addresses: itself where it has those already.
    pub fn adopt(&mut self, mut workload: Arc<Workload>) -> Arc<Workload> {
        let template = self.templates.share(&workload.template);
        let [node, zone] = [&workload.node, &workload.zone].map(|place| self.places.share(place));
        let is_shared = Arc::ptr_eq(&template, &workload.template)
            && Arc::ptr_eq(&node, &workload.node)
            && Arc::ptr_eq(&zone, &workload.zone);
        if !is_shared || workload.addresses.iter().any(|address| *address != address.to_canonical()) {
            let own = Arc::make_mut(&mut workload);
            (own.template, own.node, own.zone) = (template, node, zone);
            own.addresses.iter_mut().for_each(|address| *address = address.to_canonical());
        }
        workload
    }

    /// A workload that was adopted is gone.
    pub fn give_back(&mut self, workload: &Workload) {
        self.templates.give_back(&workload.template);
        self.places.give_back(&workload.node);
        self.places.give_back(&workload.zone);
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.templates.holders.is_empty() && self.places.holders.is_empty()
    }
}

/// What the endpoints of slices share: their zones.
#[derive(Debug, Default)]
pub(super) struct ZonePool {
    zones: Pool<Arc<str>>,
}

impl ZonePool {
    pub(super) fn share(&mut self, slice: &mut EndpointSlice) {
        slice.endpoints.shrink_to_fit();
        for endpoint in &mut slice.endpoints {
            endpoint.zone = self.zones.share(&endpoint.zone);
        }
    }

    pub(super) fn give_back(&mut self, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            self.zones.give_back(&endpoint.zone);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.zones.holders.is_empty()
    }
}
