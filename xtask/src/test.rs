//! `cargo xtask test`: every test that this machine can run, and a plain list of the ones it cannot.
//!
//! Tests that need root, eBPF or a peer say so themselves: with `SIGNET_TEST_ALLOW_SKIP=1` they print
//! `SKIP <name>: <reason>` and return, without it they fail. `--strict` does not set it, so nothing is skipped in
//! silence. The workspace is always built whole: other package selections would unify features differently and compile
//! everything again.

pub(crate) mod machine;
mod tally;

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{ebpf, image, step, workspace};
use tally::Tally;

/// Options of `test`.
#[derive(Args)]
pub(crate) struct Options {
    /// A test that cannot run here is a failure
    #[arg(long)]
    strict: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Runs the tests and prints the counts as the last line.
///
/// # Errors
/// Only where the counts could not be had at all; a test that fails is in the exit code.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut tally = Tally::default();
    prepare(&mut tally);
    for stage in STAGES {
        eprintln!("\n== {}", stage.title);
        run_stage(stage, options, &mut tally)?;
    }
    tally.report(options.strict);
    Ok(if tally.is_success(options.strict) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One `cargo test`; together they run every test once.
struct Stage {
    title: &'static str,
    selection: &'static [&'static str],
}

const STAGES: &[Stage] = &[
    Stage { title: "unit, property and protocol tests", selection: &["--lib", "--bins"] },
    Stage { title: "examples in the documentation", selection: &["--doc"] },
    Stage { title: "kernel and end-to-end tests", selection: &["--test", "*"] },
];

/// What cannot be installed or built is noted; the tests that need it say so again, by name.
fn prepare(tally: &mut Tally) {
    let mut note = |name: &str, result: Result<()>| {
        if let Err(error) = result {
            tally.skip(name, &format!("{error:#}"));
        }
    };
    note("setup", setup::ensure(Purpose::Test));
    note("eBPF object", ebpf::build().map(|_| ()));
    note("binaries", build_everything());
    note("images", image::write_for_tests());
}

/// Test targets and binaries in one build, so that both see the same features of their dependencies.
fn build_everything() -> Result<()> {
    step::inherit(workspace::cargo().args(["build", "--workspace", "--bins", "--tests"]))
}

fn run_stage(stage: &Stage, options: &Options, tally: &mut Tally) -> Result<()> {
    let mut command = cargo_test(stage, options);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().expect("it was piped");
    let before = tally.failed();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the tests' output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.line(&line);
    }
    let status = child.wait().context("lost cargo test")?;
    if !status.success() && tally.failed() == before {
        tally.fail(&format!("{}: cargo test ended with {status}", stage.title));
    }
    Ok(())
}

fn cargo_test(stage: &Stage, options: &Options) -> Command {
    let mut command = workspace::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).args(stage.selection);
    command.args(options.filter.as_deref());
    if options.strict {
        command.env_remove("SIGNET_TEST_ALLOW_SKIP");
    } else {
        command.env("SIGNET_TEST_ALLOW_SKIP", "1");
    }
    command
}
