//! `cargo xtask bench`: builds with optimisation what is missing and hands over to `signet-bench`, which is part of the
//! test kit; or with `--micro` to the microbenchmarks.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, step, test, workspace};

/// Options of `bench`.
#[derive(Args)]
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
    /// Only measures whose names contain one of these, separated by commas
    #[arg(long, value_name = "PARTS")]
    only: Option<String>,
    /// Only these contenders, by name, separated by commas
    #[arg(long, value_name = "NAMES")]
    contenders: Option<String>,
    /// Run everything at this nice value (-10, say), where the machine does other things too
    #[arg(long, value_name = "NICE", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Run the microbenchmarks instead: relay, verifier, policy, parsers
    #[arg(long, conflicts_with_all = ["json", "quick", "rounds", "seconds", "only", "contenders"])]
    micro: bool,
}

/// Runs the benchmark; its exit code, which is not 0 where something did not work, is this command's.
///
/// # Errors
/// It cannot run here, or something cannot be built.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.micro {
        return micro();
    }
    prepare()?;
    let program = workspace::binaries(true).join("signet-bench");
    let (rounds, seconds) = if options.quick { QUICK } else { (options.rounds, options.seconds) };
    let mut command = prioritised(&program, options.priority);
    command.arg("--output").arg(workspace::target().join("bench"));
    command.args(["--rounds", &rounds.to_string(), "--seconds", &seconds.to_string()]);
    if let Some(only) = &options.only {
        command.args(["--only", only]);
    }
    if let Some(contenders) = &options.contenders {
        command.args(["--contenders", contenders]);
    }
    step::hand_over(&mut command, &[("--json", options.json)])
}

/// What it starts inherits it: loads, engines and rivals alike.
fn prioritised(program: &Path, priority: Option<i32>) -> Command {
    let Some(nice) = priority else { return Command::new(program) };
    let mut command = Command::new("nice");
    command.args(["-n", &nice.to_string()]).arg(program);
    command
}

fn prepare() -> Result<()> {
    if let Some(reason) = test::machine::lacks_for_nodes() {
        bail!("the benchmark makes network namespaces and loads eBPF programs: {reason}");
    }
    setup::ensure(Purpose::Bench)?;
    build::optimised(&PROGRAMS)
}

fn micro() -> Result<ExitCode> {
    setup::ensure(Purpose::Build)?;
    step::hand_over(workspace::cargo().args(["bench", "--package", "signet-scale"]), &[])
}

/// What the benchmark starts, and itself.
const PROGRAMS: [&str; 7] =
    ["signetd", "signet-ca", "signet", "signet-bench", "signet-load", "signet-probe", "signet-scale"];
/// Rounds, and seconds of each load.
const QUICK: (u32, f64) = (2, 0.3);
