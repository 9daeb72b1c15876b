//! signet-probe: the client and the server that the end-to-end tests run inside pods.

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Parser, Subcommand};
use signet_testkit::probe::{Answer, Kind, Target, abort, crowd, dial, health, hold, idle, serve};
use tokio::runtime::{Builder, Runtime};

/// Test client and server.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Greets with what it sees of the client, then echoes; TCP and UDP.
    Serve {
        /// On all addresses.
        port: u16,
        /// Reset each connection when its client has half-closed.
        #[arg(long)]
        reset: bool,
    },
    /// Says by gRPC that it is healthy.
    Health {
        /// On all addresses.
        port: u16,
    },
    /// Connects once and prints a report.
    Dial {
        /// The destination.
        to: SocketAddr,
        /// How.
        #[arg(long, value_enum, default_value = "blocking")]
        kind: Kind,
        /// Bind to this address first.
        #[arg(long)]
        from: Option<SocketAddr>,
        /// Bind to this interface first.
        #[arg(long)]
        device: Option<String>,
        /// What to send.
        #[arg(long, default_value = "hello")]
        text: String,
    },
    /// Keeps one connection busy until it breaks.
    Hold {
        /// The destination.
        to: SocketAddr,
    },
    /// Resets a connection after its first echo.
    Abort {
        /// The destination.
        to: SocketAddr,
    },
    /// Keeps many connections busy, and makes those again that end.
    Crowd {
        /// The destination.
        to: SocketAddr,
        /// How many.
        count: usize,
        /// What goes to and fro.
        #[arg(long, default_value = "?")]
        text: String,
    },
    /// Keeps many connections silent.
    Idle {
        /// The destination.
        to: SocketAddr,
        /// How many.
        count: usize,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().role {
        Role::Serve { port, reset } => {
            let answer = if reset { Answer::Reset } else { Answer::Echo };
            runtime()?.block_on(serve(port, answer))?;
        }
        Role::Health { port } => runtime()?.block_on(health(port))?,
        Role::Dial { to, kind, from, device, text } => {
            println!("{}", serde_json::to_string(&dial(kind, &Target { to, from, device }, &text))?);
        }
        Role::Hold { to } => hold(to)?,
        Role::Abort { to } => abort(to)?,
        Role::Crowd { to, count, text } => runtime()?.block_on(crowd(to, count, &text))?,
        Role::Idle { to, count } => idle(to, count)?,
    }
    Ok(())
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}
