//! Small requests and their answers: on connections that stay, on a new connection each, and then none at all.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Order, REQUEST_BYTES, RESPONSE_BYTES, Window, open};

/// What came of a load of requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exchanges {
    /// All answered requests, the warm-up included.
    pub count: u64,
    /// Within the window.
    pub per_second: f64,
    /// Median time from request to answer, in microseconds; with a new connection, from before `connect`.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
}

/// Sends one request after the other on each of `connections`.
///
/// # Errors
/// A connection could not be opened, or broke; or nothing was answered.
pub async fn request(to: SocketAddr, connections: usize, window: Window) -> Result<Exchanges> {
    gather((0..connections).map(|_| client(to, Connections::Kept, window)).collect(), window).await
}

/// Opens a new connection for every request, `concurrency` at a time.
///
/// # Errors
/// A connection could not be opened, or broke; or nothing was answered.
pub async fn connect(to: SocketAddr, concurrency: usize, window: Window) -> Result<Exchanges> {
    gather((0..concurrency).map(|_| client(to, Connections::New, window)).collect(), window).await
}

/// Opens `count` connections, exchanges once on each, prints `open <n>` and leaves them idle until killed.
///
/// # Errors
/// A connection could not be opened, or broke.
pub async fn idle(to: SocketAddr, count: usize) -> Result<()> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = open(to, Order::Exchange).await?;
        exchange(&mut stream).await?;
        connections.push(stream);
    }
    println!("open {}", connections.len());
    std::future::pending().await
}

async fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[0; REQUEST_BYTES]).await?;
    stream.read_exact(&mut [0; RESPONSE_BYTES]).await.map(drop)
}

#[derive(Clone, Copy, Debug)]
enum Connections {
    Kept,
    New,
}

async fn client(to: SocketAddr, connections: Connections, window: Window) -> Result<Log> {
    let mut log = Log { count: 0, nanoseconds: Vec::new(), window };
    let ended = match connections {
        Connections::Kept => timeout_at(window.end, ask_again(to, &mut log)).await,
        Connections::New => timeout_at(window.end, ask_anew(to, &mut log)).await,
    };
    // The window's end is how it is meant to end; whatever ends it before is a failure.
    match ended {
        Ok(broken) => broken.map(|()| log),
        Err(_elapsed) => Ok(log),
    }
}

async fn ask_again(to: SocketAddr, log: &mut Log) -> Result<()> {
    let mut stream = open(to, Order::Exchange).await?;
    loop {
        let from = Instant::now();
        exchange(&mut stream).await?;
        log.answered(from);
    }
}

async fn ask_anew(to: SocketAddr, log: &mut Log) -> Result<()> {
    loop {
        let from = Instant::now();
        exchange(&mut open(to, Order::Exchange).await?).await?;
        log.answered(from);
    }
}

async fn gather(mut clients: JoinSet<Result<Log>>, window: Window) -> Result<Exchanges> {
    let (mut count, mut nanoseconds) = (0, Vec::new());
    while let Some(log) = clients.join_next().await {
        let log = log.map_err(Error::other)??;
        count += log.count;
        nanoseconds.extend(log.nanoseconds);
    }
    summarise(count, nanoseconds, window.seconds())
}

/// What one client saw.
#[derive(Debug)]
struct Log {
    count: u64,
    /// Of the answers within the window.
    nanoseconds: Vec<u32>,
    window: Window,
}

impl Log {
    fn answered(&mut self, from: Instant) {
        let now = Instant::now();
        self.count += 1;
        if self.window.holds(now) {
            // Four seconds and more are all the same.
            self.nanoseconds.push(u32::try_from((now - from).as_nanos()).unwrap_or(u32::MAX));
        }
    }
}

fn summarise(count: u64, mut nanoseconds: Vec<u32>, seconds: f64) -> Result<Exchanges> {
    nanoseconds.sort_unstable();
    let quantile = |part: f64| {
        let rank = (nanoseconds.len() as f64 * part) as usize;
        let value = nanoseconds.get(rank.min(nanoseconds.len().checked_sub(1)?))?;
        Some(f64::from(*value) / 1_000.0)
    };
    let (Some(p50_us), Some(p99_us)) = (quantile(0.5), quantile(0.99)) else {
        return Err(Error::new(ErrorKind::TimedOut, "not one request was answered"));
    };
    Ok(Exchanges { count, per_second: nanoseconds.len() as f64 / seconds, p50_us, p99_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_ranked_over_all_answers_of_the_window() {
        let nanoseconds = (1..=100).rev().map(|n| n * 1_000).collect();
        let exchanges = summarise(130, nanoseconds, 2.0).unwrap();
        assert_eq!(exchanges, Exchanges { count: 130, per_second: 50.0, p50_us: 51.0, p99_us: 100.0 });
    }

    #[test]
    fn a_load_that_was_never_answered_is_a_failure() {
        assert_eq!(summarise(3, Vec::new(), 1.0).unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
