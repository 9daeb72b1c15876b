//! What signs: a root of its own, in files or in a Secret, or an intermediate of somebody else's.
//!
//! Either way the result is put to the proof before the first request: it signs an SVID, which must pass the very
//! verification a peer will do. A chain that cannot work is an error at start, not at every handshake.

mod generated;
mod key_file;
mod place;
mod plugged;
pub(crate) mod secret;

use std::path::PathBuf;

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use signet_apiserver::{ApiServer, Fault};
use signet_identity::{BundleError, BundleSet, SpiffeId, SvidError, TrustBundle, TrustDomain, verify_peer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use self::place::Place;
use crate::config::{Config, Lifetimes, Root};
use crate::grant::Grant;
use crate::issuer::{IssueError, Issuer};

/// Why nothing can be signed. Each names the file, or the Secret and its key.
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
    #[error("{} is no PEM private key of a kind that signs (PKCS#8, ECDSA or RSA)", place)]
    Key {
        /// Which.
        place: Place,
    },
    /// A certificate without its key.
    #[error(
        "{} is there, but its key {} is not: bring it back, or remove the certificate for a new root",
        certificate,
        key
    )]
    KeyMissing {
        /// The certificate.
        certificate: Place,
        /// Where the key belongs.
        key: Place,
    },
    /// Not PEM certificates.
    #[error("{} holds no PEM certificates: {reason}", place)]
    Certificates {
        /// Which.
        place: Place,
        /// Why.
        reason: String,
    },
    /// Key and certificate are not of one pair.
    #[error("the key {} is not the one of the first certificate in {}", key, certificate)]
    Mismatch {
        /// The key.
        key: Place,
        /// The certificate.
        certificate: Place,
    },
    /// A certificate may not sign.
    #[error("certificate {position} in {} is no CA certificate (cA, keyCertSign)", place)]
    NoCa {
        /// Which file.
        place: Place,
        /// Which of its certificates, from 1.
        position: usize,
    },
    /// A certificate is out of date.
    #[error("certificate {position} in {} is valid from {from} to {to} only", place)]
    OutOfDate {
        /// Which file.
        place: Place,
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
    #[error("what {} signs would not be accepted by a peer: {source}", place)]
    Rejected {
        /// The chain.
        place: Place,
        /// The rule.
        source: SvidError,
    },
    /// It signs nothing.
    #[error("{}: {source}", place)]
    Issue {
        /// The chain.
        place: Place,
        /// Why.
        source: IssueError,
    },
    /// The Secret cannot be read or made.
    #[error("the root's Secret {namespace}/{name}: {fault}")]
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Why.
        fault: Box<Fault>,
    },
    /// The Secret is not whole.
    #[error(
        "{place} is not there: bring it back, or stop every signet-ca and delete the Secret for a new root"
    )]
    Incomplete {
        /// What is missing.
        place: Place,
    },
    /// What a Secret holds is no text.
    #[error("{place} is no text")]
    Text {
        /// Which.
        place: Place,
    },
    /// The Secret is made and deleted again and again.
    #[error("the root's Secret {namespace}/{name} was there and is gone again: who deletes it?")]
    Fleeting {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The roots are no bundle.
    #[error("{}: {source}", place)]
    Bundle {
        /// The roots.
        place: Place,
        /// Why.
        source: BundleError,
    },
}

/// Loads or makes what the configuration asks for, and proves it.
pub(crate) async fn open(config: &Config, api_server: Option<&ApiServer>) -> Result<Issuer, RootError> {
    let (trust_domain, lifetimes) = (&config.trust_domain, config.svid);
    let (issuer, roots, chain) = match &config.root {
        Root::Directory(directory) => {
            let certificate = Place::file(&directory.join(generated::CERTIFICATE));
            (generated::open(directory, trust_domain, lifetimes)?, certificate.clone(), certificate)
        }
        Root::Secret { .. } => {
            let secret = secret::Secret::of(config, api_server.expect("opened where a Secret is configured"));
            let certificate = secret.place(generated::CERTIFICATE);
            (secret.open(trust_domain, lifetimes).await?, certificate.clone(), certificate)
        }
        Root::Plugged { chain, key, root } => {
            let (root_place, chain_place) = (Place::file(root), Place::file(chain));
            (plugged::open(chain, key, root, lifetimes)?, root_place, chain_place)
        }
    };
    prove(&issuer, trust_domain, &roots, &chain)?;
    Ok(issuer)
}

/// Signs an SVID that nobody gets, and verifies it as a peer would.
fn prove(issuer: &Issuer, trust_domain: &TrustDomain, roots: &Place, chain: &Place) -> Result<(), RootError> {
    let bundle = TrustBundle::new(trust_domain.clone(), issuer.roots().to_vec())
        .map_err(|source| RootError::Bundle { place: roots.clone(), source })?;
    let identity = SpiffeId::for_service_account(trust_domain, "signet-ca", "self-check")
        .expect("the names are legal path segments");
    let key = KeyPair::generate()?;
    let issued = issuer
        .svid(&Grant::for_self_check(identity), &key, None, OffsetDateTime::now_utc())
        .map_err(|source| RootError::Issue { place: chain.clone(), source })?;
    let presented: Vec<_> =
        std::iter::once(issued.leaf).chain(issuer.intermediates().iter().cloned()).collect();
    verify_peer(&presented, &BundleSet::of(bundle), rustls_pki_types::UnixTime::now())
        .map_err(|source| RootError::Rejected { place: chain.clone(), source })?;
    Ok(())
}

/// All certificates of a PEM text.
fn parse_certificates(place: &Place, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, RootError> {
    let malformed = |reason: String| RootError::Certificates { place: place.clone(), reason };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| malformed(e.to_string()))?;
    if certificates.is_empty() {
        return Err(malformed("no CERTIFICATE section".into()));
    }
    Ok(certificates)
}

/// All certificates of a PEM file.
fn read_certificates(
    place: &Place,
    path: &std::path::Path,
) -> Result<Vec<CertificateDer<'static>>, RootError> {
    let pem = std::fs::read(path).map_err(|source| RootError::File { path: path.to_owned(), source })?;
    parse_certificates(place, &pem)
}

/// Puts a root's own key and certificate together.
fn own(
    key: KeyPair,
    key_place: &Place,
    roots: Vec<CertificateDer<'static>>,
    place: &Place,
    lifetimes: Lifetimes,
) -> Result<Issuer, RootError> {
    let expires = check_ca(place, 1, &roots[0])?;
    check_pair(&key, key_place, &roots[0], place)?;
    let signer = rcgen::Issuer::from_ca_cert_der(&roots[0], key)?;
    Ok(Issuer::new(signer, Vec::new(), roots, expires, lifetimes))
}

/// Holds a CA certificate to the rules and tells when it expires.
fn check_ca(place: &Place, position: usize, der: &CertificateDer<'_>) -> Result<OffsetDateTime, RootError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| RootError::Certificates {
        place: place.clone(),
        reason: format!("certificate {position}: {e}"),
    })?;
    let usage = certificate.key_usage().ok().flatten();
    if !certificate.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(RootError::NoCa { place: place.clone(), position });
    }
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    let now = OffsetDateTime::now_utc();
    if now < from || now >= to {
        return Err(RootError::OutOfDate { place: place.clone(), position, from, to });
    }
    Ok(to)
}

/// That a key is the one in a certificate.
fn check_pair(
    key: &KeyPair,
    key_place: &Place,
    der: &CertificateDer<'_>,
    certificate: &Place,
) -> Result<(), RootError> {
    let same = X509Certificate::from_der(der)
        .is_ok_and(|(_, certificate)| certificate.public_key().raw == key.subject_public_key_info());
    match same {
        true => Ok(()),
        false => Err(RootError::Mismatch { key: key_place.clone(), certificate: certificate.clone() }),
    }
}

#[cfg(test)]
mod tests;
