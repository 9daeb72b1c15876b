//! signet-load: the load generator that the benchmark runs inside pods.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde::Serialize;
use signet_testkit::load::{self, Direction, Window};

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
        /// How long is measured
        seconds: f64,
    },
    /// One request after the other on connections that stay
    Request {
        /// The destination
        to: SocketAddr,
        /// How many connections
        connections: usize,
        /// How long is measured
        seconds: f64,
    },
    /// A new connection for every request
    Connect {
        /// The destination
        to: SocketAddr,
        /// How many at a time
        concurrency: usize,
        /// How long is measured
        seconds: f64,
    },
    /// Opens connections, exchanges once on each, and leaves them idle until killed
    Idle {
        /// The destination
        to: SocketAddr,
        /// How many connections
        count: usize,
    },
}

fn main() -> Result<()> {
    load::raise_file_limit()?;
    tokio::runtime::Runtime::new()?.block_on(run(Arguments::parse().role))
}

async fn run(role: Role) -> Result<()> {
    let window =
        |seconds: f64| Ok::<_, anyhow::Error>(Window::opening_now(Duration::try_from_secs_f64(seconds)?));
    match role {
        Role::Serve { port } => load::serve(port).await?,
        Role::Stream { to, streams, direction, seconds } => {
            print(&load::stream(to, streams, direction, window(seconds)?).await?)?;
        }
        Role::Request { to, connections, seconds } => {
            print(&load::request(to, connections, window(seconds)?).await?)?;
        }
        Role::Connect { to, concurrency, seconds } => {
            print(&load::connect(to, concurrency, window(seconds)?).await?)?;
        }
        Role::Idle { to, count } => load::idle(to, count).await?,
    }
    Ok(())
}

fn print(result: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}
