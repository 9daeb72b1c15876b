//! Bytes in one direction, as fast as they go.

use std::fmt::{self, Display, Formatter};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::ready::{Interest, Ready};
use super::window::Span;
use super::{Order, PATIENCE, STREAM_BUFFER_BYTES, Window, deal, open};

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

/// What all streams moved together within the window, or until the first byte after it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// All of them.
    pub bytes: u64,
    /// The window's length; longer where no byte came in it.
    pub seconds: f64,
    /// Processor time of the engines.
    pub cpu_seconds: f64,
}

/// Runs `streams` connections until the window closes.
///
/// # Errors
/// One of them could not be opened, or broke.
pub fn stream(to: SocketAddr, streams: usize, direction: Direction, window: &Window) -> Result<Flow> {
    let order = match direction {
        Direction::Upload => Order::Upload,
        Direction::Download => Order::Download,
    };
    let streams = (0..streams).map(|_| open(to, order)).collect::<Result<Vec<_>>>()?;
    let crew = deal(streams).into_iter().map(|hand| move |span| pump(hand, direction, span));
    let (moved, cpu_seconds) = window.open(crew.collect())?;
    let seconds = moved.iter().map(|moved| moved.seconds).fold(0.0, f64::max);
    Ok(Flow { bytes: moved.iter().map(|moved| moved.bytes).sum(), seconds, cpu_seconds })
}

/// What one thread's streams moved.
struct Moved {
    bytes: u64,
    seconds: f64,
}

/// Until the window closes. Where it was too short for any byte, the first ones after it tell.
fn pump(mut streams: Vec<TcpStream>, direction: Direction, span: Span) -> Result<Moved> {
    let (ready, mut events) = (Ready::new()?, Ready::events());
    for (number, stream) in streams.iter().enumerate() {
        stream.set_nonblocking(true)?;
        ready.watch(stream, direction.interest(), number)?;
    }
    let (mut buffer, mut bytes, mut now) = (vec![0; STREAM_BUFFER_BYTES], 0, Instant::now());
    while now < span.end || bytes == 0 {
        let deadline = if now < span.end { span.end } else { span.end + PATIENCE };
        if now >= deadline {
            return Err(Error::new(ErrorKind::TimedOut, "not one byte was moved"));
        }
        for number in ready.wait(&mut events, Some(deadline))? {
            let moved = direction.move_some(&mut streams[number], &mut buffer)?;
            if Instant::now() >= span.begin {
                bytes += moved as u64;
            }
        }
        now = Instant::now();
    }
    Ok(Moved { bytes, seconds: (now.max(span.end) - span.begin).as_secs_f64() })
}

impl Direction {
    fn interest(self) -> Interest {
        match self {
            Self::Upload => Interest::Write,
            Self::Download => Interest::Read,
        }
    }

    fn move_some(self, stream: &mut TcpStream, buffer: &mut [u8]) -> Result<usize> {
        let moved = match self {
            Self::Upload => stream.write(buffer),
            Self::Download => stream.read(buffer),
        };
        match moved {
            // The window's end is how it is meant to end; whatever ends it before is a failure.
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }
}
