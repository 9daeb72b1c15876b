//! Why a handshake failed, sorted by who is to blame: the peer's certificate, what the peer speaks, the peer's verdict
//! on us, the network, or our own configuration.
//!
//! rustls carries our verifiers' verdicts through its own error type; [`HandshakeError::from`] takes them out again, so
//! that callers see which rule was broken and never a text to search in.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, InvalidMessage, OtherError, PeerIncompatible};
use signet_identity::{SpiffeId, SvidError, TrustDomain};

/// Why a handshake failed. Cheap to clone, since several connections may have waited for one handshake.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer presented no certificate at all.
    #[error("the peer presented no certificate: it is not in the mesh, or has no SVID yet")]
    NoCertificate,
    /// The peer's SVID has expired. The ID is what the peer claims, unproven.
    #[error(
        "the peer's SVID ({id}) expired at {not_after} (seconds since 1970): check its rotation and both clocks"
    )]
    Expired {
        /// Whose.
        id: SpiffeId,
        /// Seconds since 1970.
        not_after: u64,
    },
    /// The peer is of a trust domain that we have no roots for.
    #[error("the peer is of the trust domain {trust_domain}, for which there is no bundle")]
    UnknownTrustDomain {
        /// Which.
        trust_domain: TrustDomain,
    },
    /// The server proved an identity that is not the destination's.
    #[error("the server is {got}, expected {}", expected_text(expected))]
    UnexpectedId {
        /// Who it may be.
        expected: Arc<[SpiffeId]>,
        /// Who it is, proven.
        got: SpiffeId,
    },
    /// Any other broken rule of X.509-SVIDs.
    #[error("the peer's certificate is no SVID that we trust: {0}")]
    InvalidSvid(SvidError),
    /// The peer speaks something else over TLS.
    #[error("the peer did not agree on ALPN h2: it does not speak HBONE")]
    NoAlpn,
    /// The peer speaks TLS, and not 1.3.
    #[error("the peer does not offer TLS 1.3 with our algorithms: {0:?}")]
    NoTls13(PeerIncompatible),
    /// The peer does not speak TLS.
    #[error("what the peer sent is no TLS")]
    NotTls,
    /// The peer's TLS is wrong.
    #[error("the peer broke the TLS protocol: {0}")]
    Protocol(rustls::Error),
    /// The peer refused us.
    #[error("the peer refused the handshake with the alert {0:?}: its log says why")]
    Refused(AlertDescription),
    /// The peer closed the connection during the handshake.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The connection broke.
    #[error("the connection broke during the handshake: {0}")]
    Io(Arc<io::Error>),
    /// The server name that we were to send is none.
    #[error("{sni:?} is no DNS name and cannot be sent as SNI")]
    InvalidSni {
        /// As given.
        sni: String,
    },
    /// Our own key or configuration.
    #[error("our own SVID cannot be used for TLS: {0}")]
    OwnConfiguration(rustls::Error),
}

impl HandshakeError {
    /// The connection broke, and nobody has said anything against either end. A close in order is not that: so ends a server that has
    /// read what we want and has nothing to say.
    #[must_use]
    pub fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Io(_))
    }
}

/// A verifier's verdict on its way through rustls.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Verdict {
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error("the server is {got}")]
    UnexpectedId { expected: Arc<[SpiffeId]>, got: SpiffeId },
}

impl From<Verdict> for rustls::Error {
    fn from(verdict: Verdict) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(verdict))))
    }
}

impl From<SvidError> for HandshakeError {
    fn from(error: SvidError) -> Self {
        match error {
            SvidError::NoCertificate => Self::NoCertificate,
            SvidError::Expired { id, not_after } => Self::Expired { id, not_after },
            SvidError::UnknownTrustDomain { trust_domain } => Self::UnknownTrustDomain { trust_domain },
            other => Self::InvalidSvid(other),
        }
    }
}

impl From<Verdict> for HandshakeError {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Svid(error) => error.into(),
            Verdict::UnexpectedId { expected, got } => Self::UnexpectedId { expected, got },
        }
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::NoApplicationProtocol => Self::NoAlpn,
            rustls::Error::AlertReceived(alert) => Self::Refused(alert),
            rustls::Error::PeerIncompatible(what) => Self::NoTls13(what),
            // The first byte of a record is its type, and it was none (RFC 8446 §5.1).
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotTls,
            rustls::Error::InvalidCertificate(CertificateError::Other(ref verdict)) => {
                match verdict.0.downcast_ref::<Verdict>() {
                    Some(verdict) => verdict.clone().into(),
                    None => Self::Protocol(error),
                }
            }
            other => Self::Protocol(other),
        }
    }
}

/// Sorts what a TLS stream returns, during the handshake or later.
impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => tls.clone().into(),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Io(Arc::new(error)),
        }
    }
}

fn expected_text(expected: &[SpiffeId]) -> impl fmt::Display {
    match expected {
        [] => "nobody".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} or {} more", rest.len()),
    }
}
