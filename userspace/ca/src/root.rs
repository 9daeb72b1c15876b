//! What signs: a root of its own, or an intermediate of somebody else's.
//!
//! Either way the result is put to the proof before the first request: it signs an SVID, which must pass the very
//! verification a peer will do. A chain that cannot work is an error at start, not at every handshake.

mod generated;
mod key_file;
mod plugged;

use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use signet_identity::{BundleError, BundleSet, SpiffeId, SvidError, TrustBundle, TrustDomain, verify_peer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{Config, Root};
use crate::grant::Grant;
use crate::issuer::{IssueError, Issuer};

/// Why nothing can be signed. Each names the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others can read the private key.
    #[error("the private key {} can be read by others (mode {mode:04o}): chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The private key is none.
    #[error("{} is no PEM private key of a kind that signs (PKCS#8, ECDSA or RSA)", path.display())]
    Key {
        /// Which.
        path: PathBuf,
    },
    /// A certificate without its key.
    #[error("{} is there, but its key {} is not: bring it back, or remove the certificate for a new root", certificate.display(), key.display())]
    KeyMissing {
        /// The certificate.
        certificate: PathBuf,
        /// Where the key belongs.
        key: PathBuf,
    },
    /// Not PEM certificates.
    #[error("{} holds no PEM certificates: {reason}", path.display())]
    Certificates {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Key and certificate are not of one pair.
    #[error("the key {} is not the one of the first certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// A certificate may not sign.
    #[error("certificate {position} in {} is no CA certificate (cA, keyCertSign)", path.display())]
    NoCa {
        /// Which file.
        path: PathBuf,
        /// Which of its certificates, from 1.
        position: usize,
    },
    /// A certificate is out of date.
    #[error("certificate {position} in {} is valid from {from} to {to} only", path.display())]
    OutOfDate {
        /// Which file.
        path: PathBuf,
        /// Which of its certificates, from 1.
        position: usize,
        /// Its beginning.
        from: OffsetDateTime,
        /// Its end.
        to: OffsetDateTime,
    },
    /// The library refuses.
    #[error("cannot make the root: {0}")]
    Generate(#[from] rcgen::Error),
    /// What it signs would be refused.
    #[error("what {} signs would not be accepted by a peer: {source}", path.display())]
    Rejected {
        /// The chain.
        path: PathBuf,
        /// The rule.
        source: SvidError,
    },
    /// It signs nothing.
    #[error("{}: {source}", path.display())]
    Issue {
        /// The chain.
        path: PathBuf,
        /// Why.
        source: IssueError,
    },
    /// The roots are no bundle.
    #[error("{}: {source}", path.display())]
    Bundle {
        /// The roots.
        path: PathBuf,
        /// Why.
        source: BundleError,
    },
}

/// Loads or makes what the configuration asks for, and proves it.
pub(crate) fn open(config: &Config) -> Result<Issuer, RootError> {
    let (issuer, roots, chain) = match &config.root {
        Root::Directory(directory) => {
            let certificate = directory.join(generated::CERTIFICATE);
            (generated::open(directory, &config.trust_domain, config.svid)?, certificate.clone(), certificate)
        }
        Root::Plugged { chain, key, root } => {
            (plugged::open(chain, key, root, config.svid)?, root.clone(), chain.clone())
        }
    };
    prove(&issuer, &config.trust_domain, &roots, &chain)?;
    Ok(issuer)
}

/// Signs an SVID that nobody gets, and verifies it as a peer would.
fn prove(issuer: &Issuer, trust_domain: &TrustDomain, roots: &Path, chain: &Path) -> Result<(), RootError> {
    let bundle = TrustBundle::new(trust_domain.clone(), issuer.roots().to_vec())
        .map_err(|source| RootError::Bundle { path: roots.to_owned(), source })?;
    let identity = SpiffeId::for_service_account(trust_domain, "signet-ca", "self-check")
        .expect("the names are legal path segments");
    let key = KeyPair::generate()?;
    let issued = issuer
        .svid(&Grant::for_self_check(identity), &key, None, OffsetDateTime::now_utc())
        .map_err(|source| RootError::Issue { path: chain.to_owned(), source })?;
    let presented: Vec<_> =
        std::iter::once(issued.leaf).chain(issuer.intermediates().iter().cloned()).collect();
    verify_peer(&presented, &BundleSet::of(bundle), rustls_pki_types::UnixTime::now())
        .map_err(|source| RootError::Rejected { path: chain.to_owned(), source })?;
    Ok(())
}

/// All certificates of a PEM file.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RootError> {
    let pem = std::fs::read(path).map_err(|source| RootError::File { path: path.to_owned(), source })?;
    let malformed = |reason: String| RootError::Certificates { path: path.to_owned(), reason };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| malformed(e.to_string()))?;
    if certificates.is_empty() {
        return Err(malformed("no CERTIFICATE section".into()));
    }
    Ok(certificates)
}

/// Holds a CA certificate to the rules and tells when it expires.
fn check_ca(path: &Path, position: usize, der: &CertificateDer<'_>) -> Result<OffsetDateTime, RootError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| RootError::Certificates {
        path: path.to_owned(),
        reason: format!("certificate {position}: {e}"),
    })?;
    let usage = certificate.key_usage().ok().flatten();
    if !certificate.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(RootError::NoCa { path: path.to_owned(), position });
    }
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    let now = OffsetDateTime::now_utc();
    if now < from || now >= to {
        return Err(RootError::OutOfDate { path: path.to_owned(), position, from, to });
    }
    Ok(to)
}

/// That a key is the one in a certificate.
fn check_pair(
    key: &KeyPair,
    key_path: &Path,
    der: &CertificateDer<'_>,
    certificate_path: &Path,
) -> Result<(), RootError> {
    let same = X509Certificate::from_der(der)
        .is_ok_and(|(_, certificate)| certificate.public_key().raw == key.subject_public_key_info());
    match same {
        true => Ok(()),
        false => {
            Err(RootError::Mismatch { key: key_path.to_owned(), certificate: certificate_path.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests;
