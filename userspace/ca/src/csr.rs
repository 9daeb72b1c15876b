//! The key to sign: a PKCS#10 request (RFC 2986), of which only the public key is used.
//!
//! Names, extensions and attributes come from the authorisation, not from here. The request must still be one that a
//! careful node sends: P-256, signed by its own key, and naming no other identity than the one that was granted.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::SubjectPublicKeyInfo;
use signet_identity::SpiffeId;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;
use x509_parser::x509;

/// A request whose sender holds the key.
#[derive(Debug)]
pub(crate) struct Csr {
    key: SubjectPublicKeyInfo,
    /// The names it asks for, whatever they are.
    names: Vec<String>,
}

/// Why a request is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CsrError {
    /// Longer than a P-256 request is.
    #[error("the CSR is longer than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not one PEM section `CERTIFICATE REQUEST`.
    #[error("the CSR is not one PEM section CERTIFICATE REQUEST")]
    Pem,
    /// Not PKCS#10.
    #[error("the CSR is no PKCS#10 request")]
    Malformed,
    /// Not a P-256 key with an ECDSA-SHA256 signature.
    #[error("the CSR's key must be ECDSA P-256, signed with SHA-256")]
    Algorithm,
    /// Not signed by the key it carries.
    #[error("the CSR is not signed by its own key")]
    Signature,
    /// It names somebody else.
    #[error("the CSR asks for other names than {granted}")]
    Names {
        /// The identity that was granted.
        granted: SpiffeId,
    },
}

impl CsrError {
    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::TooLarge => "csr_too_large",
            Self::Pem | Self::Malformed => "csr_malformed",
            Self::Algorithm => "csr_algorithm",
            Self::Signature => "csr_signature",
            Self::Names { .. } => "csr_names",
        }
    }
}

impl Csr {
    /// Parses and verifies a PEM text.
    pub(crate) fn parse(text: &str) -> Result<Self, CsrError> {
        if text.len() > MAX_BYTES {
            return Err(CsrError::TooLarge);
        }
        let sections = pem::parse_many(text).map_err(|_| CsrError::Pem)?;
        match &sections[..] {
            [section] if LABELS.contains(&section.tag()) => Self::from_der(section.contents()),
            _ => Err(CsrError::Pem),
        }
    }

    fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        check_algorithms(&info.subject_pki, &request.signature_algorithm)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &info.subject_pki.subject_public_key.data)
            .verify(info.raw, &request.signature_value.data)
            .map_err(|_| CsrError::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| CsrError::Algorithm)?;
        Ok(Self { key, names: names(&request) })
    }

    /// The key, if the request asks for that identity or for none.
    pub(crate) fn key_for(&self, granted: &SpiffeId) -> Result<&SubjectPublicKeyInfo, CsrError> {
        match &self.names[..] {
            [] => Ok(&self.key),
            [name] if name == granted.as_str() => Ok(&self.key),
            _ => Err(CsrError::Names { granted: granted.clone() }),
        }
    }
}

fn check_algorithms(
    key: &x509::SubjectPublicKeyInfo<'_>,
    signature: &x509::AlgorithmIdentifier<'_>,
) -> Result<(), CsrError> {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_p256 = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256);
    let is_sha256 = signature.algorithm == OID_SIG_ECDSA_WITH_SHA256;
    let is_uncompressed = key.subject_public_key.data.len() == POINT_BYTES;
    if is_p256 && is_sha256 && is_uncompressed { Ok(()) } else { Err(CsrError::Algorithm) }
}

/// Every alternative name of every extension request.
fn names(request: &X509CertificationRequest<'_>) -> Vec<String> {
    let attributes = request.certification_request_info.iter_attributes();
    let extensions = attributes.filter_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
        _ => None,
    });
    let names = extensions.flatten().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    names
        .flatten()
        .map(|name| match name {
            GeneralName::URI(uri) => (*uri).to_owned(),
            other => other.to_string(),
        })
        .collect()
}

/// A P-256 request with one name has about 500 bytes as PEM.
const MAX_BYTES: usize = 8 * 1024;
/// The second is what some old tools write (RFC 7468 §7).
const LABELS: [&str; 2] = ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"];
/// An uncompressed point on P-256 (SEC 1 §2.3.3).
const POINT_BYTES: usize = 65;

#[cfg(test)]
mod tests;
