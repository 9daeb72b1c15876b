//! An intermediate of somebody else's root: chain, key and root as PEM files, the shape of Istio's `cacerts` secret.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::config::Lifetimes;
use crate::issuer::Issuer;
use crate::root::{Place, RootError, check_ca, check_pair, key_file, read_certificates};

/// Reads and checks the three files. That the chain leads to the root shows in the proof that follows.
pub(crate) fn open(
    chain_path: &Path,
    key_path: &Path,
    root_path: &Path,
    lifetimes: Lifetimes,
) -> Result<Issuer, RootError> {
    let place = |path: &Path| Place::file(path);
    let (chain_place, root_place) = (place(chain_path), place(root_path));
    let key = key_file::read(key_path)?;
    let mut chain = read_certificates(&chain_place, chain_path)?;
    let roots = read_certificates(&root_place, root_path)?;
    let expires = first_expiry(&chain_place, &chain)?;
    // Roots may be rotated: of several, one that still holds is enough.
    let root_expires = last_expiry(&root_place, &roots)?;
    check_pair(&key, &place(key_path), &chain[0], &chain_place)?;
    let signer = rcgen::Issuer::from_ca_cert_der(&chain[0], key)?;
    chain.retain(|certificate| !roots.contains(certificate));
    Ok(Issuer::new(signer, chain, roots, expires.min(root_expires), lifetimes))
}

fn first_expiry(place: &Place, certificates: &[CertificateDer<'_>]) -> Result<OffsetDateTime, RootError> {
    let expiries = expiries(place, certificates).collect::<Result<Vec<_>, _>>()?;
    Ok(expiries.into_iter().min().expect(NOT_EMPTY))
}

fn last_expiry(place: &Place, certificates: &[CertificateDer<'_>]) -> Result<OffsetDateTime, RootError> {
    match expiries(place, certificates).flatten().max() {
        Some(last) => Ok(last),
        None => expiries(place, certificates).next().expect(NOT_EMPTY),
    }
}

fn expiries(
    place: &Place,
    certificates: &[CertificateDer<'_>],
) -> impl Iterator<Item = Result<OffsetDateTime, RootError>> {
    certificates.iter().enumerate().map(move |(index, der)| check_ca(place, index + 1, der))
}

const NOT_EMPTY: &str = "a file without certificates is an error when it is read";
