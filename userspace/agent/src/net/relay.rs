//! Moves bytes between two legs until both directions have ended.
//!
//! One task drives both directions, so a connection is one wake-up and no hand-over. Each direction holds at most one
//! chunk, and receives the next only when that is sent: the slower end's flow control reaches the faster one, and memory
//! stays bounded. An orderly end is passed on as one; anything else breaks both legs, because a truncated stream must
//! not look complete (RFC 9113 §8.5 asks the same of a CONNECT). It sets no deadline: an idle connection is a legal one.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;

use super::Leg;

/// Bytes that went each way. Updated while the relay runs so that views and failures see them.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From `a` to `b`.
    pub a_to_b: AtomicU64,
    /// From `b` to `a`.
    pub b_to_a: AtomicU64,
}

impl Traffic {
    /// `count` bytes went from `a` to `b` before the relay began.
    pub fn sent_early(&self, count: usize) {
        self.a_to_b.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// One of the two legs, as [`relay`] was given them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A leg broke. The other one has been reset.
#[derive(Debug, thiserror::Error)]
#[error("{action} failed: {source}")]
pub struct RelayError {
    /// Which leg broke.
    pub side: Side,
    /// What was being done with it.
    pub action: Action,
    /// How it broke.
    pub source: io::Error,
}

/// What a relay does with a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Receiving from it.
    Receive,
    /// Sending to it, or ending what is sent to it.
    Send,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Receive => "receiving",
            Self::Send => "sending",
        })
    }
}

/// Moves bytes both ways until both directions have ended; half-closes are passed on. Bounded memory.
///
/// Dropping the future resets both legs, and so does an error.
///
/// # Errors
/// Which side broke, and how.
pub async fn relay<C, A, B>(a: A, b: B, traffic: &Traffic) -> Result<(), RelayError>
where
    C: Buf + Default,
    A: Leg<C>,
    B: Leg<C>,
{
    relay_after(C::default(), a, b, traffic).await
}

/// [`relay`], where `first` has been received from `a` already.
///
/// # Errors
/// As [`relay`].
pub async fn relay_after<C, A, B>(first: C, mut a: A, mut b: B, traffic: &Traffic) -> Result<(), RelayError>
where
    C: Buf + Default,
    A: Leg<C>,
    B: Leg<C>,
{
    a.arm().map_err(|source| RelayError { side: Side::A, action: Action::Receive, source })?;
    b.arm().map_err(|source| RelayError { side: Side::B, action: Action::Receive, source })?;
    let mut relay = Relay { a_to_b: Direction::after(first), b_to_a: Direction::default(), turn: Side::B };
    match poll_fn(|cx| relay.poll(cx, &mut a, &mut b, traffic)).await {
        Ok(()) => {
            a.complete();
            b.complete();
        }
        Err(error) => {
            match error.side {
                Side::A => relay.a_to_b.finish(a, b, &traffic.a_to_b).await,
                Side::B => relay.b_to_a.finish(b, a, &traffic.b_to_a).await,
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Both directions.
struct Relay<C> {
    a_to_b: Direction<C>,
    b_to_a: Direction<C>,
    /// Who is received from first. A direction that never has to wait uses up the task's budget (tokio's cooperative
    /// scheduling), and the other one would starve if it always came second.
    turn: Side,
}

impl<C: Buf + Default> Relay<C> {
    fn poll<A: Leg<C>, B: Leg<C>>(
        &mut self,
        cx: &mut Context<'_>,
        a: &mut A,
        b: &mut B,
        traffic: &Traffic,
    ) -> Poll<Result<(), RelayError>> {
        self.turn = self.turn.other();
        for from in [self.turn, self.turn.other()] {
            let polled = match from {
                Side::A => self.a_to_b.poll(cx, a, b, &traffic.a_to_b),
                Side::B => self.b_to_a.poll(cx, b, a, &traffic.b_to_a),
            };
            if let Poll::Ready(Err(fault)) = polled {
                return Poll::Ready(Err(fault.on_the_way_from(from)));
            }
        }
        match (self.a_to_b.has_ended(), self.b_to_a.has_ended()) {
            (true, true) => Poll::Ready(Ok(())),
            (true, false) => broken(a.poll_broken(cx), Side::A),
            (false, true) => broken(b.poll_broken(cx), Side::B),
            (false, false) => Poll::Pending,
        }
    }
}

/// One direction: a chunk on its way, or the end.
#[derive(Default)]
struct Direction<C> {
    chunk: C,
    /// `chunk`, or what the leg has made of it, is on its way.
    sending: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Moving,
    Ending,
    Ended,
}

impl<C: Buf + Default> Direction<C> {
    fn after(first: C) -> Self {
        Self { sending: first.has_remaining(), chunk: first, phase: Phase::Moving }
    }

    fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    fn poll<F: Leg<C>, T: Leg<C>>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Fault>> {
        if self.phase == Phase::Moving {
            ready!(self.poll_move(cx, from, to, moved))?;
            self.phase = Phase::Ending;
        }
        if self.phase == Phase::Ending {
            ready!(to.poll_end(cx)).map_err(Fault::Sending)?;
            self.phase = Phase::Ended;
        }
        Poll::Ready(Ok(()))
    }

    /// Moves bytes until there are no more.
    fn poll_move<F: Leg<C>, T: Leg<C>>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Fault>> {
        loop {
            ready!(self.poll_send(cx, from, to, moved)).map_err(Fault::Sending)?;
            match from.poll_receive(cx).map_err(Fault::Receiving)? {
                Poll::Ready(Some(chunk)) => (self.chunk, self.sending) = (chunk, true),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    ready!(to.poll_lull(cx)).map_err(Fault::Sending)?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// `from` is broken: moves what it had sent before that, and lets it leave. Its end, if there is one, is not passed on.
    async fn finish<F: Leg<C>, T: Leg<C>>(mut self, mut from: F, mut to: T, moved: &AtomicU64) {
        if self.phase == Phase::Moving {
            let moving = poll_fn(|cx| self.poll_move(cx, &mut from, &mut to, moved));
            // How it fails now does not matter: the relay has its error.
            let _ = moving.await;
        }
        // Late means that the peer does not take it: it has had its chance.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, poll_fn(|cx| to.poll_flushed(cx))).await;
    }

    fn poll_send<F: Leg<C>, T: Leg<C>>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        moved: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        if !self.sending {
            return Poll::Ready(Ok(()));
        }
        let before = self.chunk.remaining();
        let outcome = to.poll_send(cx, &mut self.chunk);
        let sent = before - self.chunk.remaining();
        moved.fetch_add(sent as u64, Ordering::Relaxed);
        from.release(sent);
        if outcome.is_ready() {
            // What it was read into can be used again.
            (self.chunk, self.sending) = (C::default(), false);
        }
        outcome
    }
}

/// How a direction failed, before it is known which leg is which.
enum Fault {
    Receiving(io::Error),
    Sending(io::Error),
}

impl Fault {
    fn on_the_way_from(self, from: Side) -> RelayError {
        match self {
            Self::Receiving(source) => RelayError { side: from, action: Action::Receive, source },
            Self::Sending(source) => RelayError { side: from.other(), action: Action::Send, source },
        }
    }
}

fn broken(how: Poll<io::Error>, side: Side) -> Poll<Result<(), RelayError>> {
    how.map(|source| Err(RelayError { side, action: Action::Send, source }))
}

/// How long a failure may be kept back for the bytes before it.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
