//! `CreateCertificate`: authenticate, authorize, parse, issue, in that order, each step consuming what the one before
//! has established. One log line and one metric update per request, whatever its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;
use signet_identity::TrustDomain;
use signet_proto::istio_ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use signet_proto::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::csr::Csr;
use crate::grant::{Grant, grant};
use crate::inventory::Reader;
use crate::issuer::{Issued, Issuer, pem};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::token::{Node, TokenError, Verifier};

/// The Istio CA API.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) verifier: Verifier,
    pub(crate) inventory: Reader,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) metrics: Metrics,
}

impl Service {
    /// As a gRPC service with bounded messages.
    pub(crate) fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    async fn create(&self, request: Request<IstioCertificateRequest>) -> Result<(Grant, Issued), Refusal> {
        let node = self.authenticate(request.metadata()).await?;
        let request = request.into_inner();
        let grant = grant(&node, request.metadata.as_ref(), &self.trust_domain, &self.inventory).await?;
        let issued = self.issue(&grant, &request)?;
        Ok((grant, issued))
    }

    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Node, TokenError> {
        self.verifier.verify(metadata.get_all("authorization").iter().map(|value| value.as_bytes())).await
    }

    fn issue(&self, grant: &Grant, request: &IstioCertificateRequest) -> Result<Issued, Refusal> {
        let refused = |source| Refusal::Csr {
            node: grant.node().to_owned(),
            identity: grant.identity().clone(),
            source,
        };
        let csr = Csr::parse(&request.csr).map_err(refused)?;
        let key = csr.key_for(grant.identity()).map_err(refused)?;
        let asked = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0);
        Ok(self.issuer.svid(grant, key, asked.map(Duration::from_secs), OffsetDateTime::now_utc())?)
    }

    /// Leaf, intermediates one by one, and the roots together as the last.
    fn chain(&self, leaf: &CertificateDer<'_>) -> Vec<String> {
        let mut chain = vec![pem(leaf)];
        chain.extend(self.issuer.intermediates().iter().map(pem));
        chain.push(self.issuer.roots_pem());
        chain
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let started = Instant::now();
        match self.create(request).await {
            Ok((grant, issued)) => {
                self.metrics.issued(started.elapsed());
                log_issued(&grant, &issued);
                Ok(Response::new(IstioCertificateResponse { cert_chain: self.chain(&issued.leaf) }))
            }
            Err(refusal) => {
                self.metrics.refused(&refusal, started.elapsed());
                info!(target: "access", reason = refusal.label(), detail = %refusal, "certificate refused");
                Err(refusal.status())
            }
        }
    }
}

fn log_issued(grant: &Grant, issued: &Issued) {
    let expires = issued.expires.format(&Rfc3339).unwrap_or_default();
    info!(
        target: "access",
        identity = %grant.identity(),
        node = grant.node(),
        serial = issued.serial,
        expires,
        "certificate issued"
    );
}

/// A CSR of a few hundred bytes and a name; istio-agent sends some metadata of its own.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
