//! Keeps a server's verdict on us that arrives after the handshake.
//!
//! In TLS 1.3 a client is done before the server has judged its certificate (RFC 8446 §4.4.4), so a refusal is the first
//! thing that HTTP/2 reads, and h2 keeps an error's text alone. This byte stream takes the alert out on the way, so that
//! a refused SVID is told as what it is. It changes nothing else.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mtls::HandshakeError;

/// The alert that a connection's server refused us with, if it did. Written once, by [`Watched`].
pub(super) type Verdict = Arc<OnceLock<HandshakeError>>;

/// A TLS stream whose reads are watched for the server's verdict.
pub(super) struct Watched<IO> {
    io: IO,
    verdict: Verdict,
}

impl<IO> Watched<IO> {
    pub(super) fn new(io: IO) -> (Self, Verdict) {
        let verdict = Verdict::default();
        (Self { io, verdict: Arc::clone(&verdict) }, verdict)
    }

    fn note(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        let failure = HandshakeError::from(error);
        if matches!(failure, HandshakeError::Refused(_)) {
            // Set already: the first alert ended the connection.
            let _ = self.verdict.set(failure.clone());
        }
        io::Error::new(kind, failure)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buffer));
        Poll::Ready(read.map_err(|error| self.note(error)))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
