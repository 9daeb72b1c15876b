//! One TLS connection as a leg: frames in records, and nothing else that is kept.
//!
//! A tunnel is at rest, or it carries one application connection. It rests again when both sides have sent END. However
//! else it ends, its socket's close, a reset or the engine's death, no END was sent, and so the peer takes it for the
//! failure that it is; it needs no frame, and what was sent before it arrives before it. Bytes of data are sealed from the
//! block they were received into and opened to the block they are sent from; a connection that has nothing under way holds
//! no block.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::frame::{FrameError, Mark};
use crate::block::Block;
use crate::mtls::{END_ROOM, Opened, RECORD, SecureStream, Session, UPDATE_ROOM, sealed};
use crate::net::Leg;

/// One authenticated connection between two Signets.
pub(crate) struct Tunnel {
    io: TcpStream,
    session: Session,
    /// Received and not opened yet: a part of a record, or what came behind an END. Empty at nearly all times.
    unread: Vec<u8>,
    /// Sealed and not sent yet.
    unsent: Block,
    sending: Half,
    receiving: Half,
    /// The peer serves nothing new.
    peer_leaves: bool,
}

/// Where one direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    /// Between two application connections.
    Resting,
    Moving,
    Ended,
}

/// A frame that is no data.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Its mark and content.
    Of(Mark, Vec<u8>),
    /// The peer has closed in order.
    Closed,
}

impl Tunnel {
    /// A tunnel at rest.
    #[must_use]
    pub(crate) fn new(stream: SecureStream<TcpStream>) -> Self {
        let (io, session, unread) = stream.into_parts();
        Self {
            io,
            session,
            unread,
            unsent: Block::default(),
            sending: Half::Resting,
            receiving: Half::Resting,
            peer_leaves: false,
        }
    }

    /// Nothing is under way: it can carry an application connection.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.sending == Half::Resting && self.receiving == Half::Resting && self.unsent.is_empty()
    }

    /// The calling worker's event loop has the socket from now on. Where there is no descriptor to be had for that, the former one's
    /// goes on telling of it.
    pub(crate) fn settle_here(&mut self) {
        let own = || {
            let io = std::net::TcpStream::from(self.io.as_fd().try_clone_to_owned()?);
            TcpStream::from_std(io)
        };
        if let Ok(io) = own() {
            self.io = io;
        }
    }

    /// The peer has said that it serves nothing new.
    pub(super) fn peer_leaves(&self) -> bool {
        self.peer_leaves
    }

    #[cfg(test)]
    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Something came, or the connection ended, since it was last read from. No system call: the runtime knows. Whoever
    /// asks is woken when that changes.
    pub(super) fn poll_disturbed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.unread.is_empty() {
            return Poll::Ready(());
        }
        self.io.poll_read_ready(cx).map(drop)
    }

    pub(super) fn note_leaving(&mut self) {
        self.peer_leaves = true;
    }

    /// What was begun came to nothing, and both sides know.
    pub(super) fn rest(&mut self) {
        (self.sending, self.receiving) = (Half::Resting, Half::Resting);
    }

    /// An application connection begins.
    pub(super) fn begin(&mut self) {
        (self.sending, self.receiving) = (Half::Moving, Half::Moving);
    }

    /// Seals a frame behind what is unsent already. There is room: at most a few small ones come together.
    pub(super) fn put(&mut self, mark: Mark, content: &[u8]) -> io::Result<()> {
        if self.unsent.is_empty() {
            self.unsent = Block::borrow();
        }
        let length = self.session.seal(content, Some(mark.byte()), self.unsent.room()).map_err(broken)?;
        self.unsent.fill(length);
        Ok(())
    }

    /// Sends what is sealed.
    pub(super) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.unsent.bytes()))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                sent => self.unsent.advance(sent),
            }
        }
        self.unsent.release();
        Poll::Ready(Ok(()))
    }

    /// The next frame, where none may be lost and no data is passed on.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Frame>> {
        let (mut wire, mut plain) = (Block::borrow(), Block::borrow());
        wire.append(&self.unread);
        loop {
            match self.session.open(wire.bytes(), plain.room()).map_err(broken)? {
                Opened::Incomplete => {
                    if ready!(self.poll_receive_wire(cx, &mut wire))? == 0 {
                        return Poll::Ready(Ok(Frame::Closed));
                    }
                }
                Opened::Control { record } => wire.advance(record),
                Opened::End => return Poll::Ready(Ok(Frame::Closed)),
                Opened::Application { record, content } => {
                    wire.advance(record);
                    self.keep(&wire);
                    let (mark, content) = marked(&plain.room()[..content])?;
                    return Poll::Ready(Ok(Frame::Of(mark, content.to_vec())));
                }
            }
        }
    }

    /// Opens data until there is no whole record, or the peer's END. Bytes go behind those that are in `plain`.
    fn open_data(&mut self, wire: &mut Block, plain: &mut Block) -> io::Result<()> {
        while self.receiving == Half::Moving {
            let (record, content) = match self.session.open(wire.bytes(), plain.room()).map_err(broken)? {
                Opened::Incomplete => return Ok(()),
                // The connection has ended, and the application's has not.
                Opened::End => return Err(ErrorKind::UnexpectedEof.into()),
                Opened::Control { record } => {
                    wire.advance(record);
                    continue;
                }
                Opened::Application { record, content } => (record, content),
            };
            wire.advance(record);
            match marked(&plain.room()[..content])? {
                (Mark::Data, data) => {
                    let length = data.len();
                    plain.fill(length);
                }
                (Mark::End, []) => self.receiving = Half::Ended,
                (Mark::Leaving, []) => self.peer_leaves = true,
                _ => return Err(invalid(FrameError::OutOfPlace)),
            }
        }
        Ok(())
    }

    /// Receives behind what is in `wire`. What is there is kept where nothing comes yet.
    fn poll_receive_wire(&mut self, cx: &mut Context<'_>, wire: &mut Block) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::new(wire.room());
        match Pin::new(&mut self.io).poll_read(cx, &mut room) {
            Poll::Ready(outcome) => {
                let count = room.filled().len();
                wire.fill(count);
                Poll::Ready(outcome.map(|()| count))
            }
            Poll::Pending => {
                self.keep(wire);
                Poll::Pending
            }
        }
    }

    fn keep(&mut self, wire: &Block) {
        if self.unread.len() != wire.remaining() || wire.remaining() > 0 {
            self.unread = wire.bytes().to_vec();
        }
    }

    /// `count` bytes of content can be sealed behind what is unsent.
    pub(super) fn has_room(&mut self, count: usize) -> bool {
        let records = count / RECORD + 1;
        self.unsent.is_empty() || self.unsent.room().len() >= count + records * sealed(0) + UPDATE_ROOM
    }

    /// Ready when `count` bytes of content can be sealed.
    fn poll_room(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<io::Result<()>> {
        if self.has_room(count) { Poll::Ready(Ok(())) } else { self.poll_sent(cx) }
    }
}

impl Leg<Block> for Tunnel {
    /// Nothing to do: an end without END is a failure by itself.
    fn arm(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn complete(&mut self) {
        self.rest();
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Block>>> {
        let (mut wire, mut plain) = (Block::borrow(), Block::borrow());
        wire.append(&self.unread);
        loop {
            self.open_data(&mut wire, &mut plain)?;
            if !plain.is_empty() || self.receiving != Half::Moving {
                self.keep(&wire);
                return Poll::Ready(Ok((!plain.is_empty()).then_some(plain)));
            }
            if ready!(self.poll_receive_wire(cx, &mut wire))? == 0 {
                return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// The kernel's window is the only flow control.
    fn release(&mut self, _: usize) {}

    fn poll_send(&mut self, cx: &mut Context<'_>, chunk: &mut Block) -> Poll<io::Result<()>> {
        if !chunk.is_empty() {
            ready!(self.poll_room(cx, chunk.remaining()))?;
            for content in chunk.bytes().chunks(RECORD) {
                self.put(Mark::Data, content)?;
            }
            chunk.release();
        }
        self.poll_sent(cx)
    }

    fn poll_lull(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sending == Half::Moving {
            ready!(self.poll_room(cx, 0))?;
            self.put(Mark::End, &[])?;
            self.sending = Half::Ended;
        }
        self.poll_sent(cx)
    }

    /// Ends without END, and waits until the peer has heard it: a close before that would be a reset, and would overtake what
    /// was sent, where the peer has sent something that nobody reads.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sent =
            ready!(self.poll_sent(cx)).and_then(|()| SockRef::from(&self.io).shutdown(Shutdown::Write));
        let (mut unheard, mut open) = (Block::borrow(), sent.is_ok());
        while open {
            let mut room = ReadBuf::new(unheard.room());
            let received = ready!(Pin::new(&mut self.io).poll_read(cx, &mut room));
            open = received.is_ok() && !room.filled().is_empty();
        }
        Poll::Ready(())
    }

    /// What comes meanwhile is kept, within bounds.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            if self.unread.len() > MAX_UNREAD {
                return Poll::Pending;
            }
            let mut wire = Block::borrow();
            wire.append(&self.unread);
            match ready!(self.poll_receive_wire(cx, &mut wire)) {
                Ok(0) => return Poll::Ready(ErrorKind::UnexpectedEof.into()),
                Ok(_) => self.keep(&wire),
                Err(error) => return Poll::Ready(error),
            }
        }
    }
}

/// At rest it says goodbye.
impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.is_at_rest() {
            return;
        }
        let mut end = [0; END_ROOM];
        if let Ok(length) = self.session.seal_end(&mut end) {
            // It fails where the peer has gone first: then there is nobody to be told.
            let _ = self.io.try_write(&end[..length]);
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("sending", &self.sending)
            .field("receiving", &self.receiving)
            .finish_non_exhaustive()
    }
}

/// The mark behind a record's content, and the content.
fn marked(content: &[u8]) -> io::Result<(Mark, &[u8])> {
    let (mark, content) = content.split_last().ok_or_else(|| invalid(FrameError::Malformed))?;
    Ok((Mark::of(*mark).ok_or_else(|| invalid(FrameError::OutOfPlace))?, content))
}

pub(super) fn invalid(error: FrameError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// Bytes that are kept of a peer that sends what nobody reads.
const MAX_UNREAD: usize = 64 * 1024;
