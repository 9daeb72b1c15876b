//! `cargo xtask bench`: builds with optimisations and hands over to `signet-bench`, which is part of the test kit.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, step, test, workspace};

/// Options of `bench`.
#[derive(Args, Clone, Copy)]
pub(crate) struct Options {
    /// Two seconds for each figure instead of ten: to see that it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the benchmark; its exit code is this command's.
///
/// # Errors
/// It cannot run here, or something cannot be built.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(reason) = test::machine::lacks_for_nodes() {
        bail!("the benchmark makes network namespaces and loads eBPF programs: {reason}");
    }
    setup::ensure(Purpose::Bench)?;
    build::binaries(true)?;
    let program = workspace::binaries(true).join("signet-bench");
    step::hand_over(&program, &[("--quick", options.quick), ("--json", options.json)])
}
