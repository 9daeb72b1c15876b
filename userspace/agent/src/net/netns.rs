//! Entering another network namespace for as long as one closure runs.
//!
//! A socket belongs to the namespace it was made in for all its life, so the engine only visits a namespace to make
//! sockets, routes and settings there; bytes move without any switch. The visit is synchronous on purpose: a future
//! that awaits could be moved to another thread and leave this one abroad. A visit costs two system calls, 2 µs each:
//! the way back is opened once per thread. Whether two descriptors name the same namespace is not asked here: the kernel
//! door has the cookie for that.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

/// A network namespace, held open by its file descriptor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Holds a namespace open.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd) }
    }

    /// The namespace this process was started in.
    ///
    /// # Errors
    /// `/proc/self/ns/net` could not be opened.
    pub fn current() -> io::Result<Self> {
        Ok(Self::new(File::open("/proc/self/ns/net")?.into()))
    }

    /// Runs `f` with the calling thread inside the namespace; synchronous, so no await can leave the thread there.
    ///
    /// The thread returns to where it was, also when `f` panics; nothing else may move it once it has visited. The process is aborted if it cannot: a thread that stays abroad would dial from, and listen in, a workload's
    /// namespace in the name of others.
    ///
    /// # Errors
    /// `setns` failed (`CAP_SYS_ADMIN` is needed, see setns(2)), or `/proc` is not mounted; `f` did not run.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        let origin = here()?;
        enter(&self.fd)?;
        let _return = Return(origin);
        Ok(f())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Moves the thread.
fn enter(namespace: &Arc<OwnedFd>) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    HERE.set(Some(Arc::clone(namespace)));
    Ok(())
}

/// Where the thread is.
fn here() -> io::Result<Arc<OwnedFd>> {
    if let Some(here) = HERE.with_borrow(Clone::clone) {
        return Ok(here);
    }
    let here = Arc::new(File::open("/proc/thread-self/ns/net")?.into());
    HERE.set(Some(Arc::clone(&here)));
    Ok(here)
}

/// Brings the thread back when dropped.
struct Return(Arc<OwnedFd>);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.0) {
            tracing::error!(%error, "cannot leave a network namespace, aborting");
            std::process::abort();
        }
    }
}

thread_local! {
    /// The namespace this thread is in, once it has been asked. Written by [`enter`]; ends with the thread.
    static HERE: RefCell<Option<Arc<OwnedFd>>> = const { RefCell::new(None) };
}
