//! Bytes in one direction, as fast as they go.

use std::fmt::{self, Display, Formatter};
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Order, STREAM_BUFFER_BYTES, Window, open};

/// Where the bytes go, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the client to the server.
    Upload,
    /// From the server to the client.
    Download,
}

impl Display for Direction {
    /// As the command line has it.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upload => "upload",
            Self::Download => "download",
        })
    }
}

/// What all streams moved together.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Flow {
    /// From the first to the last, the warm-up included.
    pub bytes: u64,
    /// Within the window.
    pub bytes_per_second: f64,
}

/// Runs `streams` connections until the window closes.
///
/// # Errors
/// One of them could not be opened, or broke.
pub async fn stream(to: SocketAddr, streams: usize, direction: Direction, window: Window) -> Result<Flow> {
    let mut running: JoinSet<Result<Moved>> = (0..streams).map(|_| one(to, direction, window)).collect();
    let mut sum = Moved::default();
    while let Some(moved) = running.join_next().await {
        let moved = moved.map_err(Error::other)??;
        sum.in_all += moved.in_all;
        sum.in_window += moved.in_window;
    }
    Ok(Flow { bytes: sum.in_all, bytes_per_second: sum.in_window as f64 / window.seconds() })
}

#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    in_all: u64,
    in_window: u64,
}

async fn one(to: SocketAddr, direction: Direction, window: Window) -> Result<Moved> {
    let order = match direction {
        Direction::Upload => Order::Upload,
        Direction::Download => Order::Download,
    };
    let mut stream = open(to, order).await?;
    let mut moved = Moved::default();
    // The window's end is how it is meant to end; whatever ends it before is a failure.
    match timeout_at(window.end, pump(&mut stream, direction, window, &mut moved)).await {
        Ok(broken) => broken.map(|()| moved),
        Err(_elapsed) => Ok(moved),
    }
}

async fn pump(stream: &mut TcpStream, direction: Direction, window: Window, moved: &mut Moved) -> Result<()> {
    let mut buffer = vec![0; STREAM_BUFFER_BYTES];
    loop {
        let bytes = match direction {
            Direction::Upload => stream.write(&buffer).await?,
            Direction::Download => stream.read(&mut buffer).await?,
        };
        if bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        moved.in_all += bytes as u64;
        if window.holds(Instant::now()) {
            moved.in_window += bytes as u64;
        }
    }
}
