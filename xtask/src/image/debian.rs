//! Which Debian package a file of this machine is from: for the bill of materials, and for its licence.
//!
//! On a machine without dpkg nothing is known, and nothing is told.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step;

/// A Debian package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
}

impl Package {
    /// The package that a file is from.
    pub(super) fn of(file: &Path) -> Option<Self> {
        let canonical = file.canonicalize().ok();
        let said = owner(file).or_else(|| canonical.as_deref().and_then(owner))?;
        let name = said.split([':', ',']).next()?.trim().to_owned();
        let architecture_and_all = said.split(": ").next()?.trim();
        let version = step::output(
            Command::new("dpkg-query").args(["--show", "--showformat=${Version}"]).arg(architecture_and_all),
        )?;
        Some(Self { name, version: version.trim().to_owned() })
    }

    /// Its licence, which travels with it.
    pub(super) fn licence(&self) -> Option<PathBuf> {
        let path = Path::new("/usr/share/doc").join(&self.name).join("copyright");
        path.exists().then_some(path)
    }
}

/// `libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6`. With `/lib` a link to `/usr/lib`, dpkg knows one of the two names.
fn owner(file: &Path) -> Option<String> {
    let ask = |path: &Path| step::output(Command::new("dpkg-query").arg("--search").arg(path));
    let moved = file.strip_prefix("/usr").map(|rest| Path::new("/").join(rest));
    ask(file).or_else(|| moved.ok().and_then(|path| ask(&path)))
}
