//! The objects that a list has had so far, by hash: a list of 100,000 pods must not hold all their names twice.
//!
//! A collision would keep an object that is gone until the next list. The hash is 64 bits wide and keyed at random, so
//! nobody can bring one about by choosing names.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};

/// What a list has had.
#[derive(Debug, Default)]
pub struct Seen {
    keys: RandomState,
    hashes: HashSet<u64>,
}

impl Seen {
    /// The list has it.
    pub fn note(&mut self, key: &impl Hash) {
        self.hashes.insert(self.keys.hash_one(key));
    }

    /// Whether the list has had it.
    #[must_use]
    pub fn has(&self, key: &impl Hash) -> bool {
        self.hashes.contains(&self.keys.hash_one(key))
    }
}
