//! The directory's content: what each file last said, what of it holds, and what is wrong.
//!
//! Reading and applying are two steps, so that a watch can look for writers in between. A file whose bytes are the same
//! as before is not parsed again, and its documents stay the same `Arc`s.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::{Document, DocumentError, ObjectKey};
use crate::scan::{Scan, scan};
use crate::watch::Watch;
use crate::{limits, yaml};

/// A directory of manifests.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<Arc<str>, File>,
    /// Why the directory itself cannot be read, where it cannot.
    fault: Option<Arc<FileError>>,
    generation: u64,
}

/// Everything a directory says at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The objects in force, in the order of file names and places; each key once.
    pub documents: Vec<Arc<Document>>,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// A file that cannot be taken as it is.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What is wrong with it.
    pub error: Arc<FileError>,
    /// Its last good content is in force; without one, nothing of it is.
    pub last_good: bool,
    content: Option<Arc<[u8]>>,
}

impl Fault {
    /// Whether the file could hold an object of a kind whose absence would be dangerous. A file that could not even be
    /// read could.
    #[must_use]
    pub fn may_hold(&self, kind: &str) -> bool {
        let holds = |content: &Arc<[u8]>| content.windows(kind.len()).any(|w| w == kind.as_bytes());
        self.content.as_ref().is_none_or(holds)
    }
}

/// Why a directory is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be listed.
    #[error("cannot read the manifest directory {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel gives no watch.
    #[error("cannot watch the manifest directory {}: {source} (see fs.inotify.max_user_instances)", path.display())]
    Unwatchable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with a file, or with the directory.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The directory cannot be listed any more.
    #[error("cannot read the manifest directory: {0}")]
    Directory(io::Error),
    /// The directory holds too much.
    #[error(
        "the manifest directory holds more than {} files or {} bytes",
        limits::FILES,
        limits::DIRECTORY_BYTES
    )]
    TooMany,
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Unreadable {
        /// Which.
        file: Arc<str>,
        /// Why.
        source: io::Error,
    },
    /// It is too large.
    #[error("{file}: is larger than {} bytes: split it", limits::FILE_BYTES)]
    TooLarge {
        /// Which.
        file: Arc<str>,
    },
    /// It is no text.
    #[error("{file}: is no UTF-8 text (byte {offset})")]
    NotUtf8 {
        /// Which.
        file: Arc<str>,
        /// The first byte that is not.
        offset: usize,
    },
    /// It is no YAML, or exceeds a limit.
    #[error("{file} line {line} column {column}: {reason}")]
    Syntax {
        /// Which.
        file: Arc<str>,
        /// From 1; 0 where unknown.
        line: u64,
        /// From 1; 0 where unknown.
        column: u64,
        /// What the parser says.
        reason: String,
    },
    /// A document of it is no Kubernetes object.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Another file has the same object; that one is in force.
    #[error("{file} line {line}: {key} is in {other} too, which is in force: remove one")]
    Duplicate {
        /// The file that is ignored for this object.
        file: Arc<str>,
        /// Its line.
        line: u64,
        /// The object.
        key: ObjectKey,
        /// The file that is in force.
        other: Arc<str>,
    },
}

/// What one file last said.
#[derive(Debug, Default)]
struct File {
    content: Option<Arc<[u8]>>,
    documents: Vec<Arc<Document>>,
    was_good: bool,
    error: Option<Arc<FileError>>,
}

impl Directory {
    /// Opens a directory; nothing is read yet.
    ///
    /// # Errors
    /// It is not there, or cannot be listed.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let path = path.into();
        match std::fs::read_dir(&path) {
            Ok(_) => Ok(Self { path, files: BTreeMap::new(), fault: None, generation: 0 }),
            Err(source) => Err(OpenError::Unreadable { path, source }),
        }
    }

    /// Reads all of it now.
    pub fn read(&mut self) -> Snapshot {
        self.apply(scan(&self.path), &BTreeSet::new());
        self.snapshot()
    }

    /// Watches it from here on.
    ///
    /// # Errors
    /// The kernel gives no watch.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn watch(self) -> Result<Watch, OpenError> {
        Watch::new(self)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Grows whenever a snapshot would differ from the one before.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes a scan over, except for the files in `held`: those stay as they are known.
    pub(crate) fn apply(&mut self, scan: Scan, held: &BTreeSet<OsString>) {
        let before = self.fault.take().map(|fault| fault.to_string());
        match scan {
            Ok(contents) => self.apply_contents(contents, held),
            Err(error) => self.fault = Some(Arc::new(error)),
        }
        if before != self.fault.as_ref().map(ToString::to_string) {
            self.generation += 1;
        }
    }

    fn apply_contents(
        &mut self,
        contents: BTreeMap<Arc<str>, Result<Vec<u8>, FileError>>,
        held: &BTreeSet<OsString>,
    ) {
        let is_held = |name: &str| held.contains(std::ffi::OsStr::new(name));
        let known = self.files.len();
        self.files.retain(|name, _| contents.contains_key(name) || is_held(name));
        let mut changed = self.files.len() != known;
        for (name, content) in contents {
            if !is_held(&name) {
                changed |= self.files.entry(name.clone()).or_default().update(&name, content);
            }
        }
        self.generation += u64::from(changed);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut seen: BTreeMap<&ObjectKey, &Document> = BTreeMap::new();
        for document in self.files.values().flat_map(|file| &file.documents) {
            match seen.get(document.key()) {
                Some(first) => snapshot.faults.push(duplicate(document, first)),
                None => {
                    seen.insert(document.key(), document);
                    snapshot.documents.push(document.clone());
                }
            }
        }
        snapshot.faults.extend(self.files.values().filter_map(File::fault));
        snapshot.faults.extend(self.fault.iter().map(|error| Fault {
            error: error.clone(),
            last_good: self.generation > 1,
            content: None,
        }));
        snapshot
    }
}

impl File {
    /// True when what it says, or what is wrong with it, has changed.
    fn update(&mut self, name: &Arc<str>, content: Result<Vec<u8>, FileError>) -> bool {
        match content {
            Ok(bytes) if self.content.as_deref() == Some(&bytes[..]) => false,
            Ok(bytes) => {
                let parsed = yaml::documents(name, &bytes);
                self.content = Some(bytes.into());
                self.take(parsed);
                true
            }
            Err(error) => {
                self.content = None;
                let same = self.error.as_ref().is_some_and(|known| known.to_string() == error.to_string());
                self.take(Err(error));
                !same
            }
        }
    }

    fn take(&mut self, parsed: Result<Vec<Arc<Document>>, FileError>) {
        match parsed {
            Ok(documents) => {
                self.documents = documents;
                self.was_good = true;
                self.error = None;
            }
            Err(error) => self.error = Some(Arc::new(error)),
        }
    }

    fn fault(&self) -> Option<Fault> {
        let error = self.error.clone()?;
        Some(Fault { error, last_good: self.was_good, content: self.content.clone() })
    }
}

fn duplicate(document: &Document, first: &Document) -> Fault {
    let error = FileError::Duplicate {
        file: document.file().into(),
        line: document.line(),
        key: document.key().clone(),
        other: first.file().into(),
    };
    // The object itself is in force, by its other file.
    Fault { error: Arc::new(error), last_good: true, content: None }
}

#[cfg(test)]
mod tests;
