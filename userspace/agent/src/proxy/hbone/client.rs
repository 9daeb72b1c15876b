//! The client's side of one HBONE connection: dialling, its streams, and the task that drives it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, Response, Uri};
use rustls::pki_types::UnixTime;
use signet_identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::keepalive::Keepalive;
use super::verdict::{Verdict, Watched};
use super::{
    CONNECTION_WINDOW, ConnectRequest, HboneError, MAX_FRAME, Opened, SEND_BUFFER, STREAM_WINDOW, Tunnel,
};
use crate::mtls::Authenticated;

/// One client connection. Held by the pool and by each tunnel on it.
pub(super) struct Connection {
    send: SendRequest<Bytes>,
    address: SocketAddr,
    peer: Authenticated,
    verdict: Verdict,
    /// Tunnels that are open or being opened. Written by [`Claim`]s, watched by the driver at 0 and 1 alone.
    streams: watch::Sender<usize>,
}

/// A place for one tunnel on a connection; given back when dropped.
pub(super) struct Claim {
    connection: Arc<Connection>,
}

/// What moves a connection's bytes until it ends.
pub(super) struct Driver<IO: AsyncRead + AsyncWrite + Unpin> {
    connection: h2::client::Connection<Watched<IO>, Bytes>,
    keepalive: Keepalive,
    streams: watch::Receiver<usize>,
}

/// The HTTP/2 handshake over an authenticated byte stream.
///
/// # Errors
/// HTTP/2 failed.
pub(super) async fn handshake<IO>(
    io: IO,
    address: SocketAddr,
    peer: Authenticated,
) -> Result<(Arc<Connection>, Driver<IO>), HboneError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (io, verdict) = Watched::new(io);
    let shaken = settings().handshake(io).await;
    let (send, mut connection) = shaken.map_err(|error| HboneError::Http2(address, Arc::new(error)))?;
    let pings = connection.ping_pong().expect("a new connection's pings are taken once");
    let (streams, watched) = watch::channel(0);
    let driver = Driver { connection, keepalive: Keepalive::new(pings), streams: watched };
    Ok((Arc::new(Connection { send, address, peer, verdict, streams }), driver))
}

impl Connection {
    /// It may carry a new tunnel to one of `expected`.
    pub(super) fn proves(&self, expected: &[SpiffeId], now: UnixTime) -> bool {
        expected.contains(&self.peer.peer) && !self.peer.is_expired(now)
    }

    pub(super) fn is_idle(&self) -> bool {
        *self.streams.borrow() == 0
    }

    /// A place for one more tunnel; `None` when the connection is full, going away or closed.
    pub(super) fn claim(self: &Arc<Self>) -> Option<Claim> {
        self.is_open().then_some(())?;
        // A peer that allows none would have us dial for ever; with one, its tunnel waits until the caller's timeout.
        let limit = self.send.current_max_send_streams().clamp(1, MAX_STREAMS);
        let mut claimed = false;
        self.streams.send_if_modified(|streams| {
            claimed = *streams < limit;
            *streams += usize::from(claimed);
            claimed && *streams == 1
        });
        claimed.then(|| Claim { connection: Arc::clone(self) })
    }

    /// An error of HTTP/2, or what was behind it.
    fn failure(&self, error: h2::Error) -> HboneError {
        match self.verdict.get() {
            Some(refusal) => HboneError::Handshake(self.address, Arc::new(refusal.clone())),
            None => HboneError::Http2(self.address, Arc::new(error)),
        }
    }

    /// h2 reports GOAWAY and the connection's end here. A clone has no stream of its own to wait for, so it never waits.
    fn is_open(&self) -> bool {
        matches!(self.send.clone().ready().now_or_never(), Some(Ok(_)))
    }
}

impl Claim {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Sends CONNECT and waits for the answer.
    ///
    /// # Errors
    /// HTTP/2 failed, or the server refused.
    pub(super) async fn connect(self, request: &ConnectRequest) -> Result<(Tunnel, Opened), HboneError> {
        let connection = &self.connection;
        let failed = |error| connection.failure(error);
        let mut send = connection.send.clone().ready().await.map_err(failed)?;
        let (answer, stream) = send.send_request(head(request)?, false).map_err(failed)?;
        let response = answer.await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(HboneError::Status(connection.address, response.status()));
        }
        let opened = Opened { peer: connection.peer.peer.clone(), baggage: baggage(&response) };
        Ok((Tunnel::new(stream, response.into_body(), Some(self)), opened))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.connection.streams.send_if_modified(|streams| {
            *streams -= 1;
            *streams == 0
        });
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    /// Drives the connection until it ends, its peer falls silent, or `retire`, which is asked each time the connection
    /// has been idle for [`IDLE`], has taken it out of the pool and the last handle on it is gone.
    pub(super) async fn run(self, retire: impl Fn() -> bool) {
        let Self { mut connection, mut keepalive, mut streams } = self;
        let mut retired = false;
        while !retired {
            tokio::select! {
                _ = &mut connection => return,
                () = poll_fn(|cx| keepalive.poll_silent(cx)) => return,
                () = idle(&mut streams) => retired = retire(),
            }
        }
        tokio::select! {
            _ = &mut connection => {}
            () = poll_fn(|cx| keepalive.poll_silent(cx)) => {}
        }
    }
}

/// Resolves when there has been no stream for [`IDLE`].
async fn idle(streams: &mut watch::Receiver<usize>) {
    loop {
        // An error means that nobody can open a stream any more: that is idle too.
        let _ = streams.wait_for(|streams| *streams == 0).await;
        let busy_again = streams.wait_for(|streams| *streams > 0);
        if !matches!(tokio::time::timeout(IDLE, busy_again).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// CONNECT with `:authority` alone (RFC 9113 §8.5) and the headers of docs/hbone.md.
fn head(request: &ConnectRequest) -> Result<Request<()>, HboneError> {
    let mut head = Request::new(());
    *head.method_mut() = Method::CONNECT;
    *head.uri_mut() = Uri::builder()
        .authority(request.authority.as_str())
        .build()
        .map_err(|_| HboneError::Request(":authority", request.authority.clone()))?;
    let forwarded = format!("for=\"{}\"", request.forwarded_for);
    for (name, value) in
        [("baggage", &request.baggage), ("forwarded", &forwarded), ("traceparent", &request.traceparent)]
    {
        let value = HeaderValue::from_str(value).map_err(|_| HboneError::Request(name, value.clone()))?;
        head.headers_mut().insert(name, value);
    }
    Ok(head)
}

fn baggage<B>(response: &Response<B>) -> Option<String> {
    response.headers().get("baggage")?.to_str().ok().map(str::to_owned)
}

fn settings() -> h2::client::Builder {
    let mut settings = h2::client::Builder::new();
    settings
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADERS)
        .initial_max_send_streams(MAX_STREAMS);
    settings
}

/// Tunnels we open on one connection (docs/hbone.md); the peer may allow fewer.
const MAX_STREAMS: usize = 100;

/// Bytes of one response's header list (docs/hbone.md).
const MAX_HEADERS: u32 = 16 * 1024;

/// How long a connection without tunnels is kept.
const IDLE: Duration = Duration::from_secs(60);
