//! One instance taken out of the kernel: `signetd --uninstall`, and the end of every test.
//!
//! What the engine has set in the workloads' namespaces is not the kernel door's: [`steered_namespaces`] finds those
//! namespaces while the pins still name them, for whoever restores them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::KernelError;
use super::netns::netns_cookie;
use super::object::{self, Pins};
use super::{link, steering};

/// Detaches and unpins everything of an instance.
///
/// # Errors
/// What failed and what to do.
pub fn uninstall(pin_root: &Path) -> Result<(), KernelError> {
    for pin in object::list(&Pins::new(pin_root).links())? {
        link::remove(&pin)?;
    }
    match fs::remove_dir_all(pin_root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(KernelError::file("remove", pin_root)(e));
        }
        _ => {}
    }
    // The folder of all instances, where this was the last.
    if let Some(all) = pin_root.parent().filter(|all| all.ends_with("signet")) {
        let _ = fs::remove_dir(all);
    }
    Ok(())
}

/// The network namespaces that an instance steers and a process still lives in.
///
/// # Errors
/// `/proc` cannot be read.
pub fn steered_namespaces(pin_root: &Path) -> Result<Vec<OwnedFd>, KernelError> {
    let steered = steering::steered(&Pins::new(pin_root));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for process in object::list(Path::new("/proc"))? {
        // What is no process, or has ended meanwhile, has no namespace.
        let Ok(netns) = File::open(process.join("ns/net")) else { continue };
        let Ok(inode) = netns.metadata().map(|meta| meta.ino()) else { continue };
        if seen.insert(inode)
            && let Ok(cookie) = netns_cookie(netns.as_fd())
            && steered.contains(&cookie)
        {
            found.push(netns.into());
        }
    }
    Ok(found)
}
