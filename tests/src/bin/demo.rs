//! signet-demo: Istio's three tiers on two nodes of this machine; `cargo xtask demo` builds and starts it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use signet_testkit::demo;

/// Shows what Signet does, on two nodes made of network namespaces.
#[derive(Parser)]
struct Arguments {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Leave it running and say what to try
    #[arg(long)]
    keep: bool,
    /// On a Kubernetes cluster, with Signet installed by helm
    #[arg(long)]
    kubernetes: bool,
    /// Take down what --keep has left running, and do nothing else
    #[arg(long, conflicts_with_all = ["json", "keep", "kubernetes"])]
    down: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("signet-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `false` where a check failed.
fn run(arguments: &Arguments) -> Result<bool> {
    let Arguments { json, keep, kubernetes, down } = *arguments;
    if down {
        demo::take_down()?.iter().for_each(|name| println!("took down {name}"));
        return Ok(true);
    }
    Ok(demo::run(demo::Options { json, keep, kubernetes })?.ok)
}
