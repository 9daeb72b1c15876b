//! The CA's own TLS: a certificate from its own issuer, renewed at half-life without a restart.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tracing::{error, info};

use crate::config;
use crate::issuer::{IssueError, Issued, Issuer};
use crate::metrics::Metrics;

/// The certificate in use, and how to get the next one.
#[derive(Debug)]
pub(crate) struct Serving {
    issuer: Arc<Issuer>,
    subject: config::Serving,
    metrics: Metrics,
    /// Written by [`Self::renew`], read by each handshake.
    current: RwLock<Arc<CertifiedKey>>,
}

/// Why the CA has no certificate for itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServingError {
    /// It could not be signed.
    #[error("serving: {0}")]
    Issue(#[from] IssueError),
    /// The library refuses the key.
    #[error("serving: {0}")]
    Tls(#[from] rustls::Error),
}

impl Serving {
    /// Issues the first certificate.
    pub(crate) fn new(
        issuer: Arc<Issuer>,
        subject: config::Serving,
        metrics: Metrics,
    ) -> Result<(Arc<Self>, Duration), ServingError> {
        let (first, lifetime) = issue(&issuer, &subject, &metrics)?;
        let current = RwLock::new(Arc::new(first));
        Ok((Arc::new(Self { issuer, subject, metrics, current }), lifetime))
    }

    /// Renews the certificate at half-life, for ever. A renewal that fails is tried again soon.
    pub(crate) async fn renew(self: Arc<Self>, mut lifetime: Duration) {
        loop {
            tokio::time::sleep(lifetime / 2).await;
            match issue(&self.issuer, &self.subject, &self.metrics) {
                Ok((next, its_lifetime)) => {
                    *self.current.write() = Arc::new(next);
                    lifetime = its_lifetime;
                    info!("serving certificate renewed");
                }
                Err(e) => {
                    error!(error = %e, "serving certificate not renewed");
                    lifetime = RETRY * 2;
                }
            }
        }
    }

    /// TLS 1.3 with this certificate, for gRPC.
    pub(crate) fn tls(self: Arc<Self>) -> Result<ServerConfig, ServingError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth();
        let mut config = builder.with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

fn issue(
    issuer: &Issuer,
    subject: &config::Serving,
    metrics: &Metrics,
) -> Result<(CertifiedKey, Duration), ServingError> {
    let now = OffsetDateTime::now_utc();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::from)?;
    let Issued { leaf, expires, .. } =
        issuer.serving(&subject.names, &subject.addresses, subject.ttl, &key, now)?;
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialized_der()));
    let signing = aws_lc_rs::sign::any_ecdsa_type(&der)?;
    let chain = std::iter::once(leaf).chain(issuer.intermediates().iter().cloned()).collect();
    metrics.set_serving_expiry(expires);
    let lifetime = Duration::try_from(expires - now).unwrap_or_default();
    Ok((CertifiedKey::new(chain, signing), lifetime))
}

const RETRY: Duration = Duration::from_secs(60);
