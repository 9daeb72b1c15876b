//! A crowd of connections that are never idle, each made again where it ends: who watches it sees what a change of the
//! engine does to live connections, and that none of them is left hanging.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// How the crowd is; a line of JSON each time that something of it has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crowd {
    /// Connections on which the last echo came back.
    pub open: usize,
    /// Those that have ended so far, however: reset, or closed by the other end.
    pub lost: usize,
    /// Those on which nothing came back and nothing ended within [`PATIENCE`].
    pub stuck: usize,
}

/// What the members count together.
#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    lost: AtomicUsize,
    stuck: AtomicUsize,
}

/// Keeps `count` connections on which `text` goes to and fro, until killed. One that ends is made again, for as long as it
/// takes.
///
/// # Errors
/// The result cannot be written.
pub async fn crowd(to: SocketAddr, count: usize, text: &str) -> Result<()> {
    let counts = Arc::new(Counts::default());
    let mut members = JoinSet::new();
    for _ in 0..count {
        members.spawn(member(to, text.as_bytes().into(), counts.clone()));
    }
    let mut told = Crowd::default();
    let mut ticks = interval(TOLD_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = counts.read();
        if now != told {
            println!("{}", serde_json::to_string(&now)?);
            told = now;
        }
    }
}

impl Counts {
    fn read(&self) -> Crowd {
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Crowd { open: read(&self.open), lost: read(&self.lost), stuck: read(&self.stuck) }
    }
}

async fn member(to: SocketAddr, text: Box<[u8]>, counts: Arc<Counts>) {
    loop {
        // Refused as long as there is no engine: what counts is that it is served in the end.
        if let Ok(Ok(connection)) = timeout(PATIENCE, greeted(to, &text)).await {
            counts.open.fetch_add(1, Ordering::Relaxed);
            let end = converse(connection, &text).await;
            counts.open.fetch_sub(1, Ordering::Relaxed);
            let is_stuck = end.kind() == ErrorKind::TimedOut;
            let count = if is_stuck { &counts.stuck } else { &counts.lost };
            count.fetch_add(1, Ordering::Relaxed);
        }
        sleep(BETWEEN_ATTEMPTS).await;
    }
}

async fn greeted(to: SocketAddr, text: &[u8]) -> Result<BufReader<TcpStream>> {
    let mut connection = BufReader::with_capacity(256, TcpStream::connect(to).await?);
    if connection.read_until(b'\n', &mut Vec::new()).await? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    echo(&mut connection, text).await?;
    Ok(connection)
}

/// Until it ends; why.
async fn converse(mut connection: BufReader<TcpStream>, text: &[u8]) -> Error {
    let mut next = Instant::now();
    loop {
        next += BETWEEN_ECHOES;
        tokio::time::sleep_until(next).await;
        match timeout(PATIENCE, echo(&mut connection, text)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => return ErrorKind::Other.into(),
            Ok(Err(error)) => return error,
            Err(_) => return ErrorKind::TimedOut.into(),
        }
    }
}

async fn echo(connection: &mut BufReader<TcpStream>, text: &[u8]) -> Result<()> {
    connection.get_mut().write_all(text).await?;
    let mut answer = vec![0; text.len()];
    connection.read_exact(&mut answer).await?;
    if answer == text { Ok(()) } else { Err(Error::other("something else came back")) }
}

/// Longer than an engine may take to drain.
const PATIENCE: Duration = Duration::from_secs(20);
const BETWEEN_ECHOES: Duration = Duration::from_secs(2);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(200);
const TOLD_EVERY: Duration = Duration::from_millis(200);
