//! Builds the eBPF crate into the object that `signetd` embeds.
//!
//! The crate is no member of the workspace: another target, another compiler (see `toolchain`). Its object is copied to
//! one fixed place, where the agent's build script finds it whatever profile the workspace is built with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::toolchain::Compiler;
use crate::{step, workspace};

/// Compiles and links the object; returns where it is.
///
/// # Errors
/// The toolchain is incomplete (`cargo xtask setup`), or the crate does not compile.
pub(crate) fn build() -> Result<PathBuf> {
    let compiler = Compiler::detect().context("no compiler for the eBPF crate: run `cargo xtask setup`")?;
    let linker = compiler.linker().context("no bpf-linker for this compiler: run `cargo xtask setup`")?;
    let mut command = on_the_crate(compiler.cargo("build"), &target_dir());
    step::inherit(command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker))?;
    publish(&compiler)
}

/// Where the agent's build script looks.
pub(crate) fn object() -> PathBuf {
    workspace::target().join("bpfel/signet.o")
}

/// Clippy on the crate; `None` where the compiler has none. Another compiler's cannot read its `core`.
///
/// In a folder of its own: its `core` is built by another driver, and cargo would build the object's anew.
pub(crate) fn clippy(compiler: &Compiler) -> Option<Command> {
    compiler.clippy().map(|command| on_the_crate(command, &workspace::target().join("ebpf-clippy")))
}

/// Completes a cargo subcommand with the flags that the object is built with.
fn on_the_crate(mut command: Command, target_dir: &Path) -> Command {
    command
        .current_dir(workspace::root().join("ebpf"))
        .args(["--release", "-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf");
    command
}

/// Copies only what changed, so that the agent is not built again for nothing.
///
/// Without DWARF, where the compiler has a tool for it: the linker makes BTF out of it and leaves both. The engine reads the
/// object for each network namespace, and DWARF, with its relocations, is five sixths of it.
fn publish(compiler: &Compiler) -> Result<PathBuf> {
    let mut built = target_dir().join(TARGET).join("release/signet-ebpf");
    if let Some(mut objcopy) = compiler.objcopy() {
        let bare = built.with_extension("bare");
        step::inherit(objcopy.arg("--strip-debug").args([&built, &bare]))?;
        built = bare;
    }
    let object = object();
    let new = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    if fs::read(&object).is_ok_and(|old| old == new) {
        return Ok(object);
    }
    fs::create_dir_all(object.parent().expect("it lies in a folder"))?;
    fs::write(&object, new).with_context(|| format!("cannot write {}", object.display()))?;
    Ok(object)
}

fn target_dir() -> PathBuf {
    workspace::target().join("ebpf")
}

const TARGET: &str = "bpfel-unknown-none";
