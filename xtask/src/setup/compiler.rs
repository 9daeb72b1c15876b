//! Installs the eBPF toolchain: rustup's nightly with `rust-src` where rustup can give it, Debian's packages otherwise.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::toolchain::{Compiler, Route};
use crate::{search_path, step, workspace};

/// Installs what is missing of compiler and linker, by the first route on which both can be had.
///
/// # Errors
/// Neither route works here; the text has what each of them lacks.
pub(super) fn install() -> Result<()> {
    let mut lacking = Vec::new();
    for route in Route::ALL {
        match install_route(route) {
            Ok(()) => return Ok(()),
            Err(error) => {
                eprintln!("  {}: {}", route.name(), first_line(&error));
                lacking.push(format!("{}: {error:#}", route.name()));
            }
        }
    }
    bail!("no compiler for eBPF with a bpf-linker of its LLVM\n{}", lacking.join("\n"))
}

fn install_route(route: Route) -> Result<()> {
    let compiler = match Compiler::of(route) {
        Some(compiler) => compiler,
        None => install_compiler(route)?,
    };
    match compiler.linker() {
        Some(_) => Ok(()),
        None => install_linker(&compiler),
    }
}

fn first_line(error: &anyhow::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
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

fn install_compiler(route: Route) -> Result<Compiler> {
    match route {
        Route::Rustup => install_from_rustup()?,
        Route::Debian => apt::install(&DEBIAN_COMPILER)?,
    }
    Compiler::of(route).context("the compiler was installed without an error, and yet is not found")
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
        if let Some(package) = apt::lacking(&names) {
            bail!("LLVM {llvm} has no package {package} here");
        }
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
