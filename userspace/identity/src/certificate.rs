//! What one certificate of an X.509-SVID must and must not have (X509-SVID.md §2, §4, §5), one error per rule.
//!
//! webpki validates the path and ignores most of these rules (it knows neither SPIFFE nor key usage), so each
//! certificate is parsed a second time here, strictly: an extension that does not parse is an error and never an absent
//! extension. It looks at certificates one by one; that they belong together is the business of `verify`.

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::{TbsCertificate, X509Certificate};
use x509_parser::extensions::{GeneralName, KeyUsage, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::spiffe_id::{SpiffeId, SpiffeIdError};
use crate::trust_domain::TrustDomain;

mod error;

pub use error::SvidError;

/// A leaf that keeps every rule which can be judged from it alone.
///
/// Nothing in it is proven yet: whoever made the certificate chose all of it.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    /// Seconds since 1970.
    pub(crate) not_before: u64,
    /// Seconds since 1970.
    pub(crate) not_after: u64,
    /// Lower-case hex, without separators.
    pub(crate) serial: String,
    /// The bits of the SubjectPublicKeyInfo.
    pub(crate) public_bits: Vec<u8>,
}

impl Leaf {
    /// Holds a leaf certificate to the rules.
    pub(crate) fn parse(der: &CertificateDer<'_>) -> Result<Self, SvidError> {
        let certificate = parse(der, 0)?;
        let tbs = &certificate.tbs_certificate;
        let id = leaf_id(tbs)?;
        check_leaf_constraints(tbs, &id)?;
        check_leaf_key_usage(tbs, &id)?;
        check_leaf_extended_key_usage(tbs, &id)?;
        Ok(Self {
            not_before: seconds(tbs.validity.not_before.timestamp()),
            not_after: seconds(tbs.validity.not_after.timestamp()),
            serial: hex(tbs.raw_serial()),
            public_bits: tbs.subject_pki.subject_public_key.data.to_vec(),
            id,
        })
    }

    /// Within its validity, both ends included (RFC 5280 §4.1.2.5).
    pub(crate) fn check_time(&self, now: UnixTime) -> Result<(), SvidError> {
        if now.as_secs() > self.not_after {
            return Err(SvidError::Expired { id: self.id.clone(), not_after: self.not_after });
        }
        if now.as_secs() < self.not_before {
            return Err(SvidError::NotYetValid { id: self.id.clone(), not_before: self.not_before });
        }
        Ok(())
    }
}

/// Holds an intermediate of the path to the rules of signing certificates (X509-SVID.md §4.2, §4.3).
pub(crate) fn check_intermediate(
    der: &CertificateDer<'_>,
    position: usize,
    trust_domain: &TrustDomain,
) -> Result<(), SvidError> {
    let certificate = parse(der, position)?;
    check_signer(&certificate.tbs_certificate, position, trust_domain)?;
    match key_usage(&certificate.tbs_certificate, position)? {
        Some(_) => Ok(()),
        None => Err(SvidError::SignerMayNotSign { position }),
    }
}

/// Holds a root to them. Its key usage may be absent: it is trusted by name, not by a path (RFC 5280 §6.1.1(d)).
pub(crate) fn check_root(
    der: &CertificateDer<'_>,
    position: usize,
    trust_domain: &TrustDomain,
) -> Result<(), SvidError> {
    let certificate = parse(der, position)?;
    check_signer(&certificate.tbs_certificate, position, trust_domain)
}

fn check_signer(
    tbs: &TbsCertificate<'_>,
    position: usize,
    trust_domain: &TrustDomain,
) -> Result<(), SvidError> {
    if !is_ca(tbs, position)? {
        return Err(SvidError::SignerIsNoCa { position });
    }
    if key_usage(tbs, position)?.is_some_and(|(_, usage)| !usage.key_cert_sign()) {
        return Err(SvidError::SignerMayNotSign { position });
    }
    for uri in uris(tbs, position)? {
        check_signer_uri(uri?, position, trust_domain)?;
    }
    Ok(())
}

fn check_signer_uri(uri: &str, position: usize, trust_domain: &TrustDomain) -> Result<(), SvidError> {
    let id = match SpiffeId::parse(uri) {
        Ok(id) => id,
        // A CA may have URIs that are no SPIFFE IDs; only a leaf may not.
        Err(SpiffeIdError::Scheme) => return Ok(()),
        Err(error) => return Err(SvidError::InvalidId { position, error }),
    };
    if !id.path().is_empty() {
        return Err(SvidError::SignerIdHasPath { position, id });
    }
    if id.trust_domain() != trust_domain {
        return Err(SvidError::SignerOfOtherTrustDomain { position, id, expected: trust_domain.clone() });
    }
    Ok(())
}

fn leaf_id(tbs: &TbsCertificate<'_>) -> Result<SpiffeId, SvidError> {
    let uris = uris(tbs, 0)?.collect::<Result<Vec<_>, _>>()?;
    let &[uri] = uris.as_slice() else {
        return Err(match uris.len() {
            0 => SvidError::NoUriSan,
            count => SvidError::SeveralUriSans { count },
        });
    };
    let id = SpiffeId::parse(uri).map_err(|error| SvidError::InvalidId { position: 0, error })?;
    if id.path().is_empty() {
        return Err(SvidError::LeafIdWithoutPath { id });
    }
    let critical = tbs.subject_alternative_name().is_ok_and(|san| san.is_some_and(|san| san.critical));
    if tbs.subject().iter_rdn().next().is_none() && !critical {
        return Err(SvidError::UriSanNotCritical { id });
    }
    Ok(id)
}

fn check_leaf_constraints(tbs: &TbsCertificate<'_>, id: &SpiffeId) -> Result<(), SvidError> {
    match is_ca(tbs, 0)? {
        true => Err(SvidError::LeafIsCa { id: id.clone() }),
        false => Ok(()),
    }
}

fn check_leaf_key_usage(tbs: &TbsCertificate<'_>, id: &SpiffeId) -> Result<(), SvidError> {
    let fault = match key_usage(tbs, 0)? {
        None => "it has no key usage",
        Some((false, _)) => "its key usage is not critical",
        Some((true, usage)) if usage.key_cert_sign() => "its key may sign certificates",
        Some((true, usage)) if usage.crl_sign() => "its key may sign CRLs",
        Some((true, usage)) if !usage.digital_signature() => "its key may not make digital signatures",
        Some(_) => return Ok(()),
    };
    Err(SvidError::LeafKeyUsage { id: id.clone(), fault })
}

fn check_leaf_extended_key_usage(tbs: &TbsCertificate<'_>, id: &SpiffeId) -> Result<(), SvidError> {
    let extension = tbs.extended_key_usage().map_err(|e| malformed(0, &e))?;
    match extension {
        Some(usage) if !(usage.value.server_auth && usage.value.client_auth) => {
            Err(SvidError::LeafExtendedKeyUsage { id: id.clone() })
        }
        _ => Ok(()),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>, position: usize) -> Result<X509Certificate<'a>, SvidError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|e| malformed(position, &e))?;
    if !rest.is_empty() {
        return Err(malformed(position, &"bytes follow it"));
    }
    check_extensions(&certificate.tbs_certificate, position)?;
    Ok(certificate)
}

fn check_extensions(tbs: &TbsCertificate<'_>, position: usize) -> Result<(), SvidError> {
    tbs.extensions_map().map_err(|e| malformed(position, &e))?;
    for extension in tbs.extensions() {
        if matches!(extension.parsed_extension(), ParsedExtension::ParseError { .. }) {
            return Err(malformed(position, &format!("extension {}", extension.oid)));
        }
    }
    Ok(())
}

/// The URI SANs; one that is not even ASCII counts, as an error.
fn uris<'a>(
    tbs: &'a TbsCertificate<'_>,
    position: usize,
) -> Result<impl Iterator<Item = Result<&'a str, SvidError>>, SvidError> {
    let san = tbs.subject_alternative_name().map_err(|e| malformed(position, &e))?;
    let names = san.map(|san| san.value.general_names.as_slice()).unwrap_or_default();
    Ok(names.iter().filter_map(move |name| match name {
        GeneralName::URI(uri) => Some(Ok(*uri)),
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(Err(malformed(position, &"a URI SAN"))),
        _ => None,
    }))
}

fn is_ca(tbs: &TbsCertificate<'_>, position: usize) -> Result<bool, SvidError> {
    let constraints = tbs.basic_constraints().map_err(|e| malformed(position, &e))?;
    Ok(constraints.is_some_and(|constraints| constraints.value.ca))
}

fn key_usage(tbs: &TbsCertificate<'_>, position: usize) -> Result<Option<(bool, KeyUsage)>, SvidError> {
    let usage = tbs.key_usage().map_err(|e| malformed(position, &e))?;
    Ok(usage.map(|usage| (usage.critical, *usage.value)))
}

fn malformed(position: usize, reason: &dyn std::fmt::Display) -> SvidError {
    SvidError::Malformed { position, reason: reason.to_string() }
}

/// Certificates from before 1970 do not exist; clamped, they have expired.
fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

fn hex(serial: &[u8]) -> String {
    use std::fmt::Write;
    let digits = match serial {
        // DER's sign byte is no part of the number as other tools print it.
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    digits.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all that is written");
        text
    })
}

/// `uniformResourceIdentifier [6]` (RFC 5280 §4.2.1.6).
const URI_TAG: u32 = 6;
