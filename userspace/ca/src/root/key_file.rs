//! Private key files: nobody else may read them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rcgen::KeyPair;
use zeroize::Zeroizing;

use crate::root::{Place, RootError};

/// Reads a key that only its owner can read. The permissions are those of the file that is read, not of the name.
pub(crate) fn read(path: &Path) -> Result<KeyPair, RootError> {
    let io = |source| RootError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(RootError::Exposed { path: path.to_owned(), mode });
    }
    let mut pem = Zeroizing::new(String::new());
    file.take(MAX_BYTES).read_to_string(&mut pem).map_err(io)?;
    parse(&Place::file(path), &pem)
}

/// A key in PEM.
pub(crate) fn parse(place: &Place, pem: &str) -> Result<KeyPair, RootError> {
    KeyPair::from_pem(pem).map_err(|_| RootError::Key { place: place.clone() })
}

/// Writes a file whole or not at all, and never over another one: it is written aside and then linked to its name.
pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = write_aside(&aside, text, mode).and_then(|()| std::fs::hard_link(&aside, path));
    let removed = std::fs::remove_file(&aside);
    written.and(removed)?;
    sync_directory(path)
}

fn write_aside(aside: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Read, write and execute of group and others.
const OTHERS: u32 = 0o077;
/// An RSA-4096 key has about 3 kilobytes.
const MAX_BYTES: u64 = 64 * 1024;
