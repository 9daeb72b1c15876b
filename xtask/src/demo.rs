//! `cargo xtask demo`: builds what is missing and hands over to `signet-demo`, which is part of the test kit.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, image, step, test, workspace};

/// Options of `demo`.
#[derive(Args, Clone, Copy)]
pub(crate) struct Options {
    /// Print the checks as one JSON object
    #[arg(long)]
    json: bool,
    /// Leave it running and say what to try
    #[arg(long)]
    keep: bool,
    /// On a Kubernetes cluster of two nodes, with Signet installed by helm
    #[arg(long)]
    kubernetes: bool,
    /// Take down what --keep has left running, and do nothing else
    #[arg(long, conflicts_with_all = ["json", "keep", "kubernetes"])]
    down: bool,
}

/// Runs the demo; its exit code is this command's.
///
/// # Errors
/// It cannot run here, or something cannot be built.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if !options.down {
        prepare(options.kubernetes)?;
    }
    let program = workspace::binaries(false).join("signet-demo");
    step::hand_over(
        &mut Command::new(program),
        &[
            ("--json", options.json),
            ("--keep", options.keep),
            ("--kubernetes", options.kubernetes),
            ("--down", options.down),
        ],
    )
}

fn prepare(kubernetes: bool) -> Result<()> {
    if let Some(reason) = test::machine::lacks_for_nodes() {
        bail!("the demo makes network namespaces and loads eBPF programs: {reason}");
    }
    setup::ensure(Purpose::Demo)?;
    if !kubernetes {
        return build::binaries(false);
    }
    setup::ensure(Purpose::Cluster)?;
    build::binaries(false)?;
    image::write_for_tests()
}
