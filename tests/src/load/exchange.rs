//! Small requests and their answers, on connections that stay; and how latencies are gathered and told.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::ready::{Interest, Ready};
use super::window::Span;
use super::{Order, PATIENCE, REQUEST_BYTES, RESPONSE_BYTES, Window, deal, first_exchange, open};

/// What came of a load of requests within the window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exchanges {
    /// All answered requests.
    pub count: u64,
    /// The window's length.
    pub seconds: f64,
    /// Median time from request to answer, in microseconds; with a new connection, from before `connect`.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
    /// 99.9th percentile of the same.
    pub p999_us: f64,
    /// Processor time of the engines.
    pub cpu_seconds: f64,
}

/// Sends one request after the other on each of `connections`.
///
/// # Errors
/// A connection could not be opened, or broke; or an answer did not come.
pub fn request(to: SocketAddr, connections: usize, window: &Window) -> Result<Exchanges> {
    let opened = (0..connections).map(|_| {
        let mut stream = open(to, Order::Exchange)?;
        first_exchange(&mut stream)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    let hands = deal(opened.collect::<Result<Vec<_>>>()?);
    let crew = hands.into_iter().map(|hand| move |span| ask_again(hand, span));
    let (logs, cpu_seconds) = window.open(crew.collect())?;
    gather(logs, cpu_seconds)
}

/// One connection and the request under way on it.
struct Asking {
    stream: TcpStream,
    missing: usize,
    since: Instant,
}

impl Asking {
    fn ask(&mut self, now: Instant) -> Result<()> {
        (self.missing, self.since) = (RESPONSE_BYTES, now);
        self.stream.write_all(&[0; REQUEST_BYTES])
    }

    /// Takes what has come of the answer; it is complete.
    fn receive(&mut self) -> Result<bool> {
        self.missing -= receive(&mut self.stream, self.missing)?;
        Ok(self.missing == 0)
    }
}

fn ask_again(streams: Vec<TcpStream>, span: Span) -> Result<Log> {
    let (ready, mut events) = (Ready::new()?, Ready::events());
    let (mut log, mut under_way) = (Log::of(span), streams.len());
    let mut asking = Vec::with_capacity(streams.len());
    for stream in streams {
        ready.watch(&stream, Interest::Read, asking.len())?;
        asking.push(Asking { stream, missing: 0, since: span.begin });
    }
    for one in &mut asking {
        one.ask(Instant::now())?;
    }
    while under_way > 0 {
        log.check_patience()?;
        for number in ready.wait(&mut events, Some(span.end + PATIENCE))? {
            let one = &mut asking[number];
            if one.receive()? {
                let now = Instant::now();
                log.answered(one.since, now);
                if now < span.end {
                    one.ask(now)?;
                } else {
                    under_way -= 1;
                }
            }
        }
    }
    Ok(log)
}

/// Up to `missing` bytes of an answer; none where the socket was not ready after all.
pub(super) fn receive(stream: &mut TcpStream, missing: usize) -> Result<usize> {
    match stream.read(&mut [0; RESPONSE_BYTES][..missing]) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// What one thread saw.
#[derive(Debug)]
pub(super) struct Log {
    /// Of the answers within the window.
    nanoseconds: Vec<u32>,
    /// Of those that came after it: they tell of a contender that answers nothing in so short a time.
    late: Vec<u32>,
    last: Instant,
    span: Span,
}

impl Log {
    pub(super) fn of(span: Span) -> Self {
        // The kernel gives pages for what is used of it only.
        let nanoseconds = Vec::with_capacity(ANSWERS);
        Self { nanoseconds, late: Vec::new(), last: span.begin, span }
    }

    pub(super) fn answered(&mut self, since: Instant, now: Instant) {
        // Four seconds and more are all the same.
        let nanoseconds = u32::try_from((now - since).as_nanos()).unwrap_or(u32::MAX);
        self.last = now;
        if self.span.holds(now) {
            self.nanoseconds.push(nanoseconds);
        } else if now >= self.span.end {
            self.late.push(nanoseconds);
        }
    }

    pub(super) fn check_patience(&self) -> Result<()> {
        match Instant::now() < self.span.end + PATIENCE {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::TimedOut, "an answer has not come")),
        }
    }
}

pub(super) fn gather(logs: Vec<Log>, cpu_seconds: f64) -> Result<Exchanges> {
    let in_window: Vec<u32> = logs.iter().flat_map(|log| &log.nanoseconds).copied().collect();
    let span = logs.first().map(|log| log.span).ok_or(ErrorKind::InvalidInput)?;
    if !in_window.is_empty() {
        return Ok(summarise(in_window, span.seconds(), cpu_seconds));
    }
    let late: Vec<u32> = logs.iter().flat_map(|log| &log.late).copied().collect();
    let last = logs.iter().map(|log| log.last).max().unwrap_or(span.end);
    match late.is_empty() {
        true => Err(Error::new(ErrorKind::TimedOut, "not one request was answered")),
        false => Ok(summarise(late, (last - span.begin).as_secs_f64(), cpu_seconds)),
    }
}

/// At least one.
fn summarise(mut nanoseconds: Vec<u32>, seconds: f64, cpu_seconds: f64) -> Exchanges {
    nanoseconds.sort_unstable();
    let quantile = |part: f64| {
        let rank = (nanoseconds.len() as f64 * part) as usize;
        f64::from(nanoseconds[rank.min(nanoseconds.len() - 1)]) / 1_000.0
    };
    Exchanges {
        count: nanoseconds.len() as u64,
        seconds,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        p999_us: quantile(0.999),
        cpu_seconds,
    }
}

/// More than a thread sees in ten seconds.
const ANSWERS: usize = 1 << 22;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn latencies_are_ranked_over_all_answers_of_the_window() {
        let nanoseconds = (1..=1000).rev().map(|n| n * 1_000).collect();
        let exchanges = summarise(nanoseconds, 2.0, 0.5);
        assert_eq!((exchanges.count, exchanges.seconds, exchanges.cpu_seconds), (1000, 2.0, 0.5));
        assert_eq!((exchanges.p50_us, exchanges.p99_us, exchanges.p999_us), (501.0, 991.0, 1000.0));
    }

    #[test]
    fn answers_outside_of_the_window_do_not_count() {
        let log = log(Instant::now(), &[(0, 5), (8, 12), (15, 25)]);
        let exchanges = gather(vec![log], 0.0).unwrap();
        assert_eq!((exchanges.count, exchanges.p50_us), (1, 4_000.0));
    }

    #[test]
    fn a_window_too_short_for_any_answer_is_told_by_the_first_ones_after_it() {
        let zero = Instant::now();
        let exchanges = gather(vec![log(zero, &[(0, 5)]), log(zero, &[(15, 30)])], 0.0).unwrap();
        assert_eq!((exchanges.count, exchanges.p50_us, exchanges.seconds), (1, 15_000.0, 0.020));
    }

    #[test]
    fn a_load_that_was_never_answered_is_a_failure() {
        assert_eq!(gather(vec![log(Instant::now(), &[])], 0.0).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    /// Of answers from and to so many milliseconds; the window is from 10 to 20.
    fn log(zero: Instant, answers: &[(u64, u64)]) -> Log {
        let at = |milliseconds| zero + Duration::from_millis(milliseconds);
        let mut log = Log::of(Span::of(at(10), Duration::from_millis(10)));
        answers.iter().for_each(|(since, now)| log.answered(at(*since), at(*now)));
        log
    }
}
