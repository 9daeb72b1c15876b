//! When a refusal is a missing right.
//!
//! For a second or two after it has started an API server does not know its RBAC rules yet and says 403 to everybody. To
//! call that a missing right would send people to roles that are right. So a 403 counts only where the same access has
//! been refused, and never granted, for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fault::Access;

/// What is being refused, and since when. Written by whoever asks; a handful of entries, one for each kind of access.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patience(Arc<Mutex<HashMap<(&'static str, String), Instant>>>);

impl Patience {
    /// It was refused; whether that has lasted.
    pub(crate) fn refused(&self, access: &Access, now: Instant) -> bool {
        let mut since = self.0.lock();
        let first = *since.entry(access.key()).or_insert(now);
        now.duration_since(first) >= LASTS
    }

    /// It was granted.
    pub(crate) fn allowed(&self, access: &Access) {
        let mut since = self.0.lock();
        if !since.is_empty() {
            since.remove(&access.key());
        }
    }
}

/// Longer than an API server needs to read its rules.
const LASTS: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Resource;

    const PODS: Resource = Resource { group: "", kind: "Pod", plural: "pods" };

    #[test]
    fn a_refusal_counts_once_it_has_lasted_and_each_access_for_itself() {
        let patience = Patience::default();
        let (list, watch) = (Access::everywhere("list", &PODS), Access::everywhere("watch", &PODS));
        let start = Instant::now();
        assert!(!patience.refused(&list, start));
        assert!(!patience.refused(&list, start + LASTS / 2));
        assert!(!patience.refused(&watch, start + LASTS));
        assert!(patience.refused(&list, start + LASTS));
        patience.allowed(&list);
        assert!(!patience.refused(&list, start + LASTS * 2));
        assert!(patience.refused(&watch, start + LASTS * 2));
    }
}
