//! Signet's commands: `cargo xtask setup | build | image | demo | cluster | test | bench | check`.
//!
//! One module per command. Whatever a command finds missing it installs through [`setup`], saying so first, so that on a
//! fresh machine `cargo xtask demo` and `cargo xtask test` need nothing before them. Nothing is written outside
//! `target/` except by apt and rustup.

mod bench;
mod build;
mod check;
mod cluster;
mod demo;
mod ebpf;
mod image;
mod search_path;
mod setup;
mod step;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Signet's commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building, the demo, the tests and the checks need
    Setup(setup::Options),
    /// Build the eBPF object, then signetd with it inside, signet-ca and signet
    Build(build::Options),
    /// Container images of signetd and signet-ca, as OCI layouts and as archives
    Image(image::Options),
    /// A real two-node Kubernetes cluster on this machine, with the images imported
    Cluster(cluster::Options),
    /// Two nodes, three pods, real mTLS: show it step by step, with evidence
    Demo(demo::Options),
    /// Direct TCP, Envoy, HAProxy and Signet side by side: throughput, requests, connections, CPU, memory
    Bench(bench::Options),
    /// Run every test that this machine can run, and list the ones it cannot
    Test(test::Options),
    /// rustfmt, clippy, rustdoc, cargo-deny and the floor table
    Check,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Setup(options) => setup::run(options),
        Command::Build(options) => build::run(options),
        Command::Image(options) => image::run(options),
        Command::Cluster(options) => cluster::run(options),
        Command::Demo(options) => demo::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Test(options) => test::run(options),
        Command::Check => check::run(),
    }
}
