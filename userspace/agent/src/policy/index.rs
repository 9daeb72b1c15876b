//! Finds the objects that apply to a workload without looking at the others.
//!
//! By namespace first; inside one, objects without a selector are a list, and each object with a selector hangs on one of
//! its label pairs, the one with the fewest others. A look-up walks the workload's own labels, so that 10,000 policies
//! cost as much as the few that share a label with it. Written under `state`'s write lock, read under its read lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::object::{AuthorizationPolicy, PeerAuthentication};

/// What has a namespace, a name and a selector.
pub(super) trait Scoped: PartialEq {
    fn namespace(&self) -> &Arc<str>;
    fn name(&self) -> &Arc<str>;
    fn selector(&self) -> &BTreeMap<String, String>;
}

impl Scoped for AuthorizationPolicy {
    fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn selector(&self) -> &BTreeMap<String, String> {
        &self.selector
    }
}

impl Scoped for PeerAuthentication {
    fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn selector(&self) -> &BTreeMap<String, String> {
        &self.selector
    }
}

/// An object and its `namespace/name`, made once so that a decision can name it without allocating.
#[derive(Debug)]
pub(super) struct Named<T> {
    pub(super) id: Arc<str>,
    pub(super) object: Arc<T>,
}

// Derived, it would ask for `T: Clone`.
impl<T> Clone for Named<T> {
    fn clone(&self) -> Self {
        Self { id: Arc::clone(&self.id), object: Arc::clone(&self.object) }
    }
}

/// All objects of one kind.
#[derive(Debug)]
pub(super) struct Index<T> {
    namespaces: HashMap<Arc<str>, Namespace<T>>,
}

#[derive(Debug)]
struct Namespace<T> {
    by_name: BTreeMap<Arc<str>, Named<T>>,
    whole: Vec<Named<T>>,
    /// Label name, label value, objects.
    selected: HashMap<String, HashMap<String, Vec<Named<T>>>>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { namespaces: HashMap::new() }
    }
}

impl<T> Default for Namespace<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), whole: Vec::new(), selected: HashMap::new() }
    }
}

impl<T: Scoped> Index<T> {
    /// Adds or replaces. False where the same object was there already.
    pub(super) fn upsert(&mut self, object: T) -> bool {
        let namespace = self.namespaces.entry(Arc::clone(object.namespace())).or_default();
        if namespace.by_name.get(object.name()).is_some_and(|old| *old.object == object) {
            return false;
        }
        namespace.remove(object.name());
        let id = format!("{}/{}", object.namespace(), object.name()).into();
        namespace.insert(Named { id, object: Arc::new(object) });
        true
    }

    /// Removes. False where there was no such object.
    pub(super) fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let Some(found) = self.namespaces.get_mut(namespace) else { return false };
        let removed = found.remove(name);
        if found.by_name.is_empty() {
            self.namespaces.remove(namespace);
        }
        removed
    }

    /// Objects of a namespace without a selector.
    pub(super) fn whole(&self, namespace: &str) -> impl Iterator<Item = &Named<T>> {
        self.namespaces.get(namespace).into_iter().flat_map(|n| &n.whole)
    }

    /// Objects of a namespace whose selector these labels satisfy.
    pub(super) fn selected(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = &Named<T>> {
        self.namespaces.get(namespace).into_iter().flat_map(|n| n.selected(labels))
    }

    /// How many objects with a selector a look-up compares with these labels.
    #[cfg(test)]
    pub(super) fn looked_at(&self, namespace: &str, labels: &BTreeMap<String, String>) -> usize {
        self.namespaces.get(namespace).map_or(0, |n| n.candidates(labels).count())
    }

    /// All of them, by namespace and name.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        let objects = self.namespaces.values().flat_map(|n| n.by_name.values());
        let mut all: Vec<&Named<T>> = objects.collect();
        all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        all.into_iter().map(|named| Arc::clone(&named.object)).collect()
    }
}

impl<T: Scoped> Namespace<T> {
    fn insert(&mut self, named: Named<T>) {
        self.by_name.insert(Arc::clone(named.object.name()), named.clone());
        match self.rarest_label(named.object.selector()) {
            None => self.whole.push(named),
            Some((key, value)) => {
                self.selected.entry(key).or_default().entry(value).or_default().push(named);
            }
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(old) = self.by_name.remove(name) else { return false };
        let others = |named: &Named<T>| !Arc::ptr_eq(&named.object, &old.object);
        self.whole.retain(others);
        for (key, value) in old.object.selector() {
            let Some(values) = self.selected.get_mut(key) else { continue };
            // Only its own bucket: a namespace may have thousands, and readers wait meanwhile.
            if let Some(bucket) = values.get_mut(value) {
                bucket.retain(others);
                if bucket.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.selected.remove(key);
            }
        }
        true
    }

    fn selected(&self, labels: &BTreeMap<String, String>) -> impl Iterator<Item = &Named<T>> {
        self.candidates(labels).filter(|named| satisfies(labels, named.object.selector()))
    }

    fn candidates(&self, labels: &BTreeMap<String, String>) -> impl Iterator<Item = &Named<T>> {
        labels.iter().filter_map(|(key, value)| self.selected.get(key)?.get(value)).flatten()
    }

    fn rarest_label(&self, selector: &BTreeMap<String, String>) -> Option<(String, String)> {
        let sharing = |key: &str, value: &str| self.selected.get(key)?.get(value).map(Vec::len);
        selector
            .iter()
            .min_by_key(|(key, value)| sharing(key, value).unwrap_or(0))
            .map(|(key, value)| (key.clone(), value.clone()))
    }
}

fn satisfies(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
