//! Ciphers made ready, of the connections that seal or open something just now.
//!
//! A key is 16 or 32 bytes, and the cipher that is made of it, with its tables, is six hundred. Most connections are idle, so
//! a connection keeps its keys alone, and a thread keeps ciphers ready for those that were used last. Making one costs a few
//! hundred nanoseconds; a connection that is busy finds its own as it left it. One that is given up is zeroized (aws-lc does
//! so with all it frees), and none outlives its connection: the connection owns it, and the thread only knows of it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use aws_lc_rs::aead::LessSafeKey;
use parking_lot::Mutex;

/// A cipher that is ready, until a thread needs its place for others.
#[derive(Default)]
pub(super) struct Warm(Option<Arc<Place>>);

/// Written by the connection that uses it, emptied by the thread that it was made ready on.
struct Place {
    cipher: Mutex<Option<LessSafeKey>>,
    /// Since the thread last looked for one to give up.
    used: AtomicBool,
}

impl Warm {
    /// Uses the cipher, which `make` makes where it is not ready.
    pub(super) fn with<R, E>(
        &mut self,
        make: impl FnOnce() -> Result<LessSafeKey, E>,
        act: impl FnOnce(&LessSafeKey) -> R,
    ) -> Result<R, E> {
        if let Some(place) = &self.0
            && let Some(cipher) = &*place.cipher.lock()
        {
            place.used.store(true, Ordering::Relaxed);
            return Ok(act(cipher));
        }
        let cipher = make()?;
        let result = act(&cipher);
        let place = Arc::new(Place { cipher: Mutex::new(Some(cipher)), used: AtomicBool::new(false) });
        READY.with_borrow_mut(|ready| admit(ready, Arc::downgrade(&place)));
        self.0 = Some(place);
        Ok(result)
    }

    #[cfg(test)]
    fn is_ready(&self) -> bool {
        self.0.as_ref().is_some_and(|place| place.cipher.lock().is_some())
    }
}

/// Beyond the bound the oldest is given up, but one that was used since it was last looked at gets another turn.
fn admit(ready: &mut VecDeque<Weak<Place>>, new: Weak<Place>) {
    while ready.len() >= MAX_READY {
        let Some(oldest) = ready.pop_front() else { break };
        let Some(place) = oldest.upgrade() else { continue };
        match place.cipher.try_lock() {
            Some(mut cipher) if !place.used.swap(false, Ordering::Relaxed) => drop(cipher.take()),
            _ => ready.push_back(oldest),
        }
    }
    ready.push_back(new);
}

thread_local! {
    /// Ciphers that were made ready on this thread, the oldest first. Ends with the thread.
    static READY: RefCell<VecDeque<Weak<Place>>> = const { RefCell::new(VecDeque::new()) };
}

/// Ciphers that a thread keeps ready, two for each connection: 75 KiB.
const MAX_READY: usize = 128;

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{AES_128_GCM, UnboundKey};

    use super::*;

    fn make() -> Result<LessSafeKey, aws_lc_rs::error::Unspecified> {
        UnboundKey::new(&AES_128_GCM, &[7; 16]).map(LessSafeKey::new)
    }

    #[test]
    fn a_thread_keeps_few_and_those_that_are_used() {
        let mut all: Vec<Warm> = (0..3 * MAX_READY).map(|_| Warm::default()).collect();
        let mut made = 0;
        for at in 0..all.len() {
            all[0]
                .with(
                    || {
                        made += 1;
                        make()
                    },
                    |_| (),
                )
                .unwrap();
            all[at].with(make, |_| ()).unwrap();
        }
        assert!(all.iter().filter(|warm| warm.is_ready()).count() <= MAX_READY);
        assert!(all[0].is_ready() && made == 1, "the one in use was made {made} times");
        assert!(!all[1].is_ready());
        all[1].with(make, |_| ()).unwrap();
        assert!(all[1].is_ready());
    }

    #[test]
    fn none_outlives_its_connection() {
        let mut warm = Warm::default();
        warm.with(make, |_| ()).unwrap();
        let place = Arc::downgrade(warm.0.as_ref().unwrap());
        drop(warm);
        assert!(place.upgrade().is_none());
    }
}
