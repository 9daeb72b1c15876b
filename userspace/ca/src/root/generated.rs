//! A root of its own: made at the first start, kept in two files.
//!
//! The key is written before the certificate. So a certificate means that the root is complete, and a start that was
//! interrupted in between goes on with the same key. A key is never overwritten.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use signet_identity::TrustDomain;
use time::OffsetDateTime;
use tracing::info;
use zeroize::Zeroizing;

use crate::config::Lifetimes;
use crate::issuer::Issuer;
use crate::root::{Place, RootError, key_file, own, read_certificates};

/// The root in this directory, made where there is none.
pub(crate) fn open(
    directory: &Path,
    trust_domain: &TrustDomain,
    lifetimes: Lifetimes,
) -> Result<Issuer, RootError> {
    let (certificate_path, key_path) = (directory.join(CERTIFICATE), directory.join(KEY));
    if !certificate_path.exists() {
        generate(directory, trust_domain, &certificate_path, &key_path)?;
    }
    let (place, key_place) = (Place::file(&certificate_path), Place::file(&key_path));
    if !key_path.exists() {
        return Err(RootError::KeyMissing { certificate: place, key: key_place });
    }
    let key = key_file::read(&key_path)?;
    let roots = read_certificates(&place, &certificate_path)?;
    own(key, &key_place, roots, &place, lifetimes)
}

/// A new key.
pub(super) fn new_key() -> Result<Zeroizing<KeyPair>, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Zeroizing::new)
}

/// The certificate of a root with that key.
pub(super) fn certify(key: &KeyPair, trust_domain: &TrustDomain) -> Result<String, rcgen::Error> {
    Ok(params(trust_domain)?.self_signed(key)?.pem())
}

fn generate(
    directory: &Path,
    trust_domain: &TrustDomain,
    certificate_path: &Path,
    key_path: &Path,
) -> Result<(), RootError> {
    let io = |path: &Path| {
        let path: PathBuf = path.to_owned();
        move |source| RootError::File { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io(directory))?;
    if !key_path.exists() {
        let key = new_key()?;
        key_file::write_new(key_path, &Zeroizing::new(key.serialize_pem()), 0o600).map_err(io(key_path))?;
    }
    let certificate = certify(&key_file::read(key_path)?, trust_domain)?;
    key_file::write_new(certificate_path, &certificate, 0o644).map_err(io(certificate_path))?;
    info!(certificate = %certificate_path.display(), %trust_domain, "root generated");
    Ok(())
}

/// A SPIFFE signing certificate: its SPIFFE ID is the trust domain's, without a path (X509-SVID.md §2).
fn params(trust_domain: &TrustDomain) -> Result<CertificateParams, rcgen::Error> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, "Signet root CA");
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - Duration::from_secs(3600);
    params.not_after = now + LIFETIME;
    Ok(params)
}

/// The root certificate's file name: what nodes trust.
pub(crate) const CERTIFICATE: &str = "root-cert.pem";
/// The root key's file name.
pub(crate) const KEY: &str = "root-key.pem";
/// Ten years, as Istio's self-signed root.
const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
