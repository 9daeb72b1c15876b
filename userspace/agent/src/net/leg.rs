//! One leg of a relayed connection: a byte stream that can half-close, and that can end in failure.
//!
//! `AsyncRead` cannot lend the bytes it already has, nor say that a stream broke instead of ending, so the relay speaks
//! this trait instead. Bytes travel as [`Bytes`]: what HTTP/2 has decoded reaches the socket without a copy, and what a
//! socket was read into is handed to HTTP/2 as it is.
//!
//! Sockets are read into blocks that belong to the thread, not to the connection: an idle connection holds none, and a
//! busy one that is written out at once uses the same block over and over.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// One end of a relay. All polls are made by one task.
pub trait Leg: Unpin {
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
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>>;

    /// `count` received bytes have reached the other leg: the peer may send as many more.
    fn release(&mut self, count: usize);

    /// Takes bytes from the front of `chunk`; ready when all of them are taken.
    ///
    /// # Errors
    /// The leg broke.
    fn poll_send(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>>;

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

impl Leg for TcpStream {
    fn arm(&mut self) -> io::Result<()> {
        SockRef::from(&*self).set_linger(Some(Duration::ZERO))
    }

    fn complete(&mut self) {
        // It fails on a closed descriptor only, and then there is nothing left to close in order.
        let _ = SockRef::from(&*self).set_linger(None);
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let mut block = Block::borrow();
        let received = ready!(poll_read_buf(Pin::new(self), cx, &mut *block))?;
        Poll::Ready(Ok((received > 0).then(|| block.split().freeze())))
    }

    fn release(&mut self, _: usize) {}

    fn poll_send(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>> {
        while !chunk.is_empty() {
            let sent = ready!(Pin::new(&mut *self).poll_write(cx, chunk))?;
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

/// Closes a TCP socket with RST instead of FIN: its peer sees a failure, and what is still unsent is dropped.
pub fn reset(stream: TcpStream) {
    // It fails on a socket that is broken already, which its peer knows.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Room to read into, on loan from the thread; its rest goes back when dropped.
struct Block(BytesMut);

impl Block {
    fn borrow() -> Self {
        let mut room = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        // Everything read from it has been written: use it from its beginning. Otherwise its rest will do, if there is one.
        if !room.try_reclaim(BLOCK) && room.capacity() < BLOCK / 4 {
            room.reserve(BLOCK);
        }
        Self(room)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_BLOCKS {
                spare.push(std::mem::take(&mut self.0));
            }
        });
    }
}

impl Deref for Block {
    type Target = BytesMut;

    fn deref(&self) -> &BytesMut {
        &self.0
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut BytesMut {
        &mut self.0
    }
}

thread_local! {
    /// Blocks nobody reads into at the moment. Taken and given back by [`Block`] within one poll; ends with the thread.
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of one block, and so of the largest read. Larger ones gain nothing (128 KiB to 1 MiB measured alike).
const BLOCK: usize = 128 * 1024;

/// Blocks a thread keeps. One poll borrows one at a time, so more than one is needed only after nested use.
const SPARE_BLOCKS: usize = 2;
