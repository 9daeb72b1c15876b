//! A hash map that many read while one writes.
//!
//! It is in shards, each behind a lock of its own. A reader waits for a writer only in its key's shard, and there for one
//! insertion: also when the map grows, which moves one shard and not the whole. A snapshot behind one pointer would never
//! have readers wait, but needs a persistent map, which is slower to read and larger. The lock of a shard is held while
//! the caller looks at the value: ask briefly, and for nothing of another table.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::RwLock;

/// `S` hashes the keys: names, which users of the cluster choose, by the standard library's hasher.
pub(super) struct Table<K, V, S = RandomState> {
    shards: Box<[Shard<K, V>]>,
    hasher: S,
}

/// On cache lines of its own, since readers write its lock.
#[repr(align(64))]
struct Shard<K, V>(RwLock<HashTable<(K, V)>>);

/// An IP address as a key; an IPv4 address is the same as the IPv6 address that maps it.
///
/// Hashed by [`AddressHasher`] in a few nanoseconds. That it is keyed by a secret of the process keeps whoever chooses
/// addresses (a manifest may say any) from choosing ones that collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    high: u64,
    low: u64,
}

/// Two multiplications by random numbers that are drawn for each table.
pub(super) type AddressHasher = foldhash::fast::RandomState;

impl Address {
    pub(super) fn of(address: IpAddr) -> Self {
        let bits = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Self { high: (bits >> 64) as u64, low: bits as u64 }
    }
}

impl<K, V, S: Default> Default for Table<K, V, S> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Shard(RwLock::default())).collect();
        Self { shards, hasher: S::default() }
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> Table<K, V, S> {
    /// Asks of the value of a key, if there is one.
    pub(super) fn with<Q, R>(&self, key: &Q, ask: impl FnOnce(Option<&V>) -> R) -> R
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).read();
        ask(shard.find(hash, |(known, _)| known.borrow() == key).map(|(_, value)| value))
    }

    /// Puts in its place what `change` makes of the value of a key.
    pub(super) fn change(&self, key: K, change: impl FnOnce(Option<V>) -> Option<V>) {
        let hash = self.hasher.hash_one(&key);
        let mut shard = self.shard(hash).write();
        match shard.entry(hash, |(known, _)| *known == key, |(known, _)| self.hasher.hash_one(known)) {
            Entry::Occupied(found) => {
                let ((key, old), place) = found.remove();
                if let Some(new) = change(Some(old)) {
                    place.insert((key, new));
                }
            }
            Entry::Vacant(place) => {
                if let Some(new) = change(None) {
                    place.insert((key, new));
                }
            }
        }
    }

    /// Adds or replaces; returns what was there.
    pub(super) fn insert(&self, key: K, value: V) -> Option<V> {
        let mut replaced = None;
        self.change(key, |old| {
            replaced = old;
            Some(value)
        });
        replaced
    }

    /// Removes; returns what was there.
    pub(super) fn remove(&self, key: K) -> Option<V> {
        let mut removed = None;
        self.change(key, |old| {
            removed = old;
            None
        });
        removed
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<(K, V)>> {
        // Neither the lowest bits nor the highest seven, by which a table finds its entries.
        &self.shards[(hash >> 48) as usize % SHARDS].0
    }
}

impl<K, V: Clone, S> Table<K, V, S> {
    /// A copy of every value, in no order; shard by shard, so that no writer waits for it long.
    pub(super) fn values(&self) -> Vec<V> {
        let mut values = Vec::new();
        for shard in &self.shards {
            values.extend(shard.0.read().iter().map(|(_, value)| value.clone()));
        }
        values
    }
}

#[cfg(test)]
impl<K, V, S> Table<K, V, S> {
    pub(super) fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.0.read().is_empty())
    }
}

impl<K, V, S> fmt::Debug for Table<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: usize = self.shards.iter().map(|shard| shard.0.read().len()).sum();
        f.debug_struct("Table").field("entries", &entries).finish_non_exhaustive()
    }
}

/// With 100,000 entries a shard has 1,600, which move in some ten microseconds when it grows.
const SHARDS: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mapped_address_is_the_same_key() {
        let of = |text: &str| Address::of(text.parse().unwrap());
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("::10.0.0.1"));
    }

    proptest! {
        #[test]
        fn it_answers_as_one_map_would(steps in proptest::collection::vec((0u16..300, any::<Option<u8>>()), 0..600)) {
            let table = Table::<u16, u8>::default();
            let mut map = HashMap::new();
            for (key, value) in steps {
                match value {
                    Some(value) => prop_assert_eq!(table.insert(key, value), map.insert(key, value)),
                    None => prop_assert_eq!(table.remove(key), map.remove(&key)),
                }
                prop_assert_eq!(table.with(&key, |value| value.copied()), map.get(&key).copied());
            }
            let (mut all, mut expected) = (table.values(), map.into_values().collect::<Vec<_>>());
            all.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }
}
