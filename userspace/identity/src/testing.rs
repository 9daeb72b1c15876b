//! A CA for tests: SVIDs as a good CA makes them, and every way to make them badly.
//!
//! Behind the feature `testing`, for the `[dev-dependencies]` of other crates. Keys are made per call and nothing is
//! written anywhere. It is no CA: it checks nothing, which is its point.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;

use crate::bundle::{BundleSet, TrustBundle};
use crate::key::PrivateKey;
use crate::spiffe_id::SpiffeId;
use crate::svid::X509Svid;
use crate::trust_domain::TrustDomain;

pub use {rcgen, time};

/// A CA of one trust domain: a root, and below it as many intermediates as a test asks for.
pub struct TestCa {
    trust_domain: TrustDomain,
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// From the issuer up, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
}

/// A chain and its key, unchecked.
#[derive(Debug)]
pub struct Issued {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKey,
}

impl TestCa {
    /// A fresh root for a trust domain.
    ///
    /// # Panics
    /// The name is no trust domain.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).expect("a legal trust domain");
        let params = ca_params(&trust_domain);
        let issuer = CertifiedIssuer::self_signed(params, new_key()).expect("rcgen signs its own parameters");
        let root = issuer.der().clone();
        Self { trust_domain, issuer, intermediates: Vec::new(), root }
    }

    /// A CA below this one, changed as the test likes.
    #[must_use]
    pub fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(&self.trust_domain);
        change(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, new_key(), &self.issuer).expect("rcgen signs");
        let intermediates = [vec![issuer.der().clone()], self.intermediates.clone()].concat();
        Self { trust_domain: self.trust_domain.clone(), issuer, intermediates, root: self.root.clone() }
    }

    /// Whose roots these are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What signs, for certificates that a test makes itself.
    #[must_use]
    pub fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The root certificate.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root as PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        pem(std::slice::from_ref(&self.root))
    }

    /// The bundle of this trust domain.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.trust_domain.clone(), vec![self.root.clone()]).expect("a root of ours")
    }

    /// The set of this bundle alone.
    #[must_use]
    pub fn bundles(&self) -> Arc<BundleSet> {
        self.bundles_with(&[])
    }

    /// The set of this bundle and those of other trust domains.
    ///
    /// # Panics
    /// Two of them have the same trust domain.
    #[must_use]
    pub fn bundles_with(&self, others: &[&Self]) -> Arc<BundleSet> {
        let mut set = BundleSet::of(self.bundle());
        for other in others {
            set.insert(other.bundle()).expect("one CA a trust domain");
        }
        Arc::new(set)
    }

    /// The ID of a service account of this trust domain.
    ///
    /// # Panics
    /// The names are no path segments.
    #[must_use]
    pub fn id(&self, namespace: &str, service_account: &str) -> SpiffeId {
        SpiffeId::for_service_account(&self.trust_domain, namespace, service_account).expect("legal names")
    }

    /// A good SVID that trusts this trust domain, valid from a minute ago for one hour.
    #[must_use]
    pub fn svid(&self, namespace: &str, service_account: &str) -> Arc<X509Svid> {
        self.svid_trusting(namespace, service_account, self.bundles())
    }

    /// A good SVID that trusts what the test says; this trust domain must be in it.
    ///
    /// # Panics
    /// It is not.
    #[must_use]
    pub fn svid_trusting(
        &self,
        namespace: &str,
        service_account: &str,
        bundles: Arc<BundleSet>,
    ) -> Arc<X509Svid> {
        let id = self.id(namespace, service_account);
        let Issued { chain, key } = self.issue(id.as_str(), |_| {});
        Arc::new(X509Svid::new(&id, chain, key, bundles, UnixTime::now()).expect("a good SVID"))
    }

    /// A chain for a URI that need not be a SPIFFE ID, changed as the test likes.
    #[must_use]
    pub fn issue(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = new_key();
        let chain = self.sign(uri, &key, change);
        Issued { chain, key: PrivateKey::new(PrivatePkcs8KeyDer::from(key.serialize_der())) }
    }

    /// A chain for a key that somebody else holds.
    #[must_use]
    pub fn sign(
        &self,
        uri: &str,
        key: &impl PublicKeyData,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let mut params = leaf_params(uri);
        change(&mut params);
        let leaf = params.signed_by(key, &self.issuer).expect("rcgen signs");
        [vec![leaf.der().clone()], self.intermediates.clone()].concat()
    }
}

impl Issued {
    /// The chain as PEM.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        pem(&self.chain)
    }

    /// The key as PEM.
    #[must_use]
    pub fn key_pem(&self) -> String {
        encode_pem("PRIVATE KEY", self.key.pkcs8().secret_pkcs8_der())
    }
}

/// What a good leaf has: one URI SAN, empty subject, digitalSignature, serverAuth and clientAuth, no CA.
#[must_use]
pub fn leaf_params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri_san(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = from_now(-60);
    params.not_after = from_now(3600);
    params
}

/// A URI SAN.
///
/// # Panics
/// The URI is not ASCII.
#[must_use]
pub fn uri_san(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("an ASCII URI"))
}

/// That many seconds from now.
#[must_use]
pub fn from_now(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::seconds(seconds)
}

/// That many seconds from now, as certificates are judged by.
#[must_use]
pub fn unix_from_now(seconds: i64) -> UnixTime {
    let seconds = from_now(seconds).unix_timestamp().try_into().expect("after 1970");
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// Certificates as PEM.
#[must_use]
pub fn pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| encode_pem("CERTIFICATE", der)).collect()
}

fn ca_params(trust_domain: &TrustDomain) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    // Distinct names, so that path building has no two signers to choose from.
    params.distinguished_name.push(DnType::CommonName, format!("{:016x}", nonce()));
    params.subject_alt_names = vec![uri_san(&format!("spiffe://{trust_domain}"))];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = from_now(-3600);
    params.not_after = from_now(10 * 365 * 24 * 3600);
    params
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the machine has randomness")
}

fn nonce() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

fn encode_pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
