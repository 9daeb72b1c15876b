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
    let mut first = None;
    for (index, certificate) in certificates.iter().enumerate() {
        let expires = check_ca(path, index + 1, certificate)?;
        first = Some(first.map_or(expires, |first: OffsetDateTime| first.min(expires)));
    }
    Ok(first.expect("a file without certificates is an error when it is read"))
}

fn last_expiry(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<OffsetDateTime, RootError> {
    let checked = certificates.iter().enumerate().map(|(index, der)| check_ca(path, index + 1, der));
    let mut last = Err(None);
    for expiry in checked {
        last = match (last, expiry) {
            (Ok(last), Ok(expires)) => Ok(std::cmp::max(last, expires)),
            (Ok(last), Err(_)) => Ok(last),
            (Err(_), Ok(expires)) => Ok(expires),
            (Err(first), Err(error)) => Err(first.or(Some(error))),
        };
    }
    last.map_err(|error| error.expect("a file without certificates is an error when it is read"))
}
