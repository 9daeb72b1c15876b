//! `cargo xtask bench`: builds with optimisation what is missing and hands over to `signet-bench`, which is part of the
//! test kit.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, step, test, workspace};

/// Options of `bench`.
#[derive(Args, Clone, Copy)]
pub(crate) struct Options {
    /// Print one JSON array instead of tables
    #[arg(long)]
    json: bool,
    /// Two short rounds, under three minutes
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each load counts
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// Runs the benchmark; its exit code, which is not 0 where something did not work, is this command's.
///
/// # Errors
/// It cannot run here, or something cannot be built.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    prepare()?;
    let program = workspace::binaries(true).join("signet-bench");
    let (rounds, seconds) = if options.quick { QUICK } else { (options.rounds, options.seconds) };
    let mut command = Command::new(program);
    command.arg("--output").arg(workspace::target().join("bench"));
    command.args(["--rounds", &rounds.to_string(), "--seconds", &seconds.to_string()]);
    step::hand_over(&mut command, &[("--json", options.json)])
}

fn prepare() -> Result<()> {
    if let Some(reason) = test::machine::lacks_for_nodes() {
        bail!("the benchmark makes network namespaces and loads eBPF programs: {reason}");
    }
    setup::ensure(Purpose::Bench)?;
    build::binaries(true)
}

/// Rounds, and seconds of each load.
const QUICK: (u32, f64) = (2, 0.5);
