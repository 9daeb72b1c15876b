//! The connection to the CA: HTTP/2 over TLS 1.3, its certificate judged by the configured roots and a name.
//!
//! The CA's serving certificate is an ordinary one with a DNS name or an address, no SVID: it is checked as a web
//! server's. tonic's own TLS would do, were it not for TLS 1.2, and for errors that only a text tells apart.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Why an address is none of a CA.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not `https://host:port`.
    #[error("ca.istio.address {address:?}: give https://<host>:<port>")]
    Address {
        /// As configured.
        address: String,
    },
    /// Neither a DNS name nor an IP address.
    #[error(
        "ca.istio.serverName {name:?}: give the DNS name or the address that the CA's certificate carries"
    )]
    ServerName {
        /// As configured, or the host of the address.
        name: String,
    },
}

/// Where the CA is, and who it must be.
#[derive(Clone, Debug)]
pub(super) struct Target {
    address: Arc<str>,
    origin: Uri,
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// Why there is no connection. Found again in the sources of a `tonic::Status`.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no connection: {0}")]
    Tcp(io::Error),
    #[error("no TLS: {0}")]
    Tls(io::Error),
    #[error("its certificate is not acceptable: {0}")]
    Untrusted(rustls::Error),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
}

impl Target {
    pub(super) fn parse(address: &str, server_name: Option<&str>) -> Result<Self, AddressError> {
        let fault = || AddressError::Address { address: address.to_owned() };
        let origin: Uri = address.parse().map_err(|_| fault())?;
        if origin.scheme_str() != Some("https") || !matches!(origin.path(), "" | "/") {
            return Err(fault());
        }
        let authority = origin.authority().filter(|a| !a.host().is_empty()).ok_or_else(fault)?;
        let port = port(authority).ok_or_else(fault)?;
        // An IPv6 address is in brackets in a URI, and nowhere else.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = server_name.unwrap_or(&host).to_owned();
        let name = ServerName::try_from(name.clone()).map_err(|_| AddressError::ServerName { name })?;
        Ok(Self { address: address.into(), origin, host, port, name })
    }

    /// As configured, for errors.
    pub(super) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// A channel that connects when it is first used, and again when the connection broke.
    pub(super) fn channel(&self, roots: &[u8]) -> Result<Channel, String> {
        let tls = self.connector(roots)?;
        let target = Arc::new(self.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let (target, tls) = (target.clone(), tls.clone());
            async move { target.connect(&tls).await.map(TokioIo::new) }
        });
        // tonic must not see "https", which to it means its own TLS; requests carry the true origin.
        Ok(Endpoint::from_static("http://ca.invalid")
            .origin(self.origin.clone())
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .connect_with_connector_lazy(connector))
    }

    pub(super) fn connector(&self, roots: &[u8]) -> Result<TlsConnector, String> {
        Ok(TlsConnector::from(Arc::new(client_config(roots)?)))
    }

    pub(super) async fn connect(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, ConnectError> {
        let connect = async {
            let tcp = TcpStream::connect((&*self.host, self.port)).await.map_err(ConnectError::Tcp)?;
            tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
            tls.connect(self.name.clone(), tcp).await.map_err(sort)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .unwrap_or(Err(ConnectError::Timeout(CONNECT_TIMEOUT)))
    }
}

/// `http` takes a port that is none for no port, and a user for a part of nothing.
fn port(authority: &Authority) -> Option<u16> {
    match authority.as_str().strip_prefix(authority.host())? {
        "" => Some(DEFAULT_PORT),
        port => port.strip_prefix(':')?.parse().ok(),
    }
}

fn sort(error: io::Error) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(untrusted @ rustls::Error::InvalidCertificate(_)) => ConnectError::Untrusted(untrusted.clone()),
        _ => ConnectError::Tls(error),
    }
}

fn client_config(roots: &[u8]) -> Result<ClientConfig, String> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        let root = root.map_err(|e| format!("no PEM: {e}"))?;
        store.add(root).map_err(|e| format!("a root is not acceptable: {e}"))?;
    }
    if store.is_empty() {
        return Err("there is no CERTIFICATE section in it".into());
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// istiod's and signet-ca's (istio/istio `manifests/charts/ztunnel/templates/daemonset.yaml`).
const DEFAULT_PORT: u16 = 15012;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// While a request waits: a CA whose node died sends no FIN.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_host_unless_given() {
        let target = Target::parse("https://[::1]:1234", None).unwrap();
        assert_eq!((target.host.as_str(), target.port), ("::1", 1234));
        assert!(matches!(target.name, ServerName::IpAddress(_)));
        let target = Target::parse("https://10.0.0.1", Some("istiod.istio-system.svc")).unwrap();
        assert_eq!((target.port, target.name.to_str().as_ref()), (15012, "istiod.istio-system.svc"));
    }

    #[test]
    fn an_address_without_tls_or_host_is_refused() {
        for address in [
            "http://a:1",
            "a:1",
            "",
            "https://",
            "https://a:1/path",
            "https:///x",
            "https://a:99999",
            "https://b@a:1",
        ] {
            let error = Target::parse(address, None).unwrap_err();
            assert_eq!(error, AddressError::Address { address: address.to_owned() });
        }
        let error = Target::parse("https://a:1", Some("no name")).unwrap_err();
        assert_eq!(error, AddressError::ServerName { name: "no name".into() });
    }
}
