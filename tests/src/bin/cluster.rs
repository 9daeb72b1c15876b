//! signet-cluster: a two-node Kubernetes cluster on this machine; `cargo xtask cluster` builds and starts it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use signet_testkit::cluster::{command, forward, machine};

/// A two-node Kubernetes cluster in network namespaces of this machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start it, or find it running, and say what to try
    Up {
        #[command(flatten)]
        cluster: Named,
        /// With Istio's control plane beside it
        #[arg(long)]
        istiod: bool,
    },
    /// Say what of it runs
    Status(Named),
    /// Take it down, whatever state it is in
    Down(Named),
    /// Run a command on a node, as if logged in there
    Exec(Exec),
    /// Hold a node's mount namespace: a process of the cluster
    #[command(hide = true)]
    Machine { files: PathBuf },
    /// Carry a loopback port into a network namespace: a process of the cluster
    #[command(hide = true)]
    Forward { netns: PathBuf, to: SocketAddr },
}

#[derive(clap::Args)]
struct Named {
    /// Several clusters may be up, each with a name
    #[arg(long, default_value = command::DEFAULT_NAME)]
    name: String,
}

#[derive(clap::Args)]
struct Exec {
    #[command(flatten)]
    cluster: Named,
    /// n1 or n2
    node: String,
    /// The command
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("signet-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Up { cluster, istiod } => command::up(&cluster.name, istiod).map(done),
        Command::Status(cluster) => command::status(&cluster.name).map(|up| ExitCode::from(u8::from(!up))),
        Command::Down(cluster) => command::down(&cluster.name).map(done),
        Command::Exec(exec) => command::exec(&exec.cluster.name, &exec.node, &exec.argv),
        Command::Machine { files } => match machine::hold(&files)? {},
        Command::Forward { netns, to } => match forward::run(&netns, to)? {},
    }
}
