//! signet-demo: Istio's three tiers on two nodes of this machine; `cargo xtask demo` builds and starts it.

use std::process::ExitCode;

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
    /// Take down what --keep has left running, and do nothing else
    #[arg(long, conflicts_with_all = ["json", "keep"])]
    down: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.down {
        demo::take_down().iter().for_each(|name| println!("took down {name}"));
        return ExitCode::SUCCESS;
    }
    match demo::run(demo::Options { json: arguments.json, keep: arguments.keep }) {
        Ok(report) if report.ok => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("signet-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
