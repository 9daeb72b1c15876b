//! `signet-load`: the benchmark's load generator and the server it talks to.
//!
//! One program for every measure and every contender, so that two figures differ by what lies between client and server
//! and by nothing else. It knows no contender, measures one [`Window`] after a warm-up, and prints one line of JSON.
//! The first byte of a connection tells the server what it is for. Client and server take their share of the processors
//! on which everything measured runs too, so both are one epoll loop per core without allocations, locks that anybody
//! waits for, or tasks: what they cost is in every contender's figures alike. It does not look for a machine's limit.

mod connect;
mod exchange;
mod handshake;
mod idle;
mod issue;
mod ready;
mod serve;
mod stream;
mod window;

pub use connect::connect;
pub use exchange::{Exchanges, request};
pub use handshake::handshake;
pub use idle::idle;
pub use issue::issue;
pub use serve::serve;
pub use stream::{Direction, Flow, stream};
pub use window::Window;

use std::io::{Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process, and what it starts, open as many files as ten thousand connections through a proxy need, or as many as
/// the machine allows; returns how many.
///
/// # Errors
/// The kernel refuses.
pub fn raise_file_limit() -> Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Raising the hard limit takes CAP_SYS_RESOURCE.
    let wanted = most.max(FILES);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
        return Ok(wanted);
    }
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// How many threads work at `things`: one per core at most.
fn threads(things: usize) -> usize {
    things.min(cores()).max(1)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Deals `things` to as many hands as there are [`threads`], like cards.
fn deal<T>(things: Vec<T>) -> Vec<Vec<T>> {
    let hands = threads(things.len());
    let mut dealt: Vec<Vec<T>> = (0..hands).map(|_| Vec::new()).collect();
    for (at, thing) in things.into_iter().enumerate() {
        dealt[at % hands].push(thing);
    }
    dealt
}

/// Opens a connection and says what it is for.
fn open(to: SocketAddr, order: Order) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[order as u8])?;
    Ok(stream)
}

/// One request and its answer, in a blocking way: whatever a first request has to wait for is over after it.
fn first_exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[0; REQUEST_BYTES])?;
    stream.read_exact(&mut [0; RESPONSE_BYTES])
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

/// No answer takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(20);
/// A `GET` with a few headers.
const REQUEST_BYTES: usize = 128;
/// A small answer with its headers.
const RESPONSE_BYTES: usize = 512;
/// Larger ones make no difference on a veth link.
const STREAM_BUFFER_BYTES: usize = 128 * 1024;
/// A proxy holds two for each of ten thousand connections, and some for itself.
const FILES: u64 = 65_536;

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

    #[test]
    fn things_are_dealt_evenly_to_no_more_hands_than_cores() {
        let dealt = deal((0..64).collect::<Vec<_>>());
        assert_eq!(dealt.len(), cores().min(64));
        assert_eq!(dealt.iter().map(Vec::len).sum::<usize>(), 64);
        let sizes = || dealt.iter().map(Vec::len);
        assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        assert_eq!(deal(vec![1]).len(), 1);
    }
}
