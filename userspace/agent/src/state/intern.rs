//! One copy of what many objects say.
//!
//! A mesh of 100,000 pods has a few hundred templates: their labels, ports, identities and names would otherwise be most
//! of its memory. Values are counted: each holder asks once and gives back once, and the last one to give back frees it,
//! so that churn leaves nothing behind. Written under `state`'s write lock; readers never come here.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use signet_identity::SpiffeId;

use super::object::{ContainerPort, EndpointSlice, Workload};

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
    /// Replaces `value` by the shared copy and counts one holder more.
    fn share(&mut self, value: &mut T) {
        if let Some((shared, _)) = self.holders.get_key_value(value) {
            *value = shared.clone();
        }
        *self.holders.entry(value.clone()).or_insert(0) += 1;
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
    texts: Pool<Arc<str>>,
    identities: Pool<SpiffeId>,
    labels: Pool<Arc<BTreeMap<String, String>>>,
    ports: Pool<Arc<[ContainerPort]>>,
}

impl WorkloadPool {
    /// The workload with the shared copies of what it says, at canonical addresses: itself where it has those already.
    pub fn adopt(&mut self, workload: Arc<Workload>) -> Arc<Workload> {
        let mut copy = Workload::clone(&workload);
        for address in &mut copy.addresses {
            *address = address.to_canonical();
        }
        self.share(&mut copy);
        let same = copy.addresses == workload.addresses && is_same_copy(&copy, &workload);
        if same { workload } else { Arc::new(copy) }
    }

    fn share(&mut self, workload: &mut Workload) {
        self.identities.share(&mut workload.identity);
        self.labels.share(&mut workload.labels);
        self.ports.share(&mut workload.ports);
        workload.addresses.shrink_to_fit();
        for text in [
            &mut workload.namespace,
            &mut workload.service_account,
            &mut workload.node,
            &mut workload.zone,
            &mut workload.cluster,
            &mut workload.workload_name,
            &mut workload.workload_type,
            &mut workload.canonical_name,
            &mut workload.canonical_revision,
        ] {
            self.texts.share(text);
        }
    }

    /// A workload that was adopted is gone.
    pub fn give_back(&mut self, workload: &Workload) {
        self.identities.give_back(&workload.identity);
        self.labels.give_back(&workload.labels);
        self.ports.give_back(&workload.ports);
        for text in [
            &workload.namespace,
            &workload.service_account,
            &workload.node,
            &workload.zone,
            &workload.cluster,
            &workload.workload_name,
            &workload.workload_type,
            &workload.canonical_name,
            &workload.canonical_revision,
        ] {
            self.texts.give_back(text);
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.texts.holders.is_empty()
            && self.identities.holders.is_empty()
            && self.labels.holders.is_empty()
            && self.ports.holders.is_empty()
    }
}

/// Every value is the same copy, not an equal one.
fn is_same_copy(a: &Workload, b: &Workload) -> bool {
    let texts = |workload: &Workload| {
        [
            workload.namespace.as_ptr(),
            workload.service_account.as_ptr(),
            workload.node.as_ptr(),
            workload.zone.as_ptr(),
            workload.cluster.as_ptr(),
            workload.workload_name.as_ptr(),
            workload.workload_type.as_ptr(),
            workload.canonical_name.as_ptr(),
            workload.canonical_revision.as_ptr(),
            workload.identity.as_str().as_ptr(),
        ]
    };
    texts(a) == texts(b) && Arc::ptr_eq(&a.labels, &b.labels) && Arc::ptr_eq(&a.ports, &b.ports)
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
            self.zones.share(&mut endpoint.zone);
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
