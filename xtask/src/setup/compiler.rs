//! Installs the eBPF toolchain: rustup's nightly with `rust-src` where rustup can give it, Debian's packages otherwise.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::toolchain::{Compiler, Route};
use crate::{search_path, step, workspace};

/// Installs what is missing of compiler and linker.
///
/// # Errors
/// Neither route works here.
pub(super) fn install() -> Result<()> {
    let compiler = match Compiler::detect() {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    if compiler.linker().is_none() {
        install_linker(&compiler)?;
    }
    Ok(())
}

/// Clippy for the compiler that [`install`] found or installed.
///
/// # Errors
/// rustup or apt cannot give it.
pub(super) fn install_clippy() -> Result<()> {
    let compiler = Compiler::detect().context("there is no compiler for eBPF to get clippy for")?;
    match compiler.route {
        Route::Debian => apt::install(&[CLIPPY_PACKAGE]),
        Route::Rustup => {
            let mut command = Command::new("rustup");
            step::run(
                "rustup component add clippy",
                command.args(["component", "add", "clippy", "--toolchain", "nightly"]),
            )
        }
    }
}

/// What [`install`] would do, for the plan.
pub(super) fn describe_plan(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let into = workspace::tools();
    match Compiler::detect() {
        Some(compiler) => write!(
            f,
            "bpf-linker {BPF_LINKER} (crates.io, into {}) for {}, with LLVM's headers (apt)",
            into.display(),
            compiler.description()
        ),
        None => write!(
            f,
            "a compiler for eBPF: nightly with rust-src (rustup) or else {} (apt); \
             bpf-linker {BPF_LINKER} (crates.io, into {}), with LLVM's headers (apt)",
            DEBIAN_COMPILER.join(", "),
            into.display()
        ),
    }
}

fn install_compiler() -> Result<Compiler> {
    if let Err(error) = install_from_rustup() {
        let first = error.to_string();
        eprintln!(
            "  no rust-src from rustup ({}); trying Debian's compiler",
            first.lines().next().unwrap_or("")
        );
        apt::install(&DEBIAN_COMPILER).context(
            "no compiler for eBPF: give rustup a nightly with rust-src \
             (`rustup toolchain install nightly --component rust-src`)",
        )?;
    }
    Compiler::detect().context("the compiler was installed without an error, and yet is not found")
}

fn install_from_rustup() -> Result<()> {
    if search_path::find("rustup").is_none() {
        bail!("there is no rustup");
    }
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    step::run("rustup toolchain install nightly", &mut command)
}

fn install_linker(compiler: &Compiler) -> Result<()> {
    let llvm = compiler.llvm;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("bin/llvm-config").exists() {
        let packages = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
        let names: Vec<&str> = packages.iter().map(String::as_str).chain(LLVM_LIBRARIES).collect();
        apt::install(&names)?;
    }
    let mut command = workspace::cargo();
    command
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}"), "--root"])
        .arg(compiler.linker_root())
        .env("LLVM_PREFIX", prefix);
    step::run(&format!("cargo install bpf-linker {BPF_LINKER}"), &mut command)
}

/// The release that reads LLVM 21 to 23.
const BPF_LINKER: &str = "0.13.0";
/// Debian 12's newest compiler, with the sources of `core`.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Clippy of [`DEBIAN_COMPILER`].
pub(super) const CLIPPY_PACKAGE: &str = "rust-web-clippy";
/// What LLVM's own libraries are linked to.
const LLVM_LIBRARIES: [&str; 3] = ["zlib1g-dev", "libzstd-dev", "libxml2-dev"];
