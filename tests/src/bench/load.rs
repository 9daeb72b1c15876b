//! The load: requests of 128 bytes, answers of 1 KiB, one at a time on each connection.
//!
//! A closed loop over plain sockets, the same program at both ends, so that what differs between two runs is the path.
//! It is no HTTP client: parsing would be measured too.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What a run of [`ask`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// Answers a second, over all connections.
    pub rate: f64,
    /// Median time from request to answer, in microseconds; with `reconnect`, from `connect`.
    pub p50: f64,
    /// The 99th percentile, in microseconds.
    pub p99: f64,
}

/// Answers requests until it is killed; a thread for each connection.
///
/// # Errors
/// It cannot listen.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer_all(stream));
    }
    Ok(())
}

fn answer_all(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut request, answer) = ([0; REQUEST], [b'a'; ANSWER]);
    loop {
        stream.read_exact(&mut request)?;
        stream.write_all(&answer)?;
    }
}

/// Asks `server` from `clients` threads for as long as told.
///
/// # Errors
/// A connection failed: a figure with failures in it means nothing.
pub fn ask(server: SocketAddr, lasting: Duration, clients: usize, reconnect: bool) -> Result<Answers> {
    let started = Instant::now();
    let asking = |_| thread::spawn(move || ask_in_a_row(server, started + lasting, reconnect));
    let threads: Vec<_> = (0..clients).map(asking).collect();
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().ok().context("a client panicked")??);
    }
    answers(times, started.elapsed())
}

fn ask_in_a_row(server: SocketAddr, until: Instant, reconnect: bool) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    let mut kept = None;
    while Instant::now() < until {
        let begun = Instant::now();
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => connect(server)?,
        };
        ask_once(&mut stream).with_context(|| format!("{server} did not answer"))?;
        times.push(begun.elapsed());
        kept = (!reconnect).then_some(stream);
    }
    Ok(times)
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask_once(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&[b'r'; REQUEST])?;
    stream.read_exact(&mut [0; ANSWER])
}

fn answers(mut times: Vec<Duration>, took: Duration) -> Result<Answers> {
    ensure!(!times.is_empty(), "no answer came");
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let count = u32::try_from(times.len()).context("more answers than a run can have")?;
    Ok(Answers { rate: f64::from(count) / took.as_secs_f64(), p50: at(50), p99: at(99) })
}

const REQUEST: usize = 128;
const ANSWER: usize = 1024;
/// Longer than any answer that would still make a figure.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_answered_with_and_without_reconnecting() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer_all(stream));
            }
        });
        for reconnect in [false, true] {
            let answers = ask(server, Duration::from_millis(50), 2, reconnect).unwrap();
            assert!(answers.rate > 0.0 && answers.p50 <= answers.p99, "{answers:?}");
        }
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = (1..=101).rev().map(Duration::from_micros).collect();
        let answers = answers(times, Duration::from_secs(1)).unwrap();
        assert!((answers.p50 - 51.0).abs() < 1e-6 && (answers.p99 - 100.0).abs() < 1e-6, "{answers:?}");
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_and_no_figure() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(ask(gone, Duration::from_millis(50), 1, false).is_err());
    }
}
