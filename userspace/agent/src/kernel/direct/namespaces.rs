//! The network namespaces that the engine serves, and in each, on demand, a socket that speaks of its sockets.
//!
//! Written by [`super::super::Kernel`] when it steers a namespace and when it stops; read by whoever looks up or ends a
//! flow. The lock is held for one exchange with the kernel, never across an await.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::addr::NetnsCookie;
use crate::kernel::diag::Diag;

/// All of them. Cheap to clone.
#[derive(Clone, Default)]
pub(in crate::kernel) struct Namespaces {
    known: Arc<Mutex<HashMap<NetnsCookie, Namespace>>>,
}

struct Namespace {
    netns: OwnedFd,
    diag: Option<Diag>,
}

impl Namespaces {
    /// Keeps a namespace until it is [removed](Self::remove).
    pub(in crate::kernel) fn put(&self, cookie: NetnsCookie, netns: BorrowedFd<'_>) -> io::Result<()> {
        let netns = netns.try_clone_to_owned()?;
        self.known.lock().insert(cookie, Namespace { netns, diag: None });
        Ok(())
    }

    /// Lets go of a namespace.
    pub(in crate::kernel) fn remove(&self, cookie: NetnsCookie) {
        self.known.lock().remove(&cookie);
    }

    /// A socket of one's own for a question that takes long; `NotFound` where the namespace is not served.
    pub(in crate::kernel) fn open(&self, cookie: NetnsCookie) -> io::Result<Diag> {
        let netns = {
            let known = self.known.lock();
            known.get(&cookie).ok_or(io::ErrorKind::NotFound)?.netns.try_clone()?
        };
        Diag::open_in(netns.as_fd())
    }

    /// Asks about the sockets of a namespace; `NotFound` where it is not served.
    pub(super) fn ask<T>(
        &self,
        cookie: NetnsCookie,
        question: impl FnOnce(&Diag) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut known = self.known.lock();
        let namespace = known.get_mut(&cookie).ok_or(io::ErrorKind::NotFound)?;
        let diag = match namespace.diag.take() {
            Some(diag) => diag,
            None => Diag::open_in(namespace.netns.as_fd())?,
        };
        // After an error its answers could be those to an earlier question: the next one gets a fresh socket.
        let answer = question(&diag)?;
        namespace.diag = Some(diag);
        Ok(answer)
    }
}
