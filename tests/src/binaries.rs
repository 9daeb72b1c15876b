//! Where the programs under test are: next to the test's own executable, or where `SIGNET_BIN_DIR` says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The path of one of the workspace's programs (`signetd`, `signet-ca`, `signet`, `signet-probe`).
///
/// # Errors
/// It has not been built.
pub fn path(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo xtask build`", path.display());
    Ok(path)
}

/// The path of a tool that `cargo xtask setup` installs into `target/tools/bin`.
///
/// # Errors
/// It has not been installed.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = target()?.join("tools/bin").join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo xtask setup`", path.display());
    Ok(path)
}

/// The archive of a container image that `cargo xtask image` writes beside the binaries.
///
/// # Errors
/// It has not been built.
pub fn image(name: &str) -> Result<PathBuf> {
    let path = directory()?.join("images").join(format!("{name}.tar"));
    ensure!(path.is_file(), "{} is missing: run `cargo xtask image --dev`", path.display());
    Ok(path)
}

/// The build folder, `target`.
pub(crate) fn target() -> Result<PathBuf> {
    directory()?.parent().map(Path::to_owned).context("the build folder has no parent")
}

/// `target/<profile>`: tests run from `target/<profile>/deps`, the demo from `target/<profile>`.
fn directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("SIGNET_BIN_DIR") {
        return Ok(directory.into());
    }
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    let parent = exe.parent().context("this program is in no directory")?;
    let profile = if parent.ends_with("deps") { parent.parent() } else { Some(parent) };
    profile.map(Path::to_owned).context("this program is in no build folder")
}
