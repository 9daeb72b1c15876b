//! `cargo xtask build`: the eBPF object, then the three binaries with it inside.
//!
//! The demo and the tests build the same packages in the same profile, so that nothing is compiled twice.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{ebpf, step, workspace};

/// Options of `build`.
#[derive(Args, Clone, Copy, Default)]
pub(crate) struct Options {
    /// With optimisations
    #[arg(long)]
    release: bool,
}

/// Builds, and says where the binaries are.
///
/// # Errors
/// Something is missing and cannot be installed, or does not compile.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(Purpose::Build)?;
    binaries(options.release)?;
    let folder = workspace::binaries(options.release);
    for name in BINARIES {
        println!("{}", folder.join(name).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the eBPF object and the binaries, without looking for tools first.
///
/// # Errors
/// Something does not compile.
pub(crate) fn binaries(release: bool) -> Result<()> {
    ebpf::build()?;
    workspace_build(release)
}

/// Builds the workspace's binaries with whatever object there is.
///
/// # Errors
/// Something does not compile.
pub(crate) fn workspace_build(release: bool) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["build", "--workspace", "--exclude", "xtask", "--bins"]);
    if release {
        command.arg("--release");
    }
    step::inherit(&mut command)
}

/// Builds the eBPF object and some of the workspace's programs with optimisation: linking one takes minutes.
///
/// # Errors
/// Something does not compile.
pub(crate) fn optimised(programs: &[&str]) -> Result<()> {
    ebpf::build()?;
    let mut command = workspace::cargo();
    // The whole workspace, so that dependencies have the features that they have in every other build.
    command.args(["build", "--release", "--workspace", "--exclude", "xtask"]);
    programs.iter().for_each(|program| {
        command.args(["--bin", program]);
    });
    step::inherit(&mut command)
}

const BINARIES: [&str; 3] = ["signetd", "signet-ca", "signet"];
