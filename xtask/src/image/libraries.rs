//! The shared libraries that a program names, and those that they name: what the image must carry for it to start.
//!
//! The dynamic linker is asked (`ldd`), so only programs that one would run anyway may be asked about.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::step;

/// Absolute paths of the libraries and the dynamic linker. None for a static program.
///
/// # Errors
/// One of them is not on this machine.
pub(super) fn of(program: &Path) -> Result<BTreeSet<PathBuf>> {
    // A static program makes ldd fail.
    let said = step::output(Command::new("ldd").arg(program)).unwrap_or_default();
    said.lines().filter_map(library).collect::<Result<_>>().with_context(|| program.display().to_string())
}

/// Reads `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<Result<PathBuf>> {
    let line = line.trim();
    if line.ends_with("not found") {
        return Some(Err(anyhow::anyhow!("{line}")));
    }
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    let path = path.split(" (").next()?;
    path.starts_with('/').then(|| Ok(PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_and_the_kernels_own_is_none() {
        let read = |line| library(line).map(|path| path.unwrap().display().to_string());
        assert_eq!(read("\tlibc.so.6 => /lib/libc.so.6 (0x00007f)").as_deref(), Some("/lib/libc.so.6"));
        assert_eq!(read("\t/lib64/ld-linux.so.2 (0x00007f)").as_deref(), Some("/lib64/ld-linux.so.2"));
        assert_eq!(read("\tlinux-vdso.so.1 (0x00007f)"), None);
    }

    #[test]
    fn a_missing_library_is_an_error() {
        assert!(library("\tlibx.so => not found").unwrap().is_err());
    }
}
