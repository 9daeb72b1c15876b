//! `/proc/sys`, where the settings of network namespaces are, made writable.
//!
//! Container runtimes mount it read-only in a container without `privileged`. The mount is the container's own, so what
//! is changed here nobody else sees; writing a setting still needs the rights over its namespace.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::NetError;

/// Makes the settings writable, where they are not.
///
/// # Errors
/// The mount cannot be changed.
pub fn open() -> Result<(), NetError> {
    let refused =
        |errno: nix::Error| NetError::Routing { step: "make /proc/sys writable", source: errno.into() };
    let flags = statvfs(Path::new(SETTINGS)).map_err(refused)?.flags();
    if !flags.contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    let none: Option<&str> = None;
    let same = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, SETTINGS, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | same, none).map_err(refused)
}

const SETTINGS: &str = "/proc/sys";
