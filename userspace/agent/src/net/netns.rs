//! Entering another network namespace for as long as one closure runs.
//!
//! A socket belongs to the namespace it was made in for all its life, so the engine only visits a namespace to make
//! sockets, routes and settings there; bytes move without any switch. The visit is synchronous on purpose: a future
//! that awaits could be moved to another thread and leave this one abroad. Whether two descriptors name the same
//! namespace is not asked here: the kernel door has the cookie for that.

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
    /// The thread returns to where it was, also when `f` panics. The process is aborted if it cannot: a thread that
    /// stays abroad would dial from, and listen in, a workload's namespace in the name of others.
    ///
    /// # Errors
    /// `setns` failed (`CAP_SYS_ADMIN` is needed, see setns(2)), or `/proc` is not mounted; `f` did not run.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        let home = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
        setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
        let _return = Return(home);
        Ok(f())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Brings the thread home when dropped.
struct Return(OwnedFd);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot leave a network namespace, aborting");
            std::process::abort();
        }
    }
}
