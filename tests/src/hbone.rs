//! A bare HBONE client (docs/hbone.md): TLS 1.3, ALPN `h2`, one CONNECT. For peers that behave badly on purpose, so it
//! checks nothing of the server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, Uri, Version};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::netns;
use crate::svid::Svid;

/// How a server answered a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// With status 200: what came back through the tunnel until the server ended it.
    pub body: Vec<u8>,
}

/// Opens a connection to `to` from inside `netns`, asks for `authority`, and where that is granted sends `payload`, ends
/// its side and reads to the end. Without `svid` it presents no certificate.
///
/// # Errors
/// The server is not reached, or ends the connection without an HTTP answer: a refused handshake shows so.
pub fn connect(
    netns: &Path,
    to: SocketAddr,
    svid: Option<&Svid>,
    authority: &str,
    payload: &'static str,
) -> Result<Answer> {
    let config = Arc::new(config(svid)?);
    netns::enter(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let exchange = async { exchange(handshake(to, config).await?, authority, payload).await };
        runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await })?
    })?
}

async fn handshake(to: SocketAddr, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await.context("TCP")?;
    // As ztunnel does: an address, so that no SNI is sent.
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    TlsConnector::from(config).connect(name, tcp).await.context("TLS")
}

async fn exchange(tls: TlsStream<TcpStream>, authority: &str, payload: &'static str) -> Result<Answer> {
    let (sender, connection) = h2::client::handshake(tls).await.context("HTTP/2")?;
    let connection = tokio::spawn(connection);
    let mut sender = sender.ready().await.context("HTTP/2")?;
    let uri = Uri::builder().authority(authority).build()?;
    let request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2).uri(uri).body(())?;
    let (response, mut body) = sender.send_request(request, false)?;
    let (head, mut from) = response.await.context("CONNECT")?.into_parts();
    let mut answer = Answer { status: head.status.as_u16(), body: Vec::new() };
    if answer.status == 200 {
        body.send_data(Bytes::from_static(payload.as_bytes()), true)?;
        while let Some(data) = from.data().await {
            let data = data?;
            from.flow_control().release_capacity(data.len())?;
            answer.body.extend_from_slice(&data);
        }
    }
    connection.abort();
    Ok(answer)
}

/// TLS 1.3, ALPN `h2`, every server accepted.
pub(crate) fn config(svid: Option<&Svid>) -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match svid {
        Some(svid) => builder.with_client_auth_cert(chain(svid)?, key(svid)?)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn chain(svid: &Svid) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(svid.chain.as_bytes())
        .collect::<Result<_, _>>()
        .context("the chain")?;
    if chain.is_empty() {
        bail!("the SVID has no certificate");
    }
    Ok(chain)
}

fn key(svid: &Svid) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(svid.key.as_bytes()).context("the key")
}

/// Takes any server: what is tested is the server's view of the client.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// For all of it.
const PATIENCE: Duration = Duration::from_secs(20);
