//! Reviews that went well, for a moment: a node that starts asks for all of its pods with the same token.
//!
//! Kept by the token's hash, so that no token is, and never past the token's expiry. A refusal is not kept: it may be
//! about to heal, and forged tokens could fill the table.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};

/// A token's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint([u8; 32]);

/// Values that hold for a while, by token.
#[derive(Debug)]
pub(super) struct Cache<T> {
    entries: HashMap<Fingerprint, Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    until: Instant,
}

impl Fingerprint {
    pub(super) fn of(token: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(hash)
    }
}

impl<T: Clone> Cache<T> {
    pub(super) fn new() -> Self {
        Self { entries: HashMap::new() }
    }

    pub(super) fn get(&self, token: Fingerprint, now: Instant) -> Option<T> {
        let entry = self.entries.get(&token)?;
        (now < entry.until).then(|| entry.value.clone())
    }

    /// Keeps a value for [`FRESH`] or for as long as the token lives, whichever is shorter.
    pub(super) fn put(&mut self, token: Fingerprint, value: T, lives: Duration, now: Instant) {
        if self.entries.len() >= MOST {
            self.entries.retain(|_, entry| now < entry.until);
        }
        if self.entries.len() < MOST {
            self.entries.insert(token, Entry { value, until: now + lives.min(FRESH) });
        }
    }
}

/// How long a review counts: a node's first requests come within seconds.
const FRESH: Duration = Duration::from_secs(30);
/// Two tokens, an old and a new one, of each of 2,000 nodes.
const MOST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_counts_for_a_moment_and_never_past_the_tokens_expiry() {
        let (mut cache, now) = (Cache::new(), Instant::now());
        let (long, short) = (Fingerprint::of("long"), Fingerprint::of("short"));
        cache.put(long, 1, Duration::from_secs(3600), now);
        cache.put(short, 2, Duration::from_secs(5), now);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!((cache.get(long, at(4)), cache.get(short, at(4))), (Some(1), Some(2)));
        assert_eq!((cache.get(long, at(5)), cache.get(short, at(5))), (Some(1), None));
        assert_eq!(cache.get(long, now + FRESH), None);
        assert_eq!(cache.get(Fingerprint::of("other"), now), None);
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_of_what_has_expired() {
        let (mut cache, now) = (Cache::new(), Instant::now());
        let lives = Duration::from_secs(10);
        for index in 0..=MOST {
            cache.put(Fingerprint::of(&index.to_string()), index, lives, now);
        }
        assert_eq!(cache.entries.len(), MOST);
        cache.put(Fingerprint::of("next"), 0, lives, now + lives);
        assert_eq!(cache.entries.len(), 1);
    }
}
