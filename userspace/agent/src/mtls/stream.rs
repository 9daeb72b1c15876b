//! An authenticated connection as a byte stream, for what speaks HTTP/2 over it.
//!
//! It receives and sends up to a block at a time, many records in one system call. At rest it holds what was received and
//! not yet read, and nothing else: a part of a record, usually none.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use rustls::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::{END_ROOM, Opened, RECORD, Session, UPDATE_ROOM, sealed};
use crate::block::Block;

/// A byte stream sealed by a [`Session`].
///
/// Its end is an orderly one only after `close_notify`: a stream that was cut reads as `UnexpectedEof`.
pub struct SecureStream<IO> {
    io: IO,
    pub(super) session: Session,
    /// Received and not opened yet.
    received: Block,
    /// Opened and not read yet.
    opened: Block,
    /// Sealed and not sent yet.
    unsent: Block,
    read_closed: bool,
    write_closed: bool,
    /// More than a few bytes were received since the reader last waited.
    has_received: bool,
}

impl<IO> fmt::Debug for SecureStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecureStream").field("session", &self.session).finish_non_exhaustive()
    }
}

impl<IO> SecureStream<IO> {
    /// A finished handshake's stream, of which `rest` was received already.
    pub(super) fn new(io: IO, session: Session, rest: &[u8]) -> Self {
        let mut received = Block::default();
        if !rest.is_empty() {
            received = Block::borrow();
            received.append(rest);
        }
        let (opened, unsent) = (Block::default(), Block::default());
        Self {
            io,
            session,
            received,
            opened,
            unsent,
            read_closed: false,
            write_closed: false,
            has_received: false,
        }
    }

    /// The stream below, the keys, and what was received and not opened yet. Call it before anything is read or written.
    #[must_use]
    pub fn into_parts(self) -> (IO, Session, Vec<u8>) {
        (self.io, self.session, self.received.bytes().to_vec())
    }

    /// Opens every whole record that was received.
    fn open_received(&mut self) -> Result<(), Error> {
        let mut opened = Block::borrow();
        while !self.read_closed && !self.received.is_empty() {
            match self.session.open(self.received.bytes(), opened.room())? {
                Opened::Incomplete => break,
                Opened::Application { record, content } => {
                    self.received.advance(record);
                    opened.fill(content);
                }
                Opened::Control { record } => self.received.advance(record),
                Opened::End => self.read_closed = true,
            }
        }
        if self.received.is_empty() {
            self.received.release();
        }
        self.opened = opened;
        Ok(())
    }

    /// Seals as much of `data` as there is room for. The number of bytes that were taken.
    fn seal(&mut self, data: &[IoSlice<'_>]) -> Result<usize, Error> {
        self.unsent = Block::borrow();
        let mut gathered = Block::borrow();
        let (mut data, mut taken) = (Slices(data, 0), 0);
        while self.unsent.room().len() >= sealed(RECORD) + UPDATE_ROOM + END_ROOM {
            let content = data.next(RECORD, &mut gathered);
            if content.is_empty() {
                break;
            }
            let length = self.session.seal(content, None, self.unsent.room())?;
            taken += content.len();
            self.unsent.fill(length);
        }
        Ok(taken)
    }
}

/// What is left of some slices: the slices, and how much of the first one has been taken.
struct Slices<'a>(&'a [IoSlice<'a>], usize);

impl<'a> Slices<'a> {
    /// The next bytes, at most `most`: where one slice has so many, as they lie; otherwise gathered from several.
    fn next<'b>(&mut self, most: usize, gathered: &'b mut Block) -> &'b [u8]
    where
        'a: 'b,
    {
        if self.first().len() >= most {
            return self.take(most);
        }
        gathered.clear();
        while gathered.remaining() < most && !self.0.is_empty() {
            let part = self.take(most - gathered.remaining());
            gathered.append(part);
        }
        gathered.bytes()
    }

    /// At most `most` bytes of the first slice.
    fn take(&mut self, most: usize) -> &'a [u8] {
        let first = self.first();
        let part = &first[..first.len().min(most)];
        self.1 += part.len();
        if part.len() == first.len() {
            (self.0, self.1) = (&self.0[1..], 0);
        }
        part
    }

    fn first(&self) -> &'a [u8] {
        self.0.first().map_or(&[], |slice| &slice[self.1..])
    }
}

impl<IO: AsyncRead + Unpin> SecureStream<IO> {
    /// A block at a time: what was received goes its way while it is in the cache, before more is received. HTTP/2 would
    /// read until nothing comes, up to the windows of all streams, and only then would those who wait for it have their turn.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.has_received) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut next = Block::borrow();
        next.append(self.received.bytes());
        let mut room = ReadBuf::new(next.room());
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.has_received = count > FEW;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        next.fill(count);
        self.received = next;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> SecureStream<IO> {
    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.unsent.bytes()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.unsent.advance(sent),
            }
        }
        self.unsent.release();
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for SecureStream<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.opened.is_empty() && !this.read_closed {
            this.open_received().map_err(failure)?;
            if this.opened.is_empty() && !this.read_closed {
                this.opened.release();
                ready!(this.poll_receive(cx))?;
            }
        }
        let count = buffer.remaining().min(this.opened.remaining());
        buffer.put_slice(&this.opened.bytes()[..count]);
        this.opened.advance(count);
        if this.opened.is_empty() {
            this.opened.release();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for SecureStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    /// Takes more only when what was taken before is sent. What it has taken is sent at once, as far as that goes.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        let taken = self.seal(data).map_err(failure)?;
        // Pending is no reason to wait here: the rest goes with the next write, or the flush.
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        if !self.write_closed {
            let mut end = Block::borrow();
            let length = self.session.seal_end(end.room()).map_err(failure)?;
            end.fill(length);
            self.unsent = end;
            self.write_closed = true;
            ready!(self.poll_send(cx))?;
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn failure(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Bytes after which others have their turn: requests and answers are shorter.
const FEW: usize = 32 * 1024;
