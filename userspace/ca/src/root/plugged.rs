//! An intermediate of somebody else's root: chain, key and root as PEM files, the shape of Istio's `cacerts` secret.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::config::Lifetimes;
use crate::issuer::Issuer;
use crate::root::{RootError, check_ca, check_pair, key_file, read_certificates};

/// Reads and checks the three files. That the chain leads to the root shows in the proof that follows.
pub(crate) fn open(
    chain_path: &Path,
    key_path: &Path,
    root_path: &Path,
    lifetimes: Lifetimes,
) -> Result<Issuer, RootError> {
    let key = key_file::read(key_path)?;
    let mut chain = read_certificates(chain_path)?;
    let roots = read_certificates(root_path)?;
    let expires = first_expiry(chain_path, &chain)?;
    // Roots may be rotated: of several, one that still holds is enough.
    let root_expires = last_expiry(root_path, &roots)?;
    check_pair(&key, key_path, &chain[0], chain_path)?;
    let signer = rcgen::Issuer::from_ca_cert_der(&chain[0], key)?;
    chain.retain(|certificate| !roots.contains(certificate));
    Ok(Issuer::new(signer, chain, roots, expires.min(root_expires), lifetimes))
}

fn first_expiry(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<OffsetDateTime, RootError> {
    let expiries = expiries(path, certificates).collect::<Result<Vec<_>, _>>()?;
    Ok(expiries.into_iter().min().expect(NOT_EMPTY))
}

fn last_expiry(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<OffsetDateTime, RootError> {
    match expiries(path, certificates).flatten().max() {
        Some(last) => Ok(last),
        None => expiries(path, certificates).next().expect(NOT_EMPTY),
    }
}

fn expiries(
    path: &Path,
    certificates: &[CertificateDer<'_>],
) -> impl Iterator<Item = Result<OffsetDateTime, RootError>> {
    certificates.iter().enumerate().map(move |(index, der)| check_ca(path, index + 1, der))
}

const NOT_EMPTY: &str = "a file without certificates is an error when it is read";
