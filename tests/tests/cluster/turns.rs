//! Something costly that the tests of a subject share: together, or one of them alone. Started by the first, ended by the
//! last: a machine has room for a few clusters only.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Result, anyhow};

/// What is shared, and by how many tests.
pub(crate) struct Turns<T: 'static> {
    /// Held by every test that uses it, for writing by one that breaks it for a while.
    lock: RwLock<()>,
    /// Tests that have not had their turn yet.
    left: AtomicUsize,
    /// Written by the first test that asks and by [`Self::end`].
    shared: Mutex<Option<Result<Arc<T>, String>>>,
    start: fn() -> Result<T>,
}

/// It, for as long as a test uses it.
pub(crate) struct Turn<T: 'static, G> {
    it: Arc<T>,
    of: &'static Turns<T>,
    _lock: G,
}

impl<T> Turns<T> {
    pub(crate) const fn new(tests: usize, start: fn() -> Result<T>) -> Self {
        Self { lock: RwLock::new(()), left: AtomicUsize::new(tests), shared: Mutex::new(None), start }
    }

    /// With others.
    pub(crate) fn together(&'static self) -> Result<Turn<T, RwLockReadGuard<'static, ()>>> {
        let lock = self.lock.read().map_err(|_| anyhow!("the test that was alone panicked"))?;
        Ok(Turn { it: self.started()?, of: self, _lock: lock })
    }

    /// With no other.
    pub(crate) fn alone(&'static self) -> Result<Turn<T, RwLockWriteGuard<'static, ()>>> {
        let lock = self.lock.write().map_err(|_| anyhow!("the test that was alone panicked"))?;
        Ok(Turn { it: self.started()?, of: self, _lock: lock })
    }

    fn started(&self) -> Result<Arc<T>> {
        let mut shared = self.shared.lock().map_err(|_| anyhow!("it panicked while it started"))?;
        let start = || (self.start)().map(Arc::new).map_err(|error| format!("{error:#}"));
        shared.get_or_insert_with(start).clone().map_err(|error| anyhow!("it did not start: {error}"))
    }

    /// Ends it, where it runs.
    pub(crate) fn end(&self) {
        if let Ok(mut shared) = self.shared.lock() {
            shared.take();
        }
    }
}

impl<T, G> Deref for Turn<T, G> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.it
    }
}

impl<T, G> Drop for Turn<T, G> {
    fn drop(&mut self) {
        if self.of.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.of.end();
        }
    }
}
