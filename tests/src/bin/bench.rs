//! signet-bench: Signet beside direct TCP and other proxies on this machine; `cargo xtask bench` builds and starts it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use signet_testkit::bench::{self, Options, Report};

/// Measures direct TCP, pairs of proxies and Signet side by side, on nodes made of network namespaces.
#[derive(Parser)]
struct Arguments {
    /// Where tables, charts and bench.json go
    #[arg(long)]
    output: PathBuf,
    /// Print one JSON array instead of tables
    #[arg(long)]
    json: bool,
    /// How often everything is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each load counts
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// So many idle connections, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
    idle: Vec<usize>,
    /// Only measures whose names contain one of these, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these contenders, separated by commas
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(report) if report.failures.is_empty() => ExitCode::SUCCESS,
        Ok(report) => {
            report.failures.iter().for_each(|failure| eprintln!("signet-bench: {failure}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("signet-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<Report> {
    let Arguments { output, json, rounds, seconds, mut idle, only, contenders } = arguments;
    idle.sort_unstable();
    let window = Duration::try_from_secs_f64(seconds)?;
    let report = bench::run(&Options { rounds, window, idle, only, contenders, output })?;
    println!("{}", if json { report.json() } else { report.overview() });
    Ok(report)
}
