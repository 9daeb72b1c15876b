//! One leg of a relayed connection: a byte stream that can half-close, and that can end in failure.
//!
//! `AsyncRead` cannot lend the bytes it already has, nor say that a stream broke instead of ending, so the relay speaks
//! this trait instead. What the bytes travel in is the leg's choice: [`Block`] where both ends are sockets, or records
//! over one; [`Bytes`] where HTTP/2 is an end, which hands out what it has decoded without a copy and takes no less.
//!
//! Sockets are read into blocks that belong to the thread, not to the connection: an idle connection holds none, and a
//! busy one that is written out at once uses the same block over and over.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use crate::block::{self, Block};

/// One end of a relay, whose bytes travel in `C`. All polls are made by one task.
pub trait Leg<C = Bytes>: Unpin {
    /// From here on, however the leg ends before [`Leg::complete`], its peer must see a failure and not an end: on an
    /// error, when the relay is dropped, and where the kernel can do it, when the process dies.
    ///
    /// # Errors
    /// The leg is broken already.
    fn arm(&mut self) -> io::Result<()>;

    /// Both directions have ended in order: dropping the leg is no failure any more.
    fn complete(&mut self);

    /// The next bytes; `None` at the orderly end (FIN, END_STREAM). Never empty.
    ///
    /// # Errors
    /// The leg broke: what came before may be only a part.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<C>>>;

    /// `count` received bytes have reached the other leg: the peer may send as many more.
    fn release(&mut self, count: usize);

    /// Takes bytes from the front of `chunk`; ready when all of them are sent. Until then it is called again, also where
    /// nothing is left in `chunk`.
    ///
    /// # Errors
    /// The leg broke.
    fn poll_send(&mut self, cx: &mut Context<'_>, chunk: &mut C) -> Poll<io::Result<()>>;

    /// Nothing follows for now: sends what was kept back to travel with it, if there is any.
    ///
    /// # Errors
    /// The leg broke.
    fn poll_lull(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Passes the orderly end on (FIN, END_STREAM), after all that was sent.
    ///
    /// # Errors
    /// The leg broke.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when what was sent has left this leg's own buffers, as far as it can tell. Asked when the other leg broke, so
    /// that what arrived before the failure is not lost with it.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Ready when the leg broke. Asked while nothing more is received from it, so that nobody else would notice.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error>;
}

/// What a socket's bytes can be received into.
pub trait Received: Buf + Default + Unpin {
    /// The next bytes of `stream`; empty at its end.
    ///
    /// # Errors
    /// It broke.
    fn poll_from(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Self>>;
}

impl Received for Bytes {
    fn poll_from(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Self>> {
        let mut room = Room::borrow();
        ready!(poll_read_buf(Pin::new(stream), cx, &mut room.0))?;
        Poll::Ready(Ok(room.0.split().freeze()))
    }
}

impl Received for Block {
    fn poll_from(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Self>> {
        let mut block = Self::borrow();
        let mut room = ReadBuf::new(&mut block.room()[..block::CONTENT]);
        ready!(tokio::io::AsyncRead::poll_read(Pin::new(stream), cx, &mut room))?;
        let count = room.filled().len();
        block.fill(count);
        Poll::Ready(Ok(block))
    }
}

impl<C: Received> Leg<C> for TcpStream {
    fn arm(&mut self) -> io::Result<()> {
        arm(self)
    }

    fn complete(&mut self) {
        disarm(self);
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<C>>> {
        let received = ready!(C::poll_from(self, cx))?;
        Poll::Ready(Ok(received.has_remaining().then_some(received)))
    }

    fn release(&mut self, _: usize) {}

    fn poll_send(&mut self, cx: &mut Context<'_>, chunk: &mut C) -> Poll<io::Result<()>> {
        while chunk.has_remaining() {
            let sent = ready!(Pin::new(&mut *self).poll_write(cx, chunk.chunk()))?;
            chunk.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }

    /// At once: what the kernel took is on its way, unless the peer's window is closed.
    fn poll_flushed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// Never: a reset after the FIN is noticed by the next write, as on a connection without a relay.
    fn poll_broken(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
}

/// A leg that outlives its relay: where the relay ends in order, it can be used again.
impl<C, L: Leg<C>> Leg<C> for &mut L {
    fn arm(&mut self) -> io::Result<()> {
        (**self).arm()
    }
    fn complete(&mut self) {
        (**self).complete();
    }
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<C>>> {
        (**self).poll_receive(cx)
    }
    fn release(&mut self, count: usize) {
        (**self).release(count);
    }
    fn poll_send(&mut self, cx: &mut Context<'_>, chunk: &mut C) -> Poll<io::Result<()>> {
        (**self).poll_send(cx, chunk)
    }
    fn poll_lull(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (**self).poll_lull(cx)
    }
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (**self).poll_end(cx)
    }
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (**self).poll_flushed(cx)
    }
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        (**self).poll_broken(cx)
    }
}

/// From here on the socket is reset however it ends, by [`reset`], a drop or the process's death, until [`disarm`].
///
/// # Errors
/// It is broken already.
pub fn arm(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// The socket ends in order.
pub fn disarm(stream: &TcpStream) {
    // It fails on a closed descriptor only, and then there is nothing left to close in order.
    let _ = SockRef::from(stream).set_linger(None);
}

/// Closes a TCP socket with RST instead of FIN: its peer sees a failure, and what is still unsent is dropped.
pub fn reset(stream: TcpStream) {
    // It fails on a socket that is broken already, which its peer knows.
    let _ = arm(&stream);
}

/// Room to read [`Bytes`] into, on loan from the thread; its rest goes back when dropped.
struct Room(BytesMut);

impl Room {
    fn borrow() -> Self {
        let mut room = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        // Everything read from it has been written: use it from its beginning. Otherwise its rest will do, if there is one.
        if !room.try_reclaim(ROOM) && room.capacity() < ROOM / 4 {
            room.reserve(ROOM);
        }
        Self(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_ROOMS {
                spare.push(std::mem::take(&mut self.0));
            }
        });
    }
}

thread_local! {
    /// Rooms nobody reads into at the moment. Taken and given back by [`Room`] within one poll; ends with the thread.
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of one room, and so of the largest read: with the header of HTTP/2's frame (RFC 9113 §4.1), what records of a block hold.
/// Larger ones gain nothing (128 KiB to 1 MiB measured alike).
const ROOM: usize = block::CONTENT - 9;

/// Rooms a thread keeps. One poll borrows one at a time, so more than one is needed only after nested use.
const SPARE_ROOMS: usize = 2;
