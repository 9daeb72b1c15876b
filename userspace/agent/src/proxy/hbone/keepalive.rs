//! Notices a peer that is gone without a word: HTTP/2 pings, which unlike TCP keepalive also prove that its engine runs.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// The pings of one connection. Polled by whoever drives the connection, and ends with it.
pub(super) struct Keepalive {
    pings: PingPong,
    /// Until the next ping, or while one is out, until its answer is overdue.
    timer: Pin<Box<Sleep>>,
    awaiting: bool,
}

impl Keepalive {
    pub(super) fn new(pings: PingPong) -> Self {
        Self { pings, timer: Box::pin(sleep(INTERVAL)), awaiting: false }
    }

    /// Ready when a ping has not been answered in time. Errors of the connection are left to the connection.
    pub(super) fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.awaiting && self.pings.poll_pong(cx).is_ready() {
                self.wait(false, INTERVAL);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.awaiting {
                return Poll::Ready(());
            }
            // It fails on a connection that has ended, which its driver is about to learn.
            let _ = self.pings.send_ping(Ping::opaque());
            self.wait(true, PING_TIMEOUT);
        }
    }

    fn wait(&mut self, awaiting: bool, time: Duration) {
        self.awaiting = awaiting;
        self.timer.as_mut().reset(Instant::now() + time);
    }
}

/// Between an answer and the next ping (docs/hbone.md).
const INTERVAL: Duration = Duration::from_secs(10);

/// How long an answer may take (docs/hbone.md).
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(20);
