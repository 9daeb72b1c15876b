//! rustls configurations and the SPIFFE verifier: TLS 1.3 only, aws-lc-rs, X25519MLKEM768 preferred, ALPN `h2`.

use std::sync::Arc;

use signet_identity::{SpiffeId, X509Svid};
use tokio::io::{AsyncRead, AsyncWrite};

/// The rustls configurations of one SVID, built once per SVID.
#[derive(Clone)]
pub struct Endpoint {}

/// A peer that proved who it is.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Its SPIFFE ID.
    pub peer: SpiffeId,
    /// The SNI it sent, server side only.
    pub sni: Option<Arc<str>>,
}

/// Why a handshake failed (H2: sorted by blame: peer without certificate, expired, unknown trust domain, id not expected, timeout, closed, …).
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// H2.
    #[error("H2")]
    Todo,
}

impl Endpoint {
    /// Builds both configurations.
    ///
    /// # Errors
    /// A key or chain that rustls refuses.
    pub fn new(svid: &Arc<X509Svid>) -> Result<Self, HandshakeError> {
        let _ = svid;
        todo!("H2")
    }
    /// The serial number of the SVID's leaf: what tells a rotated SVID from its predecessor.
    #[must_use]
    pub fn serial(&self) -> &Arc<str> {
        todo!("H2")
    }
    /// Server side: requires and verifies a client SVID, of this SVID's own trust domain or one it has a bundle for.
    ///
    /// # Errors
    /// Why not.
    pub async fn accept<IO>(
        &self,
        io: IO,
    ) -> Result<(tokio_rustls::server::TlsStream<IO>, Authenticated), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let _ = io;
        todo!("H2")
    }
    /// Client side: verifies that the server is one of `expected` (secure naming). `sni` is sent only where given.
    ///
    /// # Errors
    /// Why not.
    pub async fn connect<IO>(
        &self,
        io: IO,
        expected: &[SpiffeId],
        sni: Option<&str>,
    ) -> Result<(tokio_rustls::client::TlsStream<IO>, Authenticated), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let _ = (io, expected, sni);
        todo!("H2")
    }
}

/// A TLS client that has said hello and waits for a certificate: the server may choose which by the SNI.
pub struct Hello<IO> {
    _io: std::marker::PhantomData<IO>, // H2: tokio_rustls::StartHandshake<IO>
}

impl<IO> Hello<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Reads the ClientHello.
    ///
    /// # Errors
    /// What came is no TLS, or the client closed.
    pub async fn read(io: IO) -> Result<Self, HandshakeError> {
        let _ = io;
        todo!("H2")
    }
    /// The server name it asked for.
    #[must_use]
    pub fn sni(&self) -> Option<&str> {
        todo!("H2")
    }
    /// Goes on as [`Endpoint::accept`] does.
    ///
    /// # Errors
    /// Why not.
    pub async fn accept(
        self,
        endpoint: &Endpoint,
    ) -> Result<(tokio_rustls::server::TlsStream<IO>, Authenticated), HandshakeError> {
        let _ = endpoint;
        todo!("H2")
    }
}
