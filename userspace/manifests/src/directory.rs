//! The directory's content: what each file last said, what of it holds, and what is wrong.
//!
//! Reading and applying are two steps, so that a watch can look for writers in between. A file whose bytes are the same
//! as before is not parsed again, and its documents stay the same `Arc`s. It follows symbolic links to files (a mounted
//! ConfigMap is made of them), never into directories, and leaves hidden files alone: they are editors' and kubelet's.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::{Document, DocumentError, ObjectKey};
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
    /// The directory holds too many files.
    #[error("the manifest directory holds more than {} files", limits::FILES)]
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

/// The bytes of every manifest file, or why there are none.
pub(crate) type Scan = Result<BTreeMap<Arc<str>, Result<Vec<u8>, FileError>>, FileError>;

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

/// Reads every manifest file of a directory.
pub(crate) fn scan(directory: &Path) -> Scan {
    let mut contents = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(FileError::Directory)? {
        let entry = entry.map_err(FileError::Directory)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_manifest(name)) else { continue };
        let name: Arc<str> = name.into();
        if let Some(content) = read_file(&name, &entry.path()) {
            contents.insert(name, content);
        }
        if contents.len() > limits::FILES {
            return Err(FileError::TooMany);
        }
    }
    Ok(contents)
}

/// `None` where there is no file behind the name: a directory, a socket, or one that went away since the listing.
fn read_file(name: &Arc<str>, path: &Path) -> Option<Result<Vec<u8>, FileError>> {
    let unreadable = |source: io::Error| FileError::Unreadable { file: name.clone(), source };
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return None,
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => return Some(Err(unreadable(e))),
    }
    let mut bytes = Vec::new();
    let limit = limits::FILE_BYTES as u64 + 1;
    match std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => Some(Err(unreadable(e))),
        Ok(_) if bytes.len() > limits::FILE_BYTES => Some(Err(FileError::TooLarge { file: name.clone() })),
        Ok(_) => Some(Ok(bytes)),
    }
}

/// Whether a file of that name is a manifest.
pub(crate) fn is_manifest(name: &str) -> bool {
    let known = |extension| ["yaml", "yml", "json"].contains(&extension);
    !name.starts_with('.') && name.rsplit_once('.').is_some_and(|(_, extension)| known(extension))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn pod(name: &str) -> String {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n---\n")
    }

    fn names(snapshot: &Snapshot) -> Vec<String> {
        snapshot.documents.iter().map(|d| d.key().name.to_string()).collect()
    }

    fn faults(snapshot: &Snapshot) -> Vec<String> {
        snapshot.faults.iter().map(|f| f.error.to_string()).collect()
    }

    #[test]
    fn yaml_yml_and_json_are_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for (file, name) in [("a.yaml", "a"), ("b.yml", "b"), ("d.txt", "d"), (".e.yaml", "e"), ("f", "f")] {
            fs::write(dir.path().join(file), pod(name)).unwrap();
        }
        let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#;
        fs::write(dir.path().join("c.json"), json).unwrap();
        fs::create_dir(dir.path().join("sub.yaml")).unwrap();
        fs::write(dir.path().join("sub.yaml/g.yaml"), pod("g")).unwrap();
        let snapshot = Directory::open(dir.path()).unwrap().read();
        assert_eq!(names(&snapshot), ["a", "b", "c"]);
        assert_eq!(faults(&snapshot), Vec::<String>::new());
    }

    #[test]
    fn a_broken_file_keeps_what_it_last_said_and_leaves_the_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
        fs::write(dir.path().join("b.yaml"), pod("b")).unwrap();
        let mut directory = Directory::open(dir.path()).unwrap();
        directory.read();
        fs::write(dir.path().join("a.yaml"), "kind: [").unwrap();
        fs::write(dir.path().join("b.yaml"), pod("b2")).unwrap();
        let snapshot = directory.read();
        assert_eq!(names(&snapshot), ["a", "b2"]);
        assert!(snapshot.faults[0].last_good);
        fs::write(dir.path().join("a.yaml"), pod("a3")).unwrap();
        let snapshot = directory.read();
        assert_eq!((names(&snapshot), snapshot.faults.len()), (vec!["a3".to_owned(), "b2".to_owned()], 0));
    }

    #[test]
    fn a_file_broken_from_the_start_says_what_it_may_hold() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), "kind: AuthorizationPolicy\nspec: [").unwrap();
        let snapshot = Directory::open(dir.path()).unwrap().read();
        let fault = &snapshot.faults[0];
        assert!(!fault.last_good && fault.may_hold("AuthorizationPolicy") && !fault.may_hold("Pod"));
    }

    #[test]
    fn the_same_object_in_two_files_is_taken_from_the_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
        fs::write(dir.path().join("b.yaml"), format!("{}{}", pod("b"), pod("a"))).unwrap();
        let snapshot = Directory::open(dir.path()).unwrap().read();
        assert_eq!(names(&snapshot), ["a", "b"]);
        assert_eq!(
            faults(&snapshot),
            ["b.yaml line 5: Pod default/a is in a.yaml too, which is in force: remove one"]
        );
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let padding = "# padding\n".repeat(limits::FILE_BYTES / 10 + 1);
        fs::write(dir.path().join("a.yaml"), pod("a") + &padding).unwrap();
        let snapshot = Directory::open(dir.path()).unwrap().read();
        assert_eq!(names(&snapshot), Vec::<String>::new());
        assert!(matches!(*snapshot.faults[0].error, FileError::TooLarge { .. }));
    }

    #[test]
    fn unchanged_bytes_keep_their_documents_and_their_generation() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
        let mut directory = Directory::open(dir.path()).unwrap();
        let first = directory.read();
        let generation = directory.generation();
        fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
        let second = directory.read();
        assert!(Arc::ptr_eq(&first.documents[0], &second.documents[0]));
        assert_eq!(directory.generation(), generation);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = Directory::open("/nonexistent/manifests").unwrap_err().to_string();
        assert!(error.starts_with("cannot read the manifest directory /nonexistent/manifests: "), "{error}");
    }
}
