//! Carries a port of the real machine's loopback to an address inside a network namespace: the command
//! `signet-cluster forward`, by which kubectl and helm reach the API server from any shell.
//!
//! It listens before it enters the namespace: sockets stay where they were made. It relays bytes and knows no TLS.

use std::convert::Infallible;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpStream};

/// Listens, says where on standard output, and relays until it is killed.
///
/// # Errors
/// It cannot listen, or enter the namespace.
pub fn run(netns: &Path, to: SocketAddr) -> Result<Infallible> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    listener.set_nonblocking(true)?;
    let file = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
    setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", netns.display()))?;
    println!("{LISTENS} {}", listener.local_addr()?);
    // One thread: it is the one that has entered the namespace.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(accept(listener, to))
}

async fn accept(listener: std::net::TcpListener, to: SocketAddr) -> Result<Infallible> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(relay(client, to));
    }
}

/// A side that fails ends the connection, and the client says so.
async fn relay(mut client: TcpStream, to: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(to).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}

/// Begins the line that names the address.
pub(crate) const LISTENS: &str = "listens on";
