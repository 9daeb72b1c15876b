//! The directory of Kubernetes and Istio manifests that the `files` source of every node, and the CA, watches.
//!
//! A file is replaced by a rename, never written in place: a reader sees the old object or the new one.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A directory of manifests, one file per name. Cheap to clone; the testbed removes the directory.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// Makes the directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn add(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes or replaces the file of that name (without extension); `text` may hold several YAML documents.
    ///
    /// # Errors
    /// The directory is gone or full.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        let temporary = self.directory.join(format!(".{name}.tmp"));
        fs::write(&temporary, text).with_context(|| format!("cannot write {}", temporary.display()))?;
        let path = self.path(name);
        fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the file of that name; one that is not there is fine.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("cannot remove manifest {name}")),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.yaml"))
    }
}
