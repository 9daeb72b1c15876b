//! The two questions rustls asks about a peer's certificate, both answered by `signet_identity::verify_peer`.
//!
//! Signatures of the handshake itself are rustls's business; the lists of algorithms are the provider's.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use signet_identity::{BundleSet, SpiffeId, verify_peer};

use super::error::Verdict;
use super::provider;

/// Accepts every client with an SVID of a trust domain that there is a bundle for.
#[derive(Debug)]
pub(super) struct AnyTrustedClient {
    bundles: Arc<BundleSet>,
}

/// Accepts the servers that a destination may be, and no other (secure naming).
#[derive(Debug)]
pub(super) struct ExpectedServer {
    bundles: Arc<BundleSet>,
    expected: Arc<[SpiffeId]>,
}

impl AnyTrustedClient {
    pub(super) fn new(bundles: Arc<BundleSet>) -> Self {
        Self { bundles }
    }
}

impl ExpectedServer {
    pub(super) fn new(bundles: Arc<BundleSet>, expected: Arc<[SpiffeId]>) -> Self {
        Self { bundles, expected }
    }
}

impl ClientCertVerifier for AnyTrustedClient {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    /// No hints: naming our roots would tell strangers whom we trust, and SVID holders have one chain to send.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify(end_entity, intermediates, &self.bundles, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let got = verify(end_entity, intermediates, &self.bundles, now)?;
        if !self.expected.contains(&got) {
            return Err(Verdict::UnexpectedId { expected: self.expected.clone(), got }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn verify(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundles: &BundleSet,
    now: UnixTime,
) -> Result<SpiffeId, Verdict> {
    let chain: Vec<_> =
        std::iter::once(end_entity).chain(intermediates).map(|der| CertificateDer::from(&der[..])).collect();
    Ok(verify_peer(&chain, bundles, now)?)
}

/// The configurations know TLS 1.3 alone; should that ever change by mistake, this still holds.
fn no_tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig)
}
