//! `signet-load`: the benchmark's load generator and the server it talks to.
//!
//! One program for every measure and every contender, so that two figures differ by what lies between client and server
//! and by nothing else. It knows no contender, measures one [`Window`] after a warm-up, and prints one line of JSON.
//! The first byte of a connection tells the server what it is for. It does not look for a machine's limit: one process
//! on the machine that also runs everything measured takes its share of the same processors.

mod exchange;
mod serve;
mod stream;

pub use exchange::{Exchanges, connect, idle, request};
pub use serve::serve;
pub use stream::{Direction, Flow, stream};

use std::io::Result;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The time in which things count.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    begin: Instant,
    end: Instant,
}

impl Window {
    /// Opens after [`WARM_UP`], for `length`.
    #[must_use]
    pub fn opening_now(length: Duration) -> Self {
        let begin = Instant::now() + WARM_UP;
        Self { begin, end: begin + length }
    }

    fn seconds(self) -> f64 {
        (self.end - self.begin).as_secs_f64()
    }

    fn holds(self, at: Instant) -> bool {
        at >= self.begin && at < self.end
    }
}

/// Lets this process open as many sockets as it may.
///
/// # Errors
/// The kernel refuses.
pub fn raise_file_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(Into::into)
}

async fn open(to: SocketAddr, order: Order) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[order as u8]).await?;
    Ok(stream)
}

/// What a connection is for: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Order {
    /// The client sends until it closes.
    Upload = b'u',
    /// The server sends until the client closes.
    Download = b'd',
    /// Requests of [`REQUEST_BYTES`], answered by [`RESPONSE_BYTES`] each.
    Exchange = b'e',
}

impl Order {
    fn of(byte: u8) -> Option<Self> {
        [Self::Upload, Self::Download, Self::Exchange].into_iter().find(|order| *order as u8 == byte)
    }
}

/// Slow start and the first handshakes are over after this.
const WARM_UP: Duration = Duration::from_millis(200);
/// A `GET` with a few headers.
const REQUEST_BYTES: usize = 128;
/// A small answer with its headers.
const RESPONSE_BYTES: usize = 512;
/// Larger ones make no difference on a veth link.
const STREAM_BUFFER_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_knows_every_order_a_client_can_give() {
        for order in [Order::Upload, Order::Download, Order::Exchange] {
            assert_eq!(Order::of(order as u8), Some(order));
        }
        assert_eq!(Order::of(b'G'), None);
    }
}
