//! The right to be the one engine of an instance, and the wait for it.
//!
//! Two engines behind the same links would take them from each other, and the loser's workloads would go out in clear. So
//! an engine locks its pins' directory (flock(2)): the lock ends with its process, however that happens, and leaves
//! nothing to clean up. A successor may wait for it; the kernel wakes it, nobody asks again and again.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;

use super::error::KernelError;
use super::is_on_bpffs;
use super::object::Pins;

/// The right to be the one engine of an instance, until it is dropped or the process ends, however that happens.
#[derive(Debug)]
pub struct Claim {
    _lock: Flock<File>,
    is_handed_over: bool,
}

impl Claim {
    /// Makes this process the one engine of the instance with these pins; before [`super::Kernel::load`] and
    /// [`super::uninstall`]. bpffs is mounted there with `mount_bpffs`.
    ///
    /// # Errors
    /// Another process is that already, or the pins' directory cannot be made.
    pub fn take(pin_root: &Path, mount_bpffs: bool) -> Result<Self, KernelError> {
        let lock = lock(pin_root, mount_bpffs, FlockArg::LockExclusiveNonblock)?;
        Ok(Self { _lock: lock, is_handed_over: false })
    }

    /// The same, once no other process is it.
    ///
    /// # Errors
    /// The pins' directory cannot be made or locked.
    pub async fn await_turn(pin_root: &Path, mount_bpffs: bool) -> Result<Self, KernelError> {
        let (tell, told) = oneshot::channel();
        let path = pin_root.to_owned();
        // A thread of its own and not the runtime's: nothing ends the wait but the other process, and this one must be
        // able to end meanwhile.
        let wait = move || drop(tell.send(lock(&path, mount_bpffs, FlockArg::LockExclusive)));
        let failed = KernelError::file("wait for", pin_root);
        match thread::Builder::new().name("turn".into()).spawn(wait) {
            Ok(_detached) => {
                let lock = told.await.unwrap_or_else(|_| Err(failed(io::ErrorKind::BrokenPipe.into())))?;
                Ok(Self { _lock: lock, is_handed_over: true })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The same, where another process had it a moment ago.
    #[must_use]
    pub fn handed_over(self) -> Self {
        Self { is_handed_over: true, ..self }
    }

    /// Another process had it until a moment ago, and may still finish connections.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.is_handed_over
    }
}

fn lock(pin_root: &Path, mount_bpffs: bool, how: FlockArg) -> Result<Flock<File>, KernelError> {
    if !mount_bpffs && !is_on_bpffs(pin_root) {
        return Err(KernelError::NoBpffs { path: pin_root.to_owned() });
    }
    let failed = |error: io::Error| KernelError::file("lock", pin_root)(error);
    loop {
        Pins::new(pin_root).prepare()?;
        let directory = File::open(pin_root).map_err(KernelError::file("open", pin_root))?;
        let inode = directory.metadata().map_err(failed)?.ino();
        match Flock::lock(directory, how) {
            // Whoever had it may have removed the directory: a lock on what is nowhere keeps nobody away.
            Ok(lock) if std::fs::metadata(pin_root).is_ok_and(|now| now.ino() == inode) => {
                return Ok(lock);
            }
            Ok(_) | Err((_, Errno::EINTR)) => {}
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(KernelError::InstanceInUse { path: pin_root.to_owned() });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        }
    }
}
