//! A listener whose connections are bounded in number and in silence.
//!
//! Metrics and readiness are open to the network: whoever opens connections and says nothing must neither fill the
//! process with tasks nor hold the places of others for ever. A connection at the limit waits in the kernel's backlog.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// The wrapped listener.
pub(super) struct Bounded<L> {
    inner: L,
    max_silence: Duration,
    /// Taken by each connection, given back when it is dropped.
    places: Arc<Semaphore>,
}

impl<L> Bounded<L> {
    /// Wraps a listener.
    pub(super) fn new(inner: L) -> Self {
        Self::with_limits(inner, MAX_CONNECTIONS, MAX_SILENCE)
    }

    fn with_limits(inner: L, max_connections: usize, max_silence: Duration) -> Self {
        Self { inner, max_silence, places: Arc::new(Semaphore::new(max_connections)) }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Idle<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (io, address) = self.inner.accept().await;
        let silence = Box::pin(sleep(self.max_silence));
        (Idle { io: Box::pin(io), silence, max_silence: self.max_silence, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// A connection that ends when its peer has been silent for too long.
pub(super) struct Idle<I> {
    io: Pin<Box<I>>,
    silence: Pin<Box<Sleep>>,
    max_silence: Duration,
    _place: OwnedSemaphorePermit,
}

impl<I: AsyncRead> AsyncRead for Idle<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = self.io.as_mut().poll_read(cx, buf) {
            let until = Instant::now() + self.max_silence;
            self.silence.as_mut().reset(until);
            return Poll::Ready(result);
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncWrite> AsyncWrite for Idle<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, buf)
    }
    /// Passed on, or the page of the metrics would be copied whole behind its head.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }
}

/// Scrapers, probes and people: a handful. The rest is somebody's mistake.
const MAX_CONNECTIONS: usize = 128;
/// Longer than Prometheus' usual scrape interval of a minute, so that its connection is kept.
const MAX_SILENCE: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn bounded(max_connections: usize, max_silence: Duration) -> (Bounded<TcpListener>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Bounded::with_limits(listener, max_connections, max_silence), address)
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_let_go() {
        let (mut listener, address) = bounded(1, Duration::from_millis(1)).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let (mut accepted, _) = listener.accept().await;
        let error = accepted.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_place_that_is_given_back_goes_to_who_waits() {
        let (mut listener, address) = bounded(1, MAX_SILENCE).await;
        let _first = TcpStream::connect(address).await.unwrap();
        let (first, _) = Listener::accept(&mut listener).await;
        let _second = TcpStream::connect(address).await.unwrap();
        let mut second = Box::pin(Listener::accept(&mut listener));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        second.await;
    }
}
