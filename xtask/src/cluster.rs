//! `cargo xtask cluster`: builds what is missing and hands over to `signet-cluster`, which is part of the test kit.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::setup::{self, Purpose};
use crate::{build, image, step, test, workspace};

/// Options of `cluster`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
    /// Several clusters may be up, each with a name
    #[arg(long, global = true)]
    name: Option<String>,
}

#[derive(Subcommand)]
enum Action {
    /// Start it, or find it running, and say what to try
    Up {
        /// With Istio's control plane beside it
        #[arg(long)]
        istiod: bool,
    },
    /// Say what of it runs; exit code 1 where it is not up whole
    Status,
    /// Take it down, whatever state it is in
    Down,
    /// Run a command on a node, as if logged in there: `exec n1 -- ctr -n k8s.io containers ls`
    Exec {
        /// n1 or n2
        node: String,
        /// The command
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
}

/// Runs the command; its exit code is this command's.
///
/// # Errors
/// It cannot run here, or something cannot be built.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut command = Command::new(workspace::binaries(false).join("signet-cluster"));
    match &options.action {
        Action::Up { istiod } => {
            prepare(if *istiod { Purpose::Istiod } else { Purpose::Cluster })?;
            command.arg("up").args(istiod.then_some("--istiod"))
        }
        Action::Status => command.arg("status"),
        Action::Down => command.arg("down"),
        Action::Exec { .. } => command.arg("exec"),
    };
    if let Some(name) = &options.name {
        command.args(["--name", name]);
    }
    if let Action::Exec { node, argv } = &options.action {
        command.args([node, "--"]).args(argv);
    }
    step::hand_over(&mut command, &[])
}

fn prepare(purpose: Purpose) -> Result<()> {
    if let Some(reason) = test::machine::lacks_for_nodes() {
        bail!("the cluster's nodes are network namespaces: {reason}");
    }
    setup::ensure(purpose)?;
    build::binaries(false)?;
    image::write_for_tests()
}
