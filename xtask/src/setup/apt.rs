//! Debian packages: one `apt-get update` in a process' life, one `apt-get install`, no service started.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::{search_path, step, workspace};

/// Installs packages.
///
/// # Errors
/// Not root, no apt (the error has the command to run by hand), or apt failed.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if let Some(reason) = unusable() {
        bail!("{reason}. Install by hand: {}", packages.join(" "));
    }
    update();
    let _quiet = Policy::forbid_services()?;
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "--no-install-recommends"]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    step::run("apt-get install", &mut command)
}

/// The first of these packages that no list has, for whoever has another way: `apt-get install` would fail. `None` too where
/// apt cannot be used, which [`install`] tells.
pub(super) fn lacking<'p>(packages: &[&'p str]) -> Option<&'p str> {
    if unusable().is_some() {
        return None;
    }
    update();
    let is_listed = |package: &&str| {
        let mut ask = Command::new("apt-cache");
        step::output(ask.args(["show", "--no-all-versions", package])).is_some()
    };
    packages.iter().copied().find(|package| !is_listed(package))
}

/// Why apt cannot be used here.
pub(crate) fn unusable() -> Option<&'static str> {
    if search_path::find("apt-get").is_none() {
        return Some("this machine has no apt");
    }
    (!workspace::is_root()).then_some("installing packages needs root")
}

/// A failure here is told, and left to `install` to judge: a mirror that is away may not matter.
fn update() {
    static UPDATED: Once = Once::new();
    UPDATED.call_once(|| {
        if let Err(error) = step::run("apt-get update", Command::new("apt-get").arg("update")) {
            eprintln!("  going on with the package lists there are: {error:#}");
        }
    });
}

/// Debian starts what it installs, and the demo wants nginx as a program only: while this lives, no service is started.
struct Policy {
    written: bool,
}

impl Policy {
    fn forbid_services() -> Result<Self> {
        let path = Path::new(POLICY);
        if path.exists() {
            return Ok(Self { written: false });
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
        let written = Self { written: true };
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(written)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.written
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("  remove {POLICY} by hand, or no package will start its service: {error}");
        }
    }
}

/// `invoke-rc.d(8)`: exit code 101 forbids the action.
const POLICY: &str = "/usr/sbin/policy-rc.d";
