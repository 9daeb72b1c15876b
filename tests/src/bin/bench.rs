//! signet-bench: what mTLS between two nodes costs on this machine; `cargo xtask bench` builds and starts it.
//!
//! The hidden subcommands are the load itself, which runs in the pods.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use signet_testkit::bench::{self, load};

/// Measures two pods on two nodes, directly and through Signet.
#[derive(Parser)]
struct Arguments {
    /// Two seconds for each figure instead of ten: to see that it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    inside: Option<Inside>,
}

#[derive(Subcommand)]
enum Inside {
    /// Answers requests
    #[command(hide = true)]
    Serve {
        /// Where
        listen: SocketAddr,
    },
    /// Sends requests
    #[command(hide = true)]
    Ask {
        /// Whom
        server: SocketAddr,
        /// For how long, in seconds
        seconds: u64,
        /// How many at a time
        clients: usize,
        /// A new connection for each
        #[arg(long)]
        reconnect: bool,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("signet-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.inside {
        None => bench::run(bench::Options { quick: arguments.quick, json: arguments.json }),
        Some(Inside::Serve { listen }) => load::serve(*listen),
        Some(Inside::Ask { server, seconds, clients, reconnect }) => {
            let answers = load::ask(*server, Duration::from_secs(*seconds), *clients, *reconnect)?;
            println!("{}", serde_json::to_string(&answers)?);
            Ok(())
        }
    }
}
