//! HBONE: HTTP/2 CONNECT over mTLS (docs/hbone.md). Client with pooled connections, and server.
//!
//! A [`Tunnel`] is one CONNECT's stream once it is accepted, on either side, and a leg for `net::relay`. Whom to dial,
//! which identity to expect and whom to answer is decided by the proxies; here it is only carried out. Inner tunnels of
//! double HBONE are not pooled and not built here.

mod client;
mod keepalive;
mod pool;
mod server;
#[cfg(test)]
mod tests;
mod tunnel;
mod verdict;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use h2::Reason;
use signet_identity::SpiffeId;

use crate::addr::WorkloadUid;
use crate::mtls;
use crate::net::NetError;

pub use pool::Pool;
pub(super) use pool::dial;
pub use server::{Incoming, ServeError, Server};
pub use tunnel::Tunnel;

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

impl PoolKey {
    pub(super) fn concerns(&self, workload: &WorkloadUid) -> bool {
        self.source == *workload || self.destination == *workload
    }
}

/// What a tunnel's opening told.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The server's SPIFFE ID.
    pub peer: SpiffeId,
    /// The server's own baggage, if it sent one.
    pub baggage: Option<String>,
}

/// Why a CONNECT failed, by the step that failed. Shared by all who waited for the same dial.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HboneError {
    /// The TCP connection.
    #[error("cannot reach {0}: {1}")]
    Dial(SocketAddr, #[source] Arc<NetError>),
    /// mTLS.
    #[error("mTLS with {0} failed: {1}")]
    Handshake(SocketAddr, #[source] Arc<mtls::HandshakeError>),
    /// HTTP/2.
    #[error("HTTP/2 with {0} failed: {1}")]
    Http2(SocketAddr, #[source] Arc<h2::Error>),
    /// The server said no.
    #[error("{0} answered CONNECT with {1}")]
    Status(SocketAddr, http::StatusCode),
    /// Nothing came in time.
    #[error(
        "{0} did not answer within {1:?}: it is down, or packets to it are dropped, as by a NetworkPolicy without this port"
    )]
    Timeout(SocketAddr, Duration),
    /// One of the two workloads went away while the connection was dialled.
    #[error("gave up on {0}: one of the two workloads is gone")]
    Forgotten(SocketAddr),
    /// A native tunnel broke before its server had answered, and before anything of the application was sent.
    #[error("the tunnel to {0} broke before it was open: {1}")]
    Unsent(SocketAddr, #[source] Arc<std::io::Error>),
    /// The same, and the application's first bytes were on their way: nobody else may get them.
    #[error("the tunnel to {0} broke before its server had answered: {1}")]
    Broken(SocketAddr, #[source] Arc<std::io::Error>),
    /// What was to be sent is no legal value of that header.
    #[error("cannot send {1:?} as {0}")]
    Request(&'static str, String),
}

impl HboneError {
    /// The connection failed, and with it a request that the server has not acted on as far as we know: it broke, is
    /// going away (GOAWAY), or refused the stream unprocessed (RFC 9113 §8.7).
    fn is_of_the_connection(&self) -> bool {
        let Self::Http2(_, error) = self else { return false };
        error.is_io() || error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)
    }
}

/// Bytes a peer may send on one stream before it is given more (docs/hbone.md, as the next three).
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;

/// The same for all streams of a connection together.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Bytes of the largest frame that is accepted.
const MAX_FRAME: u32 = 1024 * 1024;

/// Bytes of one stream that may wait for the connection to take them: one read of the application. More would leave the cache
/// before they are sealed.
const SEND_BUFFER: usize = 128 * 1024;
