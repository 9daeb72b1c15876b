//! Moves bytes between two legs until both directions have ended.
//!
//! One task drives both directions, so a connection is one wake-up and no hand-over. Each direction holds at most one
//! chunk, and receives the next only when that is sent: the slower end's flow control reaches the faster one, and memory
//! stays bounded. An orderly end is passed on as one; anything else breaks both legs, because a truncated stream must
//! not look complete (RFC 9113 §8.5 asks the same of a CONNECT). It sets no deadline: an idle connection is a legal one.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use tokio::time::Sleep;

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
/// The future ends with which side broke, and how. Dropping it resets both legs, and so does an error.
pub fn relay<C, A, B>(a: A, b: B, traffic: &Traffic) -> Relaying<'_, C, A, B>
where
    C: Buf + Default + Unpin,
    A: Leg<C>,
    B: Leg<C>,
{
    relay_after(C::default(), a, b, traffic)
}

/// [`relay`], where `first` has been received from `a` already.
pub fn relay_after<C, A, B>(first: C, a: A, b: B, traffic: &Traffic) -> Relaying<'_, C, A, B>
where
    C: Buf + Default + Unpin,
    A: Leg<C>,
    B: Leg<C>,
{
    let relay = Relay { a_to_b: Direction::after(first), b_to_a: Direction::default(), turn: Side::B };
    Relaying { a, b, relay, traffic, stage: Stage::Unarmed }
}

/// A relay under way. Written out instead of an `async fn`, which would hold each leg twice: there is one of these for every
/// connection, idle ones too.
#[must_use = "nothing moves until it is awaited"]
pub struct Relaying<'t, C, A, B> {
    a: A,
    b: B,
    relay: Relay<C>,
    traffic: &'t Traffic,
    stage: Stage,
}

enum Stage {
    Unarmed,
    Moving,
    Broken(Box<Broken>),
}

/// What is left to do when a leg has broken.
struct Broken {
    error: Option<RelayError>,
    /// Since everything is moved that comes before the failure.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<C, A, B> Future for Relaying<'_, C, A, B>
where
    C: Buf + Default + Unpin,
    A: Leg<C>,
    B: Leg<C>,
{
    type Output = Result<(), RelayError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                Stage::Unarmed => {
                    arm::<C, A>(&mut this.a, Side::A)?;
                    arm::<C, B>(&mut this.b, Side::B)?;
                    this.stage = Stage::Moving;
                }
                Stage::Moving => match ready!(this.relay.poll(cx, &mut this.a, &mut this.b, this.traffic)) {
                    Ok(()) => {
                        this.a.complete();
                        this.b.complete();
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) => {
                        this.stage = Stage::Broken(Box::new(Broken { error: Some(error), deadline: None }));
                    }
                },
                Stage::Broken(broken) => {
                    let Some(error) = &broken.error else { return Poll::Pending };
                    let Relay { a_to_b, b_to_a, .. } = &mut this.relay;
                    let (a, b, deadline) = (&mut this.a, &mut this.b, &mut broken.deadline);
                    match error.side {
                        Side::A => ready!(a_to_b.poll_finish(cx, a, b, &this.traffic.a_to_b, deadline)),
                        Side::B => ready!(b_to_a.poll_finish(cx, b, a, &this.traffic.b_to_a, deadline)),
                    }
                    return Poll::Ready(broken.error.take().map_or(Ok(()), Err));
                }
            }
        }
    }
}

fn arm<C, L: Leg<C>>(leg: &mut L, side: Side) -> Result<(), RelayError> {
    leg.arm().map_err(|source| RelayError { side, action: Action::Receive, source })
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
    fn poll_finish<F: Leg<C>, T: Leg<C>>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        moved: &AtomicU64,
        deadline: &mut Option<Pin<Box<Sleep>>>,
    ) -> Poll<()> {
        if self.phase == Phase::Moving {
            // How it fails now does not matter: the relay has its error.
            let _ = ready!(self.poll_move(cx, from, to, moved));
            self.phase = Phase::Ended;
        }
        // Late means that the peer does not take it: it has had its chance.
        let deadline = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(FLUSH_TIMEOUT)));
        match to.poll_flushed(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => deadline.as_mut().poll(cx),
        }
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
