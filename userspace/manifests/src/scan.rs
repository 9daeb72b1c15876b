//! The bytes of a directory's manifest files.
//!
//! It follows symbolic links to files (a mounted ConfigMap is made of them), never into directories, and leaves hidden
//! files alone: they are editors' and kubelet's. Files of other kinds are passed over before they are opened, since opening
//! a pipe would wait for its writer.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use crate::directory::FileError;
use crate::limits;

/// The bytes of every manifest file, or why there are none.
pub(crate) type Scan = Result<BTreeMap<Arc<str>, Result<Vec<u8>, FileError>>, FileError>;

/// Reads every manifest file of a directory.
pub(crate) fn scan(directory: &Path) -> Scan {
    let mut contents = BTreeMap::new();
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).map_err(FileError::Directory)? {
        let entry = entry.map_err(FileError::Directory)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_manifest(name)) else { continue };
        let name: Arc<str> = name.into();
        if let Some(content) = read_file(&name, &entry.path()) {
            bytes += content.as_ref().map_or(0, Vec::len);
            contents.insert(name, content);
        }
        if contents.len() > limits::FILES || bytes > limits::DIRECTORY_BYTES {
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
