//! Says when a directory's content has changed, by inotify and without polling.
//!
//! Every event leads to one scan of the whole directory: names and kinds of events differ too much between editors,
//! `kubectl cp` and ConfigMap swaps (`..data` is renamed, the files' own names stay untouched) to be worth telling
//! apart, and files with the same bytes cost nothing. Events are drained before the scan and again after it: a file
//! that was touched meanwhile keeps its known content, and another scan follows.
//!
//! The parent directory is watched for the directory's own name, so that a directory (or symbolic link to one) that is
//! replaced as a whole is picked up. Links further up, and files outside that a link points to, are not watched.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use inotify::{Event, EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::directory::{Directory, OpenError, Snapshot};
use crate::scan::scan;
use crate::settle::Unsettled;

/// A directory that is watched.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    /// Written by [`Self::pass`] on a blocking thread, read here; never held across an await.
    directory: Arc<Mutex<Directory>>,
    inotify: AsyncFd<Inotify>,
    watched: Option<WatchDescriptor>,
    parent: Option<WatchDescriptor>,
    unsettled: Unsettled,
    /// A scan that is being taken over. Kept, so that a cancelled wait cannot let an older scan overtake a newer one.
    applying: Option<JoinHandle<()>>,
    /// Something may have changed since the last scan began.
    pending: bool,
    /// The generation the caller has.
    delivered: Option<u64>,
}

/// Why a watch ends.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel refuses to tell.
    #[error("the watch on the manifest directory {} broke: {source}", path.display())]
    Inotify {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The runtime that reads files is shutting down.
    #[error("the runtime is shutting down")]
    Stopped,
}

impl Watch {
    pub(crate) fn new(directory: Directory) -> Result<Self, OpenError> {
        let path = directory.path().to_owned();
        let unwatchable = |source| OpenError::Unwatchable { path: path.clone(), source };
        let inotify = Inotify::init().map_err(unwatchable)?;
        let mut watch = Self {
            path: path.clone(),
            directory: Arc::new(Mutex::new(directory)),
            inotify: register(inotify).map_err(unwatchable)?,
            watched: None,
            parent: None,
            unsettled: Unsettled::default(),
            applying: None,
            pending: true,
            delivered: None,
        };
        watch.watch_parent().map_err(unwatchable)?;
        watch.watch_directory().map_err(unwatchable)?;
        Ok(watch)
    }

    /// The content: at once the first time, then whenever it has changed. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// The watch is broken and will not recover: open the directory again.
    pub async fn next(&mut self) -> Result<Snapshot, WatchError> {
        loop {
            if self.pending {
                self.pass().await?;
            }
            if let Some(snapshot) = self.undelivered() {
                return Ok(snapshot);
            }
            if !self.pending {
                self.wait().await?;
            }
        }
    }

    fn undelivered(&mut self) -> Option<Snapshot> {
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        if self.delivered == Some(directory.generation()) {
            return None;
        }
        self.delivered = Some(directory.generation());
        Some(directory.snapshot())
    }

    /// One scan, taken over except for what is unsettled.
    async fn pass(&mut self) -> Result<(), WatchError> {
        self.applied().await?;
        self.drain()?;
        self.unsettled.expire(Instant::now());
        let path = self.path.clone();
        let scanned = spawn_blocking(move || scan(&path)).await.map_err(joined)?;
        let touched = self.drain()?;
        let held: BTreeSet<OsString> = self.unsettled.names().chain(&touched.names).cloned().collect();
        let directory = self.directory.clone();
        let apply = move || directory.lock().unwrap_or_else(PoisonError::into_inner).apply(scanned, &held);
        self.applying = Some(spawn_blocking(apply));
        self.applied().await?;
        self.pending = touched.any;
        Ok(())
    }

    async fn applied(&mut self) -> Result<(), WatchError> {
        if let Some(task) = &mut self.applying {
            let result = task.await;
            self.applying = None;
            result.map_err(joined)?;
        }
        Ok(())
    }

    /// Until something happens, or a grace ends.
    async fn wait(&mut self) -> Result<(), WatchError> {
        let deadline = self.unsettled.deadline();
        let readable = async { self.inotify.readable().await.map(|mut guard| guard.clear_ready()) };
        let ready = match deadline {
            None => readable.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), readable).await.unwrap_or(Ok(())),
        };
        self.pending = true;
        ready.map_err(|source| self.broken(source))
    }

    /// Takes in everything the kernel has queued.
    fn drain(&mut self) -> Result<Touched, WatchError> {
        let mut touched = Touched::default();
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.inotify.get_mut().read_events(&mut buffer) {
                Ok(events) => events.for_each(|event| self.observe(&event, &mut touched)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.broken(e)),
            }
        }
        if touched.moved {
            self.follow(&mut touched)?;
        }
        Ok(touched)
    }

    fn observe(&mut self, event: &Event<&OsStr>, touched: &mut Touched) {
        if Some(&event.wd) == self.parent.as_ref() {
            touched.moved |= event.name == self.path.file_name();
            return;
        }
        touched.any = true;
        touched.moved |= event.mask.intersects(GONE);
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            self.unsettled.clear();
        }
        if let Some(name) = event.name {
            self.unsettled.observe(name, event.mask, Instant::now());
            touched.names.insert(name.to_owned());
        }
    }

    /// The directory's name leads elsewhere now, or nowhere.
    fn follow(&mut self, touched: &mut Touched) -> Result<(), WatchError> {
        touched.any = true;
        self.unsettled.clear();
        let before = self.watched.take();
        match self.watch_directory() {
            Ok(()) => {}
            // The parent's watch tells when it is back; until then a scan says what is missing.
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => {}
            Err(e) => return Err(self.broken(e)),
        }
        if before != self.watched
            && let Some(before) = before
        {
            // Fails where the kernel has removed it already, together with the directory.
            let _ = self.inotify.get_mut().watches().remove(before);
        }
        Ok(())
    }

    fn watch_directory(&mut self) -> io::Result<()> {
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        self.watched = Some(self.inotify.get_mut().watches().add(&self.path, mask)?);
        Ok(())
    }

    fn watch_parent(&mut self) -> io::Result<()> {
        let Some(parent) = parent(&self.path) else { return Ok(()) };
        let mask = WatchMask::CREATE | WatchMask::MOVE | WatchMask::DELETE | WatchMask::ONLYDIR;
        self.parent = Some(self.inotify.get_mut().watches().add(parent, mask)?);
        Ok(())
    }

    fn broken(&self, source: io::Error) -> WatchError {
        WatchError::Inotify { path: self.path.clone(), source }
    }
}

fn register(inotify: Inotify) -> io::Result<AsyncFd<Inotify>> {
    // The crate's own stream would need no `unsafe`, but it reads only when the reactor has seen the descriptor become
    // readable; the drain after a scan must see what the kernel has queued by then.
    //
    // SAFETY: `Inotify` owns its descriptor, always returns the same one, and closes it only when dropped; the `AsyncFd`
    // owns the `Inotify`, and nobody here takes it out or replaces it.
    Ok(unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?)
}

/// What a drain has seen.
#[derive(Default)]
struct Touched {
    any: bool,
    /// The directory's name may lead elsewhere.
    moved: bool,
    names: BTreeSet<OsString>,
}

/// Where the directory's own name stands; `None` where it has no name (`/`, `..`).
fn parent(path: &Path) -> Option<&Path> {
    path.file_name()?;
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() { Path::new(OsStr::new(".")) } else { parent })
}

fn joined(error: JoinError) -> WatchError {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => WatchError::Stopped,
    }
}

/// The watched inode is not what the directory's name leads to any more.
const GONE: EventMask =
    EventMask::DELETE_SELF.union(EventMask::MOVE_SELF).union(EventMask::IGNORED).union(EventMask::UNMOUNT);

#[cfg(test)]
mod tests;
