//! Which files are in the middle of a change, told from the kernel's events: pure bookkeeping, time is an argument.
//!
//! A file in place is written in steps: truncated, filled, closed. Read between two of them it is half a policy, which
//! can allow more than the whole. So a file counts as unsettled from its first write to its writer's close. Editors
//! replace a file by renaming it away and creating it again; so a file that was renamed away is kept for
//! [`RENAME_GRACE`] or until its successor has come, whichever is first. A deleted file is gone at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use inotify::EventMask;

/// What is unsettled. Owned by the watch; written by its events, read before each scan is applied.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    writing: BTreeSet<OsString>,
    renamed: BTreeMap<OsString, Instant>,
}

impl Unsettled {
    /// Takes in one event about a name.
    pub(crate) fn observe(&mut self, name: &OsStr, mask: EventMask, now: Instant) {
        if mask.contains(EventMask::MODIFY) {
            self.writing.insert(name.to_owned());
        } else if mask.contains(EventMask::MOVED_FROM) {
            self.writing.remove(name);
            self.renamed.insert(name.to_owned(), now + RENAME_GRACE);
        } else if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO | EventMask::DELETE) {
            self.writing.remove(name);
            self.renamed.remove(name);
        }
    }

    /// Lets go of what was renamed away long enough ago.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.renamed.retain(|_, until| *until > now);
    }

    /// When [`Self::expire`] next has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.renamed.values().min().copied()
    }

    /// The files to leave as they are known.
    pub(crate) fn names(&self) -> impl Iterator<Item = &OsString> {
        self.writing.iter().chain(self.renamed.keys())
    }

    /// Forgets everything: events were lost.
    pub(crate) fn clear(&mut self) {
        self.writing.clear();
        self.renamed.clear();
    }
}

/// How long an editor may take between renaming the old file away and closing the new one.
pub(crate) const RENAME_GRACE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn after(events: &[(&str, EventMask)]) -> Vec<String> {
        let mut unsettled = Unsettled::default();
        for (name, mask) in events {
            unsettled.observe(OsStr::new(name), *mask, Instant::now());
        }
        unsettled.names().map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_is_unsettled_from_its_first_write_to_its_close() {
        assert_eq!(after(&[("a", EventMask::MODIFY)]), ["a"]);
        assert!(after(&[("a", EventMask::MODIFY), ("a", EventMask::CLOSE_WRITE)]).is_empty());
        assert!(after(&[("a", EventMask::MODIFY), ("a", EventMask::DELETE)]).is_empty());
        assert!(after(&[("a", EventMask::MODIFY), ("a", EventMask::MOVED_TO)]).is_empty());
    }

    #[test]
    fn a_renamed_file_waits_for_its_successor_to_be_closed() {
        let moved = ("a", EventMask::MOVED_FROM);
        assert_eq!(after(&[moved, ("a", EventMask::CREATE)]), ["a"]);
        assert!(after(&[moved, ("a", EventMask::CREATE), ("a", EventMask::CLOSE_WRITE)]).is_empty());
        assert!(after(&[moved, ("a", EventMask::MOVED_TO)]).is_empty());
    }

    #[test]
    fn a_renamed_file_without_a_successor_is_let_go() {
        let mut unsettled = Unsettled::default();
        let now = Instant::now();
        unsettled.observe(OsStr::new("a"), EventMask::MOVED_FROM, now);
        assert_eq!(unsettled.deadline(), Some(now + RENAME_GRACE));
        unsettled.expire(now + RENAME_GRACE);
        assert_eq!((unsettled.names().count(), unsettled.deadline()), (0, None));
    }
}
