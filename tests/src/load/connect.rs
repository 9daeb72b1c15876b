//! A new connection for every request.

use std::io::{Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::exchange::{Exchanges, Log, gather, receive};
use super::ready::{Interest, Ready};
use super::window::Span;
use super::{Order, PATIENCE, REQUEST_BYTES, RESPONSE_BYTES, Window, deal};

/// Opens a new connection for every request, `concurrency` at a time, and closes it when it has the answer.
///
/// # Errors
/// A connection could not be opened, or broke; or an answer did not come.
pub fn connect(to: SocketAddr, concurrency: usize, window: &Window) -> Result<Exchanges> {
    let hands = deal(vec![(); concurrency]);
    let crew = hands.into_iter().map(|hand| move |span| ask_anew(to, hand.len(), span));
    let (logs, cpu_seconds) = window.open(crew.collect())?;
    gather(logs, cpu_seconds)
}

/// One connection, from before `connect` to its answer.
struct Dialling {
    stream: TcpStream,
    since: Instant,
    phase: Phase,
}

#[derive(Clone, Copy)]
enum Phase {
    Connecting,
    /// The request is sent; so many bytes of the answer have yet to come.
    Asked(usize),
}

impl Dialling {
    fn start(to: SocketAddr, ready: &Ready, number: usize) -> Result<Self> {
        let since = Instant::now();
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
            _ => ready.watch(&socket, Interest::Write, number)?,
        }
        Ok(Self { stream: socket.into(), since, phase: Phase::Connecting })
    }

    /// Does what can be done now; the answer is complete.
    fn go_on(&mut self, ready: &Ready, number: usize) -> Result<bool> {
        let missing = match self.phase {
            Phase::Connecting => {
                self.stream.write_all(&FIRST_WORDS)?;
                ready.change(&self.stream, Interest::Read, number)?;
                RESPONSE_BYTES
            }
            Phase::Asked(missing) => missing - receive(&mut self.stream, missing)?,
        };
        self.phase = Phase::Asked(missing);
        Ok(missing == 0)
    }
}

fn ask_anew(to: SocketAddr, concurrency: usize, span: Span) -> Result<Log> {
    let (ready, mut events) = (Ready::new()?, Ready::events());
    let (mut log, mut under_way) = (Log::of(span), concurrency);
    let numbers = 0..concurrency;
    let start = |number| Dialling::start(to, &ready, number).map(Some);
    let mut dialling = numbers.map(start).collect::<Result<Vec<_>>>()?;
    while under_way > 0 {
        log.check_patience()?;
        for number in ready.wait(&mut events, Some(span.end + PATIENCE))? {
            let Some(one) = &mut dialling[number] else { continue };
            if !one.go_on(&ready, number)? {
                continue;
            }
            let now = Instant::now();
            log.answered(one.since, now);
            dialling[number] = if now < span.end { start(number)? } else { None };
            under_way -= usize::from(dialling[number].is_none());
        }
    }
    Ok(log)
}

/// What it is for, and the request.
const FIRST_WORDS: [u8; 1 + REQUEST_BYTES] = {
    let mut words = [0; 1 + REQUEST_BYTES];
    words[0] = Order::Exchange as u8;
    words
};
