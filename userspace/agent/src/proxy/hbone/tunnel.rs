//! One HTTP/2 stream as a byte stream.
//!
//! END_STREAM is the orderly end of a direction, as FIN is for TCP; everything else is a failure, and dropping a tunnel
//! before both directions have ended tells the peer so: RST_STREAM with CONNECT_ERROR, which it turns into a TCP reset
//! (RFC 9113 §8.5). Memory is bounded by flow control alone: nothing is sent beyond what the peer's windows and the
//! send buffer have room for, and the peer may send more only when what it sent has been passed on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::Leg;

use super::SEND_BUFFER;
use super::client::Claim;

/// A tunnel: one h2 stream as a byte stream. Shutdown sends END_STREAM; dropped before both directions have ended, it
/// resets the stream.
pub struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received, but not yet read; used by `AsyncRead` alone.
    unread: Bytes,
    sent_end: bool,
    received_end: bool,
    /// The client's place on its connection.
    _claim: Option<Claim>,
}

impl Tunnel {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, claim: Option<Claim>) -> Self {
        Self { send, receive, unread: Bytes::new(), sent_end: false, received_end: false, _claim: claim }
    }

    /// Room to send `wanted` bytes, or some of them.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(wanted);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failure(error))),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            }
        }
        Poll::Ready(Ok(wanted.min(self.send.capacity())))
    }

    fn send(&mut self, cx: &mut Context<'_>, part: Bytes, end: bool) -> io::Result<()> {
        self.send.send_data(part, end).map_err(|error| match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => failure(reason.into()),
            _ => failure(error),
        })
    }

    /// Why a stream that nobody ended does not take data any more.
    fn why_closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => failure(reason.into()),
            Poll::Ready(Err(error)) => failure(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }

    fn give_back(&mut self, count: usize) {
        // It fails when more is given back than was received, or on a stream that is gone with its window.
        let _ = self.receive.flow_control().release_capacity(count);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !(self.sent_end && self.received_end) {
            self.send.send_reset(Reason::CONNECT_ERROR);
        }
    }
}

impl Leg for Tunnel {
    /// Nothing to do: a stream without END_STREAM is a failure by itself.
    fn arm(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn complete(&mut self) {}

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(received) => return Poll::Ready(received.map(Some).map_err(failure)),
                None => {
                    self.received_end = true;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn release(&mut self, count: usize) {
        self.give_back(count);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>> {
        while !chunk.is_empty() {
            let room = ready!(self.poll_room(cx, chunk.len()))?;
            let part = chunk.split_to(room);
            self.send(cx, part, false)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_end {
            self.send(cx, Bytes::new(), true)?;
            self.sent_end = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.send.reserve_capacity(SEND_BUFFER);
        // The whole send buffer is free: nothing waits in it. A reset would drop what does.
        while self.send.capacity() < SEND_BUFFER {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
        Poll::Ready(())
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(failure(reason.into())),
            Err(error) => Poll::Ready(failure(error)),
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            match ready!(self.poll_receive(cx))? {
                Some(chunk) => self.unread = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = buffer.remaining().min(self.unread.len());
        buffer.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        self.give_back(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, data.len()))?;
        self.send(cx, Bytes::copy_from_slice(&data[..room]), false)?;
        Poll::Ready(Ok(room))
    }

    /// The connection's driver flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)
    }
}

/// A failure of the stream, or of the connection under it, as a reset: a relay treats both alike.
fn failure(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
