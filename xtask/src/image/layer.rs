//! A layer: a tar archive whose bytes depend on names, modes and contents only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use super::oci::File;

/// What is at a path of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A file, read when the layer is written.
    File { from: PathBuf, mode: u32 },
    /// A file with these bytes.
    Text { bytes: Vec<u8> },
    /// A folder with a mode of its own; others are made as needed.
    Folder { mode: u32 },
    /// A symbolic link.
    Link { to: String },
}

/// Paths without a leading slash, in order.
#[derive(Debug, Default)]
pub(super) struct Layer(BTreeMap<String, Node>);

impl Layer {
    /// Puts something at an absolute path, and folders above it.
    pub(super) fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            self.0.entry(path[..end].to_owned()).or_insert(Node::Folder { mode: 0o755 });
        }
        self.0.insert(path.to_owned(), node);
    }

    /// A program or a library, as it is on this machine.
    pub(super) fn put_file(&mut self, path: &str, from: &Path, mode: u32) {
        self.put(path, Node::File { from: from.to_owned(), mode });
    }

    /// The archive.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn tar(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, node) in &self.0 {
            append(&mut archive, path, node).with_context(|| format!("cannot pack {path}"))?;
        }
        archive.into_inner().context("cannot end the archive")
    }
}

/// Packs named blobs, as the archive of an image.
///
/// # Errors
/// None in memory, but tar knows that only at run time.
pub(super) fn tar_of(files: &[File]) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for (path, bytes) in files {
        archive.append_data(&mut header(EntryType::Regular, 0o644, bytes.len()), path, &bytes[..])?;
    }
    archive.into_inner().context("cannot end the archive")
}

fn append(archive: &mut Builder<Vec<u8>>, path: &str, node: &Node) -> Result<()> {
    match node {
        Node::File { from, mode } => {
            let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            archive.append_data(&mut header(EntryType::Regular, *mode, bytes.len()), path, &bytes[..])?;
        }
        Node::Text { bytes } => {
            archive.append_data(&mut header(EntryType::Regular, 0o644, bytes.len()), path, &bytes[..])?;
        }
        Node::Folder { mode } => {
            archive.append_data(&mut header(EntryType::Directory, *mode, 0), format!("{path}/"), &[][..])?;
        }
        Node::Link { to } => {
            archive.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, to)?;
        }
    }
    Ok(())
}

/// Owned by root, of the year 1970.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_age_of_the_files_do_not_matter() {
        let folder = std::env::temp_dir().join(format!("signet-layer-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("program");
        let tar = |paths: [&str; 2]| {
            fs::write(&file, "the same bytes").unwrap();
            let mut layer = Layer::default();
            paths.iter().for_each(|path| layer.put_file(path, &file, 0o755));
            layer.tar().unwrap()
        };
        let first = tar(["/usr/bin/a", "/opt/b"]);
        fs::File::open(&file).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(first, tar(["/opt/b", "/usr/bin/a"]));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut layer = Layer::default();
        layer.put("/a/b/c", Node::Text { bytes: b"x".to_vec() });
        assert_eq!(layer.0.keys().collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
    }
}
