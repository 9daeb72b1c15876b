//! signet-load: the load generator that the benchmark runs inside pods.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use signet_testkit::load::{self, Direction, Window};
use signet_testkit::svid::Svid;

/// Load generator and its server.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Serves every kind of load until killed
    Serve {
        /// On all addresses
        port: u16,
    },
    /// Moves bytes as fast as they go
    Stream {
        /// The destination
        to: SocketAddr,
        /// How many connections
        streams: usize,
        /// Seen from the client
        #[arg(value_enum)]
        direction: Direction,
        #[command(flatten)]
        counted: Counted,
    },
    /// One request after the other on connections that stay
    Request {
        /// The destination
        to: SocketAddr,
        /// How many connections
        connections: usize,
        #[command(flatten)]
        counted: Counted,
    },
    /// A new connection for every request
    Connect {
        /// The destination
        to: SocketAddr,
        /// How many at a time
        concurrency: usize,
        #[command(flatten)]
        counted: Counted,
    },
    /// A handshake after the other, and nothing else
    Handshake {
        /// The destination
        to: SocketAddr,
        /// How many at a time
        concurrency: usize,
        /// JSON: `chain`, `key`, `roots`, each PEM
        svid: PathBuf,
        #[command(flatten)]
        counted: Counted,
    },
    /// Opens connections, exchanges once on each, and leaves them idle until killed
    Idle {
        /// The destination
        to: SocketAddr,
        /// How many connections
        count: usize,
    },
}

#[derive(Args)]
struct Counted {
    /// How long is measured, in seconds
    #[arg(long)]
    seconds: f64,
    /// The cgroup of an engine, whose processor time is told too
    #[arg(long = "engine")]
    engines: Vec<PathBuf>,
}

impl Counted {
    fn window(self) -> Result<Window> {
        Ok(Window::new(Duration::try_from_secs_f64(self.seconds)?, self.engines))
    }
}

fn main() -> Result<()> {
    load::raise_file_limit()?;
    match Arguments::parse().role {
        Role::Serve { port } => load::serve(port).context("cannot serve"),
        Role::Stream { to, streams, direction, counted } => {
            print(&load::stream(to, streams, direction, &counted.window()?)?)
        }
        Role::Request { to, connections, counted } => {
            print(&load::request(to, connections, &counted.window()?)?)
        }
        Role::Connect { to, concurrency, counted } => {
            print(&load::connect(to, concurrency, &counted.window()?)?)
        }
        Role::Handshake { to, concurrency, svid, counted } => {
            let text = std::fs::read(&svid).with_context(|| format!("cannot read {}", svid.display()))?;
            let svid: Svid = serde_json::from_slice(&text)?;
            print(&load::handshake(to, concurrency, &svid, &counted.window()?)?)
        }
        Role::Idle { to, count } => load::idle(to, count).context("cannot open them all"),
    }
}

fn print(result: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}
