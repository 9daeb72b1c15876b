//! Signs leaves: X.509-SVIDs for workloads, and the CA's own serving certificate.
//!
//! Everything in a leaf but its key comes from here. The profile of an SVID is X509-SVID.md §4: one URI SAN, critical
//! because the subject is empty; `digitalSignature`; server and client authentication; not a CA. A leaf never outlives
//! the certificates above it.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::config::Lifetimes;
use crate::grant::Grant;

/// The signing key and the certificates above a leaf.
#[derive(Debug)]
pub(crate) struct Issuer {
    signer: rcgen::Issuer<'static, KeyPair>,
    /// From the issuing certificate up, without the root; empty where the root issues.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    /// When the first of the certificates above a leaf expires.
    expires: OffsetDateTime,
    lifetimes: Lifetimes,
}

/// A signed certificate and what belongs to it.
#[derive(Debug)]
pub(crate) struct Issued {
    /// The certificate alone.
    pub(crate) leaf: CertificateDer<'static>,
    /// Its serial number in hex.
    pub(crate) serial: String,
    /// When it expires.
    pub(crate) expires: OffsetDateTime,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// The certificates above expire too soon.
    #[error("the issuing certificate expires at {expires}, which leaves less than svid.minTtl: renew it")]
    IssuerExpires {
        /// When.
        expires: OffsetDateTime,
    },
    /// The key does not sign.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// No randomness.
    #[error("the system gives no random numbers")]
    Random,
}

impl IssueError {
    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::IssuerExpires { .. } => "issuer_expires",
            Self::Sign(_) | Self::Random => "internal",
        }
    }
}

impl Issuer {
    /// Puts an issuer together; `root` checks that it fits.
    pub(crate) fn new(
        signer: rcgen::Issuer<'static, KeyPair>,
        intermediates: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        expires: OffsetDateTime,
        lifetimes: Lifetimes,
    ) -> Self {
        Self { signer, intermediates, roots, expires, lifetimes }
    }

    /// An SVID for what was granted. `asked` is the lifetime the request wants; it is clamped to the configured bounds.
    pub(crate) fn svid(
        &self,
        grant: &Grant,
        key: &impl PublicKeyData,
        asked: Option<Duration>,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        let uri = grant.identity().as_str().to_owned().try_into()?;
        let Lifetimes { ttl, max_ttl, min_ttl } = self.lifetimes;
        let lifetime = asked.unwrap_or(ttl).clamp(min_ttl, max_ttl);
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(vec![SanType::URI(uri)], usages, key, lifetime, now)
    }

    /// A certificate for the CA's own TLS.
    pub(crate) fn serving(
        &self,
        names: &[String],
        addresses: &[IpAddr],
        lifetime: Duration,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        let names = names.iter().map(|name| Ok(SanType::DnsName(name.clone().try_into()?)));
        let mut names = names.collect::<Result<Vec<_>, rcgen::Error>>()?;
        names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.sign(names, vec![ExtendedKeyUsagePurpose::ServerAuth], key, lifetime, now)
    }

    /// From the issuing certificate up, without the root; empty where the root issues.
    pub(crate) fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// What verifies all of it.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The same, in PEM.
    pub(crate) fn roots_pem(&self) -> String {
        self.roots.iter().map(pem).collect()
    }

    /// The key that signs, for who keeps it.
    pub(crate) fn key(&self) -> &KeyPair {
        self.signer.key()
    }

    /// When it can sign nothing any more.
    pub(crate) fn expires(&self) -> OffsetDateTime {
        self.expires
    }

    fn sign(
        &self,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        let expires = (now + lifetime).min(self.expires);
        if expires - now < lifetime.min(self.lifetimes.min_ttl) {
            return Err(IssueError::IssuerExpires { expires: self.expires });
        }
        let serial = serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = now - (lifetime / 10).min(BACKDATE);
        params.not_after = expires;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.signer)?.der().clone();
        Ok(Issued { leaf, serial: hex(&serial), expires })
    }
}

/// A certificate in PEM.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    let section = pem::Pem::new("CERTIFICATE", certificate.as_ref());
    pem::encode_config(&section, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

/// 128 random bits, positive and not zero (RFC 5280 §4.1.2.2).
fn serial() -> Result<[u8; 16], IssueError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| IssueError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For clocks that are behind. A tenth of the lifetime at most, so that half-life still means half of it.
const BACKDATE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
