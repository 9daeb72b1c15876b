//! mTLS: rustls configurations, the SPIFFE verifier, handshakes, and the record layer that takes over after them. TLS 1.3
//! only, aws-lc-rs, X25519MLKEM768 and AES-128-GCM preferred.
//!
//! An [`Endpoint`] is one SVID ready to shake hands, as client and as server; what is expensive (parsing the key) is done
//! once per SVID. Both directions verify the peer by `signet_identity::verify_peer` and nothing else: the peer's name
//! comes from its certificate, never from DNS or the SNI. There is no resumption and there are no tickets, so each
//! connection proves both identities afresh, under the bundles of today.
//!
//! It bounds no time: the caller wraps a handshake into its timeout. It knows no policy: whether an authenticated peer
//! may do anything is decided elsewhere.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{Acceptor, NoServerSessionStorage, UnbufferedServerConnection};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, CommonState, ServerConfig};
use signet_identity::{BundleSet, SpiffeId, VerifiedLeaf, X509Svid, read_verified};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

mod error;
mod handshake;
mod key;
mod secret;
mod session;
mod stream;
mod verifier;
mod warm;

pub use error::HandshakeError;
use handshake::{Incoming, shake};
use secret::Told;
pub use session::{END_ROOM, Opened, RECORD, Session, UPDATE_ROOM, sealed};
pub use stream::SecureStream;
use verifier::{AnyTrustedClient, ExpectedServer};

/// The rustls configurations of one SVID, built once per SVID. Cheap to clone; holds the SVID's key while it lives.
#[derive(Clone)]
pub struct Endpoint {
    id: SpiffeId,
    serial: Arc<str>,
    /// End of the SVID's validity, seconds since 1970, included.
    not_after: u64,
    bundles: Arc<BundleSet>,
    /// It offers the native tunnel beside HBONE.
    native: bool,
    server: Arc<ServerConfig>,
    /// Accepts nobody: each connection gets a copy that knows whom it expects.
    client: Arc<ClientConfig>,
}

/// What is spoken over an authenticated connection, agreed upon by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 CONNECT (docs/hbone.md).
    Hbone,
    /// The native tunnel (docs/native.md).
    Native,
}

/// A peer that proved who it is.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// What it wants to speak.
    pub protocol: Protocol,
    /// Its SPIFFE ID.
    pub peer: SpiffeId,
    /// The last second, since 1970, in which both its certificate and our own are valid. TLS looks at validity once, so
    /// whoever keeps a connection for longer has to look again.
    pub not_after: u64,
    /// The SNI it sent, server side only.
    pub sni: Option<Arc<str>>,
}

impl Authenticated {
    /// One of the two certificates has expired: nothing new may rest on this proof.
    #[must_use]
    pub fn is_expired(&self, now: UnixTime) -> bool {
        now.as_secs() > self.not_after
    }
}

impl Endpoint {
    /// Builds both configurations, for HBONE.
    ///
    /// # Errors
    /// A key that rustls refuses.
    pub fn new(svid: &Arc<X509Svid>) -> Result<Self, HandshakeError> {
        Self::offering(svid, false)
    }

    /// Builds both configurations, for the native tunnel where the peer knows it and HBONE where not.
    ///
    /// # Errors
    /// A key that rustls refuses.
    pub fn native(svid: &Arc<X509Svid>) -> Result<Self, HandshakeError> {
        Self::offering(svid, true)
    }

    fn offering(svid: &Arc<X509Svid>, native: bool) -> Result<Self, HandshakeError> {
        let identity = Arc::new(certified(svid)?);
        let bundles = svid.bundles().clone();
        let server = Arc::new(server_config(bundles.clone(), identity.clone(), native)?);
        let client = Arc::new(client_config(bundles.clone(), identity)?);
        let (id, serial, not_after) = (svid.id().clone(), svid.serial().into(), svid.not_after());
        Ok(Self { id, serial, not_after, bundles, native, server, client })
    }

    /// It offers the native tunnel.
    #[must_use]
    pub fn offers_native(&self) -> bool {
        self.native
    }

    /// The same, as a client that offers HBONE alone.
    #[must_use]
    pub fn for_hbone(&self) -> Self {
        Self { native: false, ..self.clone() }
    }

    /// The serial number of the SVID's leaf: what tells a rotated SVID from its predecessor.
    #[must_use]
    pub fn serial(&self) -> &Arc<str> {
        &self.serial
    }

    /// Server side: requires and verifies a client SVID, of this SVID's own trust domain or one it has a bundle for.
    ///
    /// # Errors
    /// Why not.
    pub async fn accept<IO>(&self, io: IO) -> Result<(SecureStream<IO>, Authenticated), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        Hello::read(io).await?.accept(self).await
    }

    /// Client side: verifies that the server is one of `expected` (secure naming). `sni` is sent only where given: HBONE
    /// clients send none (istio/ztunnel `src/tls/workload.rs`).
    ///
    /// The handshake is over for a client before the server has judged its certificate (RFC 8446 §4.4.4): a refusal
    /// arrives as an alert on the first read, as an `io::Error` that [`HandshakeError::from`] sorts.
    ///
    /// # Errors
    /// Why not.
    pub async fn connect<IO>(
        &self,
        mut io: IO,
        expected: &[SpiffeId],
        sni: Option<&str>,
    ) -> Result<(SecureStream<IO>, Authenticated), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let verifier = ExpectedServer::new(self.bundles.clone(), expected.into());
        let mut config = ClientConfig::clone(&self.client);
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        config.enable_sni = sni.is_some();
        config.alpn_protocols = alpn(self.native);
        let told = Arc::new(Told::default());
        config.key_log = Arc::clone(&told) as _;
        let mut client = UnbufferedClientConnection::new(Arc::new(config), server_name(sni)?)
            .map_err(HandshakeError::OwnConfiguration)?;
        let mut incoming = Incoming::default();
        shake(&mut io, &mut client, &mut incoming).await?;
        let peer = self.authenticated(&client, None)?;
        let session = Session::of_client(client, &told)?;
        Ok((SecureStream::new(io, session, &incoming.into_rest()), peer))
    }

    /// Who the peer of a finished handshake is. rustls does not insist on ALPN where the peer offers none.
    fn authenticated(
        &self,
        connection: &CommonState,
        sni: Option<Arc<str>>,
    ) -> Result<Authenticated, HandshakeError> {
        let protocol = match connection.alpn_protocol() {
            Some(ALPN) => Protocol::Hbone,
            Some(NATIVE_ALPN) => Protocol::Native,
            _ => return Err(HandshakeError::NoAlpn),
        };
        let leaf =
            connection.peer_certificates().and_then(<[_]>::first).ok_or(HandshakeError::NoCertificate)?;
        let VerifiedLeaf { id: peer, not_after } = read_verified(leaf)?;
        Ok(Authenticated { protocol, peer, not_after: not_after.min(self.not_after), sni })
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("id", &self.id).field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// A TLS client that has said hello and waits for a certificate: the server may choose which by the SNI.
pub struct Hello<IO> {
    io: IO,
    sni: Option<Arc<str>>,
    /// As it came.
    incoming: Incoming,
}

impl<IO> Hello<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// Reads the ClientHello.
    ///
    /// # Errors
    /// What came is no TLS, or the client closed.
    pub async fn read(mut io: IO) -> Result<Self, HandshakeError> {
        let (mut acceptor, mut incoming, mut seen) = (Acceptor::default(), Incoming::default(), 0);
        loop {
            incoming.receive(&mut io).await?;
            while let Some(mut new) = incoming.bytes().get(seen..).filter(|new| !new.is_empty()) {
                seen += acceptor.read_tls(&mut new)?;
                match acceptor.accept() {
                    Ok(None) => {}
                    Ok(Some(accepted)) => {
                        let sni = accepted.client_hello().server_name().map(Arc::from);
                        return Ok(Self { io, sni, incoming });
                    }
                    Err((error, mut alert)) => {
                        let mut told = Vec::new();
                        alert.write(&mut told)?;
                        // The client's fault is what is reported, whether it takes the alert or not.
                        let _ = io.write_all(&told).await;
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// The server name it asked for.
    #[must_use]
    pub fn sni(&self) -> Option<&str> {
        self.sni.as_deref()
    }

    /// Goes on as [`Endpoint::accept`] does.
    ///
    /// # Errors
    /// Why not.
    pub async fn accept(
        self,
        endpoint: &Endpoint,
    ) -> Result<(SecureStream<IO>, Authenticated), HandshakeError> {
        let Self { mut io, sni, mut incoming } = self;
        let (mut config, told) = (ServerConfig::clone(&endpoint.server), Arc::new(Told::default()));
        config.key_log = Arc::clone(&told) as _;
        let mut server =
            UnbufferedServerConnection::new(Arc::new(config)).map_err(HandshakeError::OwnConfiguration)?;
        shake(&mut io, &mut server, &mut incoming).await?;
        let peer = endpoint.authenticated(&server, sni)?;
        let session = Session::of_server(server, &told)?;
        Ok((SecureStream::new(io, session, &incoming.into_rest()), peer))
    }
}

fn server_config(
    bundles: Arc<BundleSet>,
    identity: Arc<SingleCertAndKey>,
    native: bool,
) -> Result<ServerConfig, HandshakeError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(HandshakeError::OwnConfiguration)?
        .with_client_cert_verifier(Arc::new(AnyTrustedClient::new(bundles)))
        .with_cert_resolver(identity);
    config.alpn_protocols = alpn(native);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = true;
    Ok(config)
}

fn client_config(
    bundles: Arc<BundleSet>,
    identity: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, HandshakeError> {
    let nobody = ExpectedServer::new(bundles, Arc::new([]));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(HandshakeError::OwnConfiguration)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nobody))
        .with_client_cert_resolver(identity);
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(config)
}

fn certified(svid: &X509Svid) -> Result<SingleCertAndKey, HandshakeError> {
    let key = aws_lc_rs::sign::any_supported_type(&PrivateKeyDer::Pkcs8(svid.key().pkcs8()))
        .map_err(HandshakeError::OwnConfiguration)?;
    Ok(SingleCertAndKey::from(CertifiedKey::new(svid.chain().to_vec(), key)))
}

/// What is offered, or chosen from: in the order of preference.
fn alpn(native: bool) -> Vec<Vec<u8>> {
    let own = native.then(|| NATIVE_ALPN.to_vec());
    own.into_iter().chain([ALPN.to_vec()]).collect()
}

/// rustls wants a name even where none is sent; an address never becomes an SNI (RFC 6066 §3).
fn server_name(sni: Option<&str>) -> Result<ServerName<'static>, HandshakeError> {
    let name = sni.unwrap_or(NO_NAME);
    ServerName::try_from(name.to_owned()).map_err(|_| HandshakeError::InvalidSni { sni: name.to_owned() })
}

/// The process's cryptography, said in full so that no feature flag of a dependency can change it.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            // AES-128 first: as far out of reach as AES-256, a quarter cheaper, and it is every byte that pays.
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                aws_lc_rs::kx_group::X25519MLKEM768,
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
                aws_lc_rs::kx_group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    provider.clone()
}

/// What HBONE negotiates, exactly (istio/ztunnel `src/tls/certificate.rs`).
const ALPN: &[u8] = b"h2";

/// The native tunnel (docs/native.md).
const NATIVE_ALPN: &[u8] = b"signet/2";

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

const NO_NAME: &str = "0.0.0.0";

#[cfg(test)]
mod tests;
