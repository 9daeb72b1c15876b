//! The Istio CA API: istiod, or signet-ca, which speaks the same (istio/ztunnel `proto/citadel.proto`).
//!
//! A key is made per attempt and never leaves this process; the request names the workload's identity in its single URI
//! SAN and, for the CA's node authorisation, in the metadata `ImpersonatedIdentity`. Token and roots are read anew from
//! their files each time, since both are rotated under us. The connection is made when first needed, kept, and made
//! anew when it breaks or the roots change. The CA is trusted to be the CA, and not to answer rightly: everything it
//! returns is bounded, and checked as a stranger's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{PrivatePkcs8KeyDer, UnixTime};
use signet_identity::{PrivateKey, SpiffeId, X509Svid};
use signet_proto::istio_ca::IMPERSONATED_IDENTITY;
use signet_proto::istio_ca::IstioCertificateRequest;
use signet_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use zeroize::Zeroizing;

use super::{Authority, FetchError, bounded};
use crate::addr::WorkloadUid;

mod answer;
mod connection;
mod reach;
mod refusal;

pub use connection::AddressError;
use connection::Target;

/// Which CA, and how this node proves who it is.
#[derive(Clone, Debug)]
pub struct IstioOptions {
    /// `https://host:15012`.
    pub address: String,
    /// The name its certificate must carry; the host of `address` where absent.
    pub server_name: Option<String>,
    /// PEM roots for its TLS.
    pub roots: PathBuf,
    /// The node's token, a JWT.
    pub token: PathBuf,
    /// How long an SVID shall live. The CA may decide for less.
    pub ttl: Duration,
    /// The header `clusterid`, by which istiod picks the cluster whose tokens these are. Not sent where empty.
    pub cluster: String,
}

/// SVIDs by CreateCertificate.
#[derive(Debug)]
pub struct IstioAuthority {
    options: IstioOptions,
    target: Target,
    /// The connection, and the roots it was made with. Written by the first attempt, and when the roots have changed.
    channel: Mutex<Option<(Arc<[u8]>, Channel)>>,
    /// Bounds a whole attempt.
    timeout: Duration,
}

impl IstioAuthority {
    /// Checks the address. Nothing is connected or read before the first attempt: a CA that is down is no start failure.
    ///
    /// # Errors
    /// An address that no CA can have.
    pub fn new(options: IstioOptions) -> Result<Self, AddressError> {
        let target = Target::parse(&options.address, options.server_name.as_deref())?;
        Ok(Self { options, target, channel: Mutex::new(None), timeout: ATTEMPT_TIMEOUT })
    }

    async fn channel(&self) -> Result<Channel, FetchError> {
        let roots = bounded::read(&self.options.roots, MAX_ROOTS_BYTES).await?;
        let mut cached = self.channel.lock();
        if let Some((of, channel)) = &*cached
            && **of == **roots
        {
            return Ok(channel.clone());
        }
        let channel = self
            .target
            .channel(&roots)
            .map_err(|reason| FetchError::File { path: self.options.roots.clone(), reason })?;
        *cached = Some((roots.as_slice().into(), channel.clone()));
        Ok(channel)
    }

    /// `Bearer <token>`, marked so that no one prints it.
    async fn authorization(&self) -> Result<MetadataValue<Ascii>, FetchError> {
        let token = bounded::read(&self.options.token, MAX_TOKEN_BYTES).await?;
        let header = Zeroizing::new([b"Bearer ", token.trim_ascii()].concat());
        let mut value = MetadataValue::try_from(header.as_slice()).map_err(|_| FetchError::File {
            path: self.options.token.clone(),
            reason: "it is no token: a JWT is one line of ASCII".into(),
        })?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn request(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, FetchError> {
        let authorization = self.authorization().await?;
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.options.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonating(id)),
        });
        request.metadata_mut().insert("authorization", authorization);
        if let Ok(cluster) = MetadataValue::try_from(&self.options.cluster)
            && !self.options.cluster.is_empty()
        {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let mut client = IstioCertificateServiceClient::new(self.channel().await?)
            .max_decoding_message_size(MAX_ANSWER_BYTES);
        match client.create_certificate(request).await {
            Ok(answer) => Ok(answer.into_inner().cert_chain),
            Err(status) => Err(refusal::sort(&status, self.target.address(), id)),
        }
    }

    async fn attempt(&self, id: &SpiffeId) -> Result<X509Svid, FetchError> {
        let (key, csr) = key_and_request(id)?;
        let certificates = self.request(id, csr).await?;
        answer::check(&certificates, id, key, self.target.address(), UnixTime::now())
    }
}

impl Authority for IstioAuthority {
    async fn fetch(&self, _: &WorkloadUid, id: &SpiffeId) -> Result<X509Svid, FetchError> {
        match tokio::time::timeout(self.timeout, self.attempt(id)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let address = self.target.address().clone();
                Err(FetchError::Timeout { address, after: self.timeout })
            }
        }
    }
}

/// A fresh P-256 key, and the CSR as ztunnel makes it: empty subject, one URI SAN.
fn key_and_request(id: &SpiffeId) -> Result<(PrivateKey, String), FetchError> {
    let fault = |e: rcgen::Error| FetchError::Key { id: id.clone(), reason: e.to_string() };
    let pair = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(fault)?);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(fault)?)];
    let csr = params.serialize_request(&*pair).and_then(|csr| csr.pem()).map_err(fault)?;
    Ok((PrivateKey::new(PrivatePkcs8KeyDer::from(pair.serialize_der())), csr))
}

fn impersonating(id: &SpiffeId) -> prost_types::Struct {
    let kind = prost_types::value::Kind::StringValue(id.to_string());
    let value = prost_types::Value { kind: Some(kind) };
    prost_types::Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
}

/// A whole attempt: connect, ask, answer. A CA signs in milliseconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// Ten certificates of 16 KiB, and some roots.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

const MAX_ROOTS_BYTES: usize = 1024 * 1024;
const MAX_TOKEN_BYTES: usize = 32 * 1024;

#[cfg(test)]
mod tests;
