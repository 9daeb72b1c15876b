//! The server's side of one HBONE connection.
//!
//! HTTP/2 moves only while its connection is polled, so whoever calls [`Server::next`] must come back to it at once and
//! serve each [`Incoming`] in a task of its own. Whether a CONNECT is allowed, and what its authority means, is decided
//! there; here it is only known to be one.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{RecvStream, ext::Protocol};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::keepalive::{Keepalive, PING_TIMEOUT};
use super::{CONNECTION_WINDOW, MAX_FRAME, SEND_BUFFER, STREAM_WINDOW, Tunnel};

/// Why an HBONE connection ended other than in order.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The peer, or the connection, broke HTTP/2.
    #[error("HTTP/2 failed: {0}")]
    Http2(#[from] h2::Error),
    /// The peer is gone, or its engine stands still.
    #[error("no answer to a ping within {0:?}")]
    Silent(Duration),
}

/// Serves one authenticated connection: yields each CONNECT until the peer ends; anything else is answered 400 inside.
pub struct Server<IO> {
    connection: Connection<IO, Bytes>,
    keepalive: Keepalive,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> Server<IO> {
    /// The h2 handshake, with the contract's sizes, pings and limits. The caller bounds it: a client may send nothing.
    ///
    /// # Errors
    /// HTTP/2 failed.
    pub async fn handshake(io: IO) -> Result<Self, h2::Error> {
        let mut connection = settings().handshake(io).await?;
        let pings = connection.ping_pong().expect("a new connection's pings are taken once");
        Ok(Self { connection, keepalive: Keepalive::new(pings) })
    }

    /// Sends GOAWAY: the client opens nothing new here, and [`Server::next`] ends when the last tunnel has.
    pub fn shutdown(&mut self) {
        self.connection.graceful_shutdown();
    }

    /// The next CONNECT; `None` when the connection has ended, and nothing follows an error. Drives the connection (and
    /// so every tunnel of it) while waiting. Can be cancelled without loss.
    pub async fn next(&mut self) -> Option<Result<Incoming, ServeError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, ServeError>>> {
        while let Poll::Ready(accepted) = self.connection.poll_accept(cx) {
            match accepted.transpose() {
                Ok(None) => return Poll::Ready(None),
                Ok(Some((request, respond))) => {
                    if let Some(incoming) = Incoming::admit(request, respond) {
                        return Poll::Ready(Some(Ok(incoming)));
                    }
                }
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
        ready!(self.keepalive.poll_silent(cx));
        Poll::Ready(Some(Err(ServeError::Silent(PING_TIMEOUT))))
    }
}

/// One CONNECT as the server received it, not yet answered. Dropped unanswered, it is reset.
pub struct Incoming {
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
}

impl Incoming {
    /// Anything but a plain CONNECT with an authority is answered 400 here.
    fn admit(request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Option<Self> {
        let plain_connect = request.method() == Method::CONNECT
            && request.uri().authority().is_some()
            && request.extensions().get::<Protocol>().is_none();
        let incoming = Self { request, respond };
        if plain_connect {
            return Some(incoming);
        }
        incoming.refuse(StatusCode::BAD_REQUEST);
        None
    }

    /// `:authority` as sent.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.request.uri().authority().map_or("", |authority| authority.as_str())
    }

    /// A request header's value, where it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }

    /// Resolves when the client has given the request up, or the connection broke, and tells how.
    pub async fn abandoned(&mut self) -> h2::Error {
        match poll_fn(|cx| self.respond.poll_reset(cx)).await {
            Ok(reason) => reason.into(),
            Err(error) => error,
        }
    }

    /// Answers 200 (with our baggage) and becomes the tunnel. Only after the upstream is connected.
    ///
    /// # Errors
    /// HTTP/2 failed.
    pub fn accept(mut self, baggage: Option<&str>) -> Result<Tunnel, h2::Error> {
        let mut response = Response::new(());
        // Baggage is a courtesy: one that is no header value is left out rather than failing the connection.
        if let Some(baggage) = baggage.and_then(|baggage| HeaderValue::from_str(baggage).ok()) {
            response.headers_mut().insert("baggage", baggage);
        }
        let send = self.respond.send_response(response, false)?;
        Ok(Tunnel::new(send, self.request.into_body(), None))
    }

    /// Answers with a failure status and ends the stream.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // It fails when the client has gone meanwhile: nobody is left to be told.
        let _ = self.respond.send_response(response, true);
    }
}

fn settings() -> h2::server::Builder {
    let mut settings = h2::server::Builder::new();
    settings
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS);
    settings
}

/// Tunnels a client may have open on one connection (docs/hbone.md).
const MAX_STREAMS: u32 = 200;

/// Bytes of one request's header list (docs/hbone.md); h2 answers a larger one with 431.
const MAX_HEADERS: u32 = 64 * 1024;
