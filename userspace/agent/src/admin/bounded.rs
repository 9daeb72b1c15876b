//! A listener whose connections are bounded in number and in silence.
//!
//! Metrics and readiness are open to the network: whoever opens connections and says nothing must neither fill the
//! process with tasks nor hold the places of others for ever. A connection at the limit waits in the kernel's backlog.

use std::io;
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
    /// Taken by each connection, given back when it is dropped.
    places: Arc<Semaphore>,
}

impl<L> Bounded<L> {
    /// Wraps a listener.
    pub(super) fn new(inner: L) -> Self {
        Self { inner, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Idle<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (io, address) = self.inner.accept().await;
        (Idle { io: Box::pin(io), silence: Box::pin(sleep(MAX_SILENCE)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// A connection that ends when its peer has been silent for too long.
pub(super) struct Idle<I> {
    io: Pin<Box<I>>,
    silence: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl<I: AsyncRead> AsyncRead for Idle<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = self.io.as_mut().poll_read(cx, buf) {
            self.silence.as_mut().reset(Instant::now() + MAX_SILENCE);
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
