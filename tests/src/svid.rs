//! X.509-SVIDs for peers that are not Signet: asked of `signet-ca` as a node would, or forged with the root's own key to
//! be wrong in one way.

use anyhow::{Context, Result, ensure};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use serde::{Deserialize, Serialize};
use signet_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use signet_proto::istio_ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use time::{Duration, OffsetDateTime};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use crate::ca::Ca;
use crate::netns::Netns;

/// A chain, its key and the roots, in PEM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Svid {
    /// Leaf first, without the root.
    pub chain: String,
    /// PKCS#8.
    pub key: String,
    /// The trust domain's roots.
    pub roots: String,
}

impl Svid {
    /// Under a root that nobody knows.
    ///
    /// # Errors
    /// No randomness.
    pub fn self_made(uri: &str) -> Result<Self> {
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let roots = root.self_signed(&root_key)?.pem();
        let issuer = Issuer::new(root, root_key);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = params(&[uri])?.signed_by(&key, &issuer)?;
        Ok(Self { chain: leaf.pem(), key: key.serialize_pem(), roots })
    }
}

impl Ca {
    /// Asks for the SVID of a workload with the token of the node it runs on.
    ///
    /// # Errors
    /// The CA refused; the text says why.
    pub fn svid(&self, node: &str, spiffe_id: &str) -> Result<Svid> {
        self.svid_with_token(&self.issuer().node_token(node)?, spiffe_id)
    }

    /// As [`Ca::svid`], with any token.
    ///
    /// # Errors
    /// The CA refused; the text says why.
    pub fn svid_with_token(&self, token: &str, spiffe_id: &str) -> Result<Svid> {
        self.authority()?.svid(token, spiffe_id)
    }

    /// Connects to it, from its own network namespace.
    ///
    /// # Errors
    /// It is not reached.
    pub(crate) async fn channel(&self) -> Result<Channel> {
        self.authority()?.channel().await
    }

    fn authority(&self) -> Result<Authority<'_>> {
        let roots = std::fs::read_to_string(self.roots())?;
        let (address, server_name) = (self.address(), self.server_name().to_owned());
        Ok(Authority { netns: self.host().netns(), address, server_name, roots })
    }

    /// A certificate for these URIs that the root itself has signed, whatever the rules say. For peers that lie.
    ///
    /// # Errors
    /// The root's files cannot be read.
    pub fn forge(&self, uris: &[&str]) -> Result<Svid> {
        let now = OffsetDateTime::now_utc();
        self.forge_valid(uris, now - Duration::minutes(1), now + Duration::hours(1))
    }

    /// As [`Ca::forge`], with a validity.
    ///
    /// # Errors
    /// The root's files cannot be read.
    pub fn forge_valid(&self, uris: &[&str], from: OffsetDateTime, to: OffsetDateTime) -> Result<Svid> {
        let roots = std::fs::read_to_string(self.roots())?;
        let root_key =
            KeyPair::from_pem(&std::fs::read_to_string(self.root_directory().join("root-key.pem"))?)?;
        let issuer = Issuer::from_ca_cert_pem(&roots, root_key)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(uris)?;
        (params.not_before, params.not_after) = (from, to);
        let leaf = params.signed_by(&key, &issuer)?;
        Ok(Svid { chain: leaf.pem(), key: key.serialize_pem(), roots })
    }
}

/// Where a CA with Istio's API answers, and how it proves that it is the one.
#[derive(Debug)]
pub struct Authority<'a> {
    /// From where to ask.
    pub netns: &'a Netns,
    /// `https://<address>:<port>`.
    pub address: String,
    /// What its certificate is for.
    pub server_name: String,
    /// What its certificate ends in, in PEM.
    pub roots: String,
}

impl Authority<'_> {
    /// Asks for an SVID with a new key.
    ///
    /// # Errors
    /// The CA refused, or is not reached; the text says why.
    pub fn svid(&self, token: &str, spiffe_id: &str) -> Result<Svid> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let asked = Asked::new(&key, token, spiffe_id)?;
        let answer = self.netns.enter(|| -> Result<Vec<String>> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { asked.ask(self.channel().await?).await })
        })??;
        ensure!(answer.len() > 1, "the CA answered with {} certificates", answer.len());
        let (roots, chain) = answer.split_last().context("the CA answered with nothing")?;
        Ok(Svid { chain: chain.concat(), key: key.serialize_pem(), roots: roots.clone() })
    }

    /// Connects to it, from where this thread is.
    async fn channel(&self) -> Result<Channel> {
        let roots = Certificate::from_pem(&self.roots);
        let tls = ClientTlsConfig::new().ca_certificate(roots).domain_name(&self.server_name);
        Ok(Channel::from_shared(self.address.clone())?.tls_config(tls)?.connect().await?)
    }
}

/// A node's question for the SVID of one of its workloads.
#[derive(Clone, Debug)]
pub struct Asked {
    csr: String,
    token: String,
    spiffe_id: String,
}

impl Asked {
    /// With the token of the node that asks.
    ///
    /// # Errors
    /// The identity is no URI.
    pub fn new(key: &KeyPair, token: &str, spiffe_id: &str) -> Result<Self> {
        let csr = params(&[spiffe_id])?.serialize_request(key)?.pem()?;
        Ok(Self { csr, token: token.to_owned(), spiffe_id: spiffe_id.to_owned() })
    }

    /// The chain, leaf first, the root last.
    ///
    /// # Errors
    /// The CA refused; the text says why.
    pub(crate) async fn ask(&self, channel: Channel) -> Result<Vec<String>> {
        let identity = prost_types::value::Kind::StringValue(self.spiffe_id.clone());
        let fields = [(IMPERSONATED_IDENTITY.to_owned(), prost_types::Value { kind: Some(identity) })];
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr: self.csr.clone(),
            // The CA's own choice.
            validity_duration: 0,
            metadata: Some(prost_types::Struct { fields: fields.into() }),
        });
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse()?);
        // By which istiod picks the cluster whose pods count.
        request.metadata_mut().insert("clusterid", "Kubernetes".parse()?);
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }
}

fn params(uris: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "testkit");
    params.subject_alt_names =
        uris.iter().map(|uri| Ok(SanType::URI((*uri).try_into()?))).collect::<Result<_, rcgen::Error>>()?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}
