//! Why a connection did not come about, or ended before its ends wanted it to. Sorted by who is to blame.
//!
//! Each variant knows its text, its `response_flags` and, where it is told to an HBONE client, its status
//! (istio/ztunnel `src/proxy/inbound.rs`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::authority::AuthorityError;
use super::hbone::HboneError;
use super::metrics::ResponseFlags;
use crate::addr::CgroupId;
use crate::mtls::HandshakeError;
use crate::net::{NetError, RelayError};
use crate::policy::Denial;
use crate::svid::FetchError;

/// Why not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    // The client.
    /// It dialled the engine's port by itself.
    #[error(
        "no kernel record of this connection: it was not captured; connect to the destination's own address"
    )]
    NotCaptured,
    /// The kernel's record names a cgroup that is none of this namespace's workloads.
    #[error("cgroup {0} is no enrolled workload of this network namespace (it may just have left)")]
    UnknownCgroup(CgroupId),
    /// An HBONE client did not prove who it is.
    #[error("mTLS handshake failed: {0}")]
    Handshake(#[source] HandshakeError),
    /// An HBONE client did not speak HTTP/2.
    #[error("HTTP/2 handshake failed: {0}")]
    Http2(#[source] h2::Error),
    /// An HBONE client sent nothing, or too slowly.
    #[error("no mTLS and HTTP/2 handshake within {0:?}")]
    HandshakeTimeout(Duration),
    /// What it asked for cannot be read.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It asked for an address that is not the one it dialled.
    #[error("the CONNECT's authority {authority} is not at the dialled address {dialled}")]
    ForeignAuthority {
        /// What it asked for.
        authority: String,
        /// Where it asked.
        dialled: SocketAddr,
    },
    /// It asked for a Service of which this workload is no endpoint.
    #[error("the CONNECT's authority {0} is no Service and port that this workload is an endpoint of")]
    ForeignService(String),
    /// It asked for the engine itself.
    #[error("port {0} is the node engine's own; no application can listen there")]
    SelfCall(u16),

    // Policy.
    /// The policy says no.
    #[error("{0}")]
    Denied(Denial),
    /// The server's policy says no.
    #[error("denied by the server's policy ({0} answered 401); the access log of its node names the policy")]
    DeniedByServer(SocketAddr),
    /// The policy changed, and says no now.
    #[error("closed, since the policy has changed: {0}")]
    Revoked(Denial),
    /// The mesh lets nobody out.
    #[error("{0} is no known Service or workload, and mesh.outboundTrafficPolicy is REGISTRY_ONLY")]
    NotInRegistry(SocketAddr),
    /// The destination may only be reached over mTLS, and this path has none.
    #[error("{0} is in the mesh and must not be reached in clear")]
    WouldLeak(SocketAddr),

    // The mesh.
    /// A Service without an endpoint that could be asked.
    #[error("Service {0} has no ready endpoint for port {1}")]
    NoEndpoint(Arc<str>, u16),
    /// An address inside the cluster that nobody has told of.
    #[error(
        "{address} must be a {what}'s, and within {wait:?} the source has not told of one; if it is nobody's of the mesh, \
         name it in mesh.outsideRanges"
    )]
    NotTold {
        /// The address.
        address: IpAddr,
        /// `pod` or `service`.
        what: &'static str,
        /// How long that was waited for.
        wait: Duration,
    },
    /// Too many connections of the workload wait for such addresses.
    #[error("too many connections of this workload wait for addresses that the source has not told of")]
    TooManyWait,
    /// The workload of an inbound connection cannot be told, or is gone.
    #[error("no enrolled workload of this network namespace owns port {0}")]
    NoOwner(u16),
    /// A hostNetwork address with several workloads, and no SNI that tells which one is meant.
    #[error("several workloads share this address, and the client's SNI does not tell the port")]
    AmbiguousOwner,
    /// No SVID.
    #[error("no SVID for this workload: {0}")]
    Svid(#[source] FetchError),
    /// No SVID in time.
    #[error("no SVID for this workload within {0:?}; `signet certificates` tells why")]
    SvidTimeout(Duration),
    /// An SVID that rustls does not take.
    #[error("this workload's SVID is unusable: {0}")]
    Endpoint(#[source] HandshakeError),

    // The destination.
    /// The application, or a destination outside the mesh.
    #[error("{0}")]
    Connect(#[source] NetError),
    /// The HBONE server.
    #[error("{0}")]
    Tunnel(#[source] HboneError),
    /// The client went away before it had our answer.
    #[error("the client did not wait for the answer: {0}")]
    Unanswered(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It went away before it was looked at.
    #[error("the client's connection broke at once: {0}")]
    Gone(#[source] std::io::Error),

    /// A direct connection's server refused it or did not answer.
    #[error("the server refused the connection, or did not answer")]
    Unestablished,

    // Either end.
    /// While bytes went both ways.
    #[error("{0}")]
    Relay(#[source] RelayError),

    // The engine.
    /// The workload left the mesh, or the engine stops.
    #[error("closed by the node engine: the workload has left or the engine stops")]
    Closed,
}

impl Failure {
    /// Sorts what the HBONE client says.
    #[must_use]
    pub(crate) fn of_tunnel(error: HboneError) -> Self {
        match error {
            HboneError::Status(server, StatusCode::UNAUTHORIZED) => Self::DeniedByServer(server),
            error => Self::Tunnel(error),
        }
    }

    /// Istio's short name for it.
    #[must_use]
    pub(crate) fn flags(&self) -> ResponseFlags {
        match self {
            Self::NotCaptured
            | Self::UnknownCgroup(_)
            | Self::Authority(_)
            | Self::ForeignAuthority { .. }
            | Self::ForeignService(_)
            | Self::SelfCall(_)
            | Self::Denied(_)
            | Self::DeniedByServer(_)
            | Self::Revoked(_)
            | Self::NotInRegistry(_)
            | Self::WouldLeak(_)
            | Self::NotTold { .. }
            | Self::TooManyWait
            | Self::NoOwner(_)
            | Self::AmbiguousOwner => ResponseFlags::Deny,
            Self::Handshake(_) | Self::HandshakeTimeout(_) => ResponseFlags::TlsFailure,
            Self::Http2(_) => ResponseFlags::H2HandshakeFailure,
            Self::Svid(_) | Self::SvidTimeout(_) | Self::Endpoint(_) => ResponseFlags::IdentityError,
            Self::NoEndpoint(..) | Self::Connect(_) | Self::Unestablished => ResponseFlags::Connect,
            Self::Tunnel(error) => tunnel_flags(error),
            Self::Unanswered(_) | Self::Gone(_) | Self::Relay(_) | Self::Closed => ResponseFlags::None,
        }
    }

    /// What an HBONE client is told.
    #[must_use]
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Authority(_)
            | Self::ForeignAuthority { .. }
            | Self::ForeignService(_)
            | Self::SelfCall(_) => StatusCode::BAD_REQUEST,
            Self::Denied(_) | Self::Revoked(_) => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Another endpoint of the same Service may do better: nothing was refused, and nothing was relayed.
    #[must_use]
    pub(crate) fn is_endpoints_own(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Tunnel(HboneError::Status(_, status)) => status.is_server_error(),
            Self::Tunnel(HboneError::Handshake(_, error)) => error.is_of_the_connection(),
            Self::Tunnel(HboneError::Request(..) | HboneError::Broken(..)) => false,
            Self::Tunnel(_) => true,
            _ => false,
        }
    }

    /// Nobody listens on the server's HBONE port, or who did is gone, and the application's bytes were sent to nobody: the engine of
    /// its node may be about to start again.
    #[must_use]
    pub(crate) fn is_of_an_absent_engine(&self) -> bool {
        let Self::Tunnel(error) = self else { return false };
        match error {
            HboneError::Dial(_, error) => matches!(**error, NetError::Refused(_)),
            HboneError::Handshake(_, error) => error.is_of_the_connection(),
            HboneError::Http2(_, error) => error.is_io(),
            HboneError::Unsent(..) => true,
            HboneError::Status(..)
            | HboneError::Timeout(..)
            | HboneError::Forgotten(_)
            | HboneError::Broken(..)
            | HboneError::Request(..) => false,
        }
    }
}

fn tunnel_flags(error: &HboneError) -> ResponseFlags {
    match error {
        HboneError::Handshake(..) => ResponseFlags::TlsFailure,
        HboneError::Http2(..) => ResponseFlags::H2HandshakeFailure,
        _ => ResponseFlags::Connect,
    }
}
