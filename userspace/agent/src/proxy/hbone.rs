//! HBONE: HTTP/2 CONNECT over mTLS. Client with pooled connections, and server (H5).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use signet_identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::addr::WorkloadUid;
use crate::mtls;
use crate::net::{NetError, Netns};

/// What identifies a pooled connection: nothing that another workload, a reused address or a rotated key could share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The client workload.
    pub source: WorkloadUid,
    /// The destination workload; a pod that returns on the same IP has another one.
    pub destination: WorkloadUid,
    /// Where it listens (address:15008).
    pub address: SocketAddr,
    /// The destination port named in the SNI, for hostNetwork destinations only.
    pub sni_port: Option<u16>,
}

/// What one CONNECT asks for.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// The pool slot.
    pub key: PoolKey,
    /// `:authority`.
    pub authority: String,
    /// The SPIFFE IDs the server may have.
    pub expected: Arc<[SpiffeId]>,
    /// `baggage`.
    pub baggage: String,
    /// `forwarded: for="<client>"`.
    pub forwarded_for: SocketAddr,
    /// `traceparent`.
    pub traceparent: String,
    /// Bound for connect, handshake and answer together.
    pub timeout: Duration,
}

/// A tunnel: one h2 stream as a byte stream. AsyncRead + AsyncWrite; shutdown sends END_STREAM; drop resets.
pub struct Tunnel {}

/// What a tunnel's opening told.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The server's SPIFFE ID.
    pub peer: SpiffeId,
    /// The server's own baggage, if it sent one.
    pub baggage: Option<String>,
}

/// Why a CONNECT failed (sorted: dial, handshake, h2, status).
#[derive(Debug, thiserror::Error)]
pub enum HboneError {
    /// The TCP connection.
    #[error("cannot reach {0}: {1}")]
    Dial(SocketAddr, NetError),
    /// mTLS.
    #[error("mTLS with {0} failed: {1}")]
    Handshake(SocketAddr, mtls::HandshakeError),
    /// HTTP/2.
    #[error("HTTP/2 with {0} failed: {1}")]
    Http2(SocketAddr, h2::Error),
    /// The server said no.
    #[error("{0} answered CONNECT with {1}")]
    Status(SocketAddr, http::StatusCode),
    /// Nothing came in time.
    #[error("{0} did not answer within {1:?}")]
    Timeout(SocketAddr, Duration),
}

/// Pooled HBONE client connections of the whole node. Cheap to clone.
#[derive(Clone)]
pub struct Pool {}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        todo!("H5")
    }
    /// Opens a tunnel: over a pooled connection with room, or a new one dialled from `netns` with `endpoint`'s SVID.
    ///
    /// # Errors
    /// Which step failed.
    pub async fn open(
        &self,
        netns: &Netns,
        endpoint: &mtls::Endpoint,
        request: ConnectRequest,
    ) -> Result<(Tunnel, Opened), HboneError> {
        let _ = (netns, endpoint, request);
        todo!("H5")
    }
    /// Drops every connection from or to a workload (it is gone, or its identity changed).
    pub fn forget(&self, workload: &WorkloadUid) {
        let _ = workload;
        todo!("H5")
    }
}

/// One CONNECT as the server received it, not yet answered.
pub struct Incoming {
    // H5: authority(), header(name), method check is done
}

/// Serves one authenticated connection: yields each CONNECT until the peer ends; non-CONNECT is answered 400 inside.
pub struct Server<IO> {
    _io: std::marker::PhantomData<IO>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> Server<IO> {
    /// The h2 handshake, with the contract's sizes, pings and limits.
    ///
    /// # Errors
    /// HTTP/2 failed.
    pub async fn handshake(io: IO) -> Result<Self, h2::Error> {
        let _ = io;
        todo!("H5")
    }
    /// Sends GOAWAY: the client opens nothing new here, and [`Server::next`] ends when the last tunnel has.
    pub fn shutdown(&mut self) {
        todo!("H5")
    }
    /// The next CONNECT; drives the connection (and so every tunnel of it) while waiting.
    pub async fn next(&mut self) -> Option<Result<Incoming, h2::Error>> {
        todo!("H5")
    }
}

impl Incoming {
    /// `:authority` as sent.
    #[must_use]
    pub fn authority(&self) -> &str {
        todo!("H5")
    }
    /// A request header's value, where it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let _ = name;
        todo!("H5")
    }
    /// Answers 200 (with our baggage) and becomes the tunnel. Only after the upstream is connected.
    ///
    /// # Errors
    /// HTTP/2 failed.
    pub fn accept(self, baggage: Option<&str>) -> Result<Tunnel, h2::Error> {
        let _ = baggage;
        todo!("H5")
    }
    /// Answers with a failure status and ends the stream.
    pub fn refuse(self, status: http::StatusCode) {
        let _ = status;
        todo!("H5")
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        todo!("H5")
    }
}
impl AsyncWrite for Tunnel {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        todo!("H5")
    }
    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        todo!("H5")
    }
    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        todo!("H5")
    }
}

impl crate::net::Leg for Tunnel {
    fn arm(&mut self) -> std::io::Result<()> {
        todo!("H5")
    }
    fn complete(&mut self) {
        todo!("H5")
    }
    fn poll_receive(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<Option<bytes::Bytes>>> {
        todo!("H5")
    }
    fn release(&mut self, _: usize) {
        todo!("H5")
    }
    fn poll_send(
        &mut self,
        _: &mut std::task::Context<'_>,
        _: &mut bytes::Bytes,
    ) -> std::task::Poll<std::io::Result<()>> {
        todo!("H5")
    }
    fn poll_end(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        todo!("H5")
    }
    fn poll_broken(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Error> {
        todo!("H5")
    }
}
