//! Handshakes over a pipe: our endpoint on one side, a peer that breaks one rule on the other.

use std::io;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{AlertDescription, DigitallySignedStruct, SignatureScheme};
use signet_identity::SvidError;
use signet_identity::testing::{Issued, TestCa, from_now, rcgen, uri_san};
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;

use super::*;

mod records;

const URI: &str = "spiffe://td/ns/a/sa/peer";

fn endpoint(ca: &TestCa, service_account: &str) -> Endpoint {
    Endpoint::new(&ca.svid("a", service_account)).unwrap()
}

fn pipe() -> (DuplexStream, DuplexStream) {
    duplex(256 * 1024)
}

/// A TLS peer with whatever chain a test wants, that trusts everybody.
struct Peer {
    versions: &'static [&'static rustls::SupportedProtocolVersion],
    alpn: Vec<Vec<u8>>,
    identity: Option<Issued>,
}

impl Peer {
    fn with(identity: Issued) -> Self {
        Self { versions: VERSIONS, alpn: vec![ALPN.to_vec()], identity: Some(identity) }
    }

    fn certified(&self) -> Option<Arc<SingleCertAndKey>> {
        let Issued { chain, key } = self.identity.as_ref()?;
        let key = aws_lc_rs::sign::any_supported_type(&PrivateKeyDer::Pkcs8(key.pkcs8())).unwrap();
        Some(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain.clone(), key))))
    }

    /// Shakes hands as a client, and waits for the server's verdict.
    async fn connect(self, io: DuplexStream) -> io::Result<()> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Everybody));
        let mut config = match self.certified() {
            Some(identity) => builder.with_client_cert_resolver(identity),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn;
        let name = ServerName::try_from(NO_NAME).unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, io).await?;
        stream.read_u8().await.map(|_| ())
    }

    /// Shakes hands as a server.
    async fn accept(self, io: DuplexStream) -> io::Result<()> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(self.certified().expect("a server has a certificate"));
        config.alpn_protocols = self.alpn;
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(io).await.map(|_| ())
    }
}

#[derive(Debug)]
struct Everybody;

impl ServerCertVerifier for Everybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What our server says to a client.
async fn server_verdict(ca: &TestCa, client: Peer) -> HandshakeError {
    let server = endpoint(ca, "server");
    let (ours, theirs) = pipe();
    let (verdict, client) = tokio::join!(server.accept(ours), client.connect(theirs));
    client.unwrap_err();
    verdict.unwrap_err()
}

/// What our client says to a server that it expects to be `URI`.
async fn client_verdict(ca: &TestCa, server: Peer) -> HandshakeError {
    let client = endpoint(ca, "client");
    let expected = [SpiffeId::parse(URI).unwrap()];
    let (ours, theirs) = pipe();
    let (verdict, _) = tokio::join!(client.connect(ours, &expected, None), server.accept(theirs));
    verdict.unwrap_err()
}

/// What either side says to a peer whose leaf was changed.
async fn verdicts(change: impl Fn(&mut CertificateParams)) -> [HandshakeError; 2] {
    let ca = TestCa::new("td");
    let peer = || Peer::with(ca.issue(URI, &change));
    [server_verdict(&ca, peer()).await, client_verdict(&ca, peer()).await]
}

#[tokio::test]
async fn what_is_proven_lasts_until_the_first_of_both_certificates_expires() {
    let ca = TestCa::new("td");
    let server = endpoint(&ca, "server");
    let id = ca.id("a", "client");
    let Issued { chain, key } = ca.issue(id.as_str(), |leaf| leaf.not_after = from_now(600));
    let svid = X509Svid::new(&id, chain, key, ca.bundles(), UnixTime::now()).unwrap();
    let client = Endpoint::new(&Arc::new(svid)).unwrap();
    assert!(client.not_after < server.not_after);
    let (ours, theirs) = pipe();
    let expected = [ca.id("a", "server")];
    let (accepted, connected) = tokio::join!(server.accept(theirs), client.connect(ours, &expected, None));
    for seen in [accepted.unwrap().1, connected.unwrap().1] {
        assert_eq!(seen.not_after, client.not_after);
        let at = |second| UnixTime::since_unix_epoch(std::time::Duration::from_secs(second));
        assert!(!seen.is_expired(at(client.not_after)) && seen.is_expired(at(client.not_after + 1)));
    }
}

#[tokio::test]
async fn two_svids_of_one_trust_domain_authenticate_each_other_and_carry_bytes() {
    let ca = TestCa::new("td");
    let (server, client) = (endpoint(&ca, "server"), endpoint(&ca, "client"));
    let expected = [ca.id("a", "other"), ca.id("a", "server")];
    let (ours, theirs) = pipe();
    let (accepted, connected) = tokio::join!(server.accept(theirs), client.connect(ours, &expected, None));
    let ((mut accepted, seen_by_server), (mut connected, seen_by_client)) =
        (accepted.unwrap(), connected.unwrap());
    assert_eq!(seen_by_server.peer, ca.id("a", "client"));
    assert_eq!(seen_by_client.peer, ca.id("a", "server"));
    assert_eq!(seen_by_server.sni, None);
    connected.write_all(b"hello").await.unwrap();
    connected.flush().await.unwrap();
    let mut hello = [0; 5];
    accepted.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
}

#[tokio::test]
async fn the_sni_is_sent_where_given_and_seen_before_the_server_chooses() {
    let ca = TestCa::new("td");
    let (server, client) = (endpoint(&ca, "server"), endpoint(&ca, "client"));
    let (ours, theirs) = pipe();
    let expected = [ca.id("a", "server")];
    let accept = async {
        let hello = Hello::read(theirs).await.unwrap();
        assert_eq!(hello.sni(), Some("port-8080.signet"));
        hello.accept(&server).await
    };
    let (accepted, connected) =
        tokio::join!(accept, client.connect(ours, &expected, Some("port-8080.signet")));
    connected.unwrap();
    assert_eq!(accepted.unwrap().1.sni.as_deref(), Some("port-8080.signet"));
}

#[tokio::test]
async fn a_name_that_cannot_be_an_sni_is_refused_before_anything_is_sent() {
    let ca = TestCa::new("td");
    let (ours, mut theirs) = pipe();
    let error = endpoint(&ca, "a").connect(ours, &[], Some("no name")).await.unwrap_err();
    assert!(matches!(error, HandshakeError::InvalidSni { .. }), "{error:?}");
    assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn trust_domains_that_federate_authenticate_each_other() {
    let (td, other) = (TestCa::new("td"), TestCa::new("other"));
    let server = Endpoint::new(&td.svid_trusting("a", "server", td.bundles_with(&[&other]))).unwrap();
    let client = Endpoint::new(&other.svid_trusting("a", "client", other.bundles_with(&[&td]))).unwrap();
    let (ours, theirs) = pipe();
    let expected = [td.id("a", "server")];
    let (accepted, connected) = tokio::join!(server.accept(theirs), client.connect(ours, &expected, None));
    assert_eq!(accepted.unwrap().1.peer, other.id("a", "client"));
    connected.unwrap();
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_refused_and_named() {
    let ca = TestCa::new("td");
    let error = client_verdict(&ca, Peer::with(ca.issue("spiffe://td/ns/a/sa/thief", |_| {}))).await;
    let HandshakeError::UnexpectedId { expected, got } = &error else { panic!("{error:?}") };
    assert_eq!((expected[0].as_str(), got.as_str()), (URI, "spiffe://td/ns/a/sa/thief"));
    let text = error.to_string();
    assert!(text.contains("thief") && text.contains("sa/peer"), "{text}");
}

#[tokio::test]
async fn a_client_that_expects_nobody_accepts_nobody() {
    let ca = TestCa::new("td");
    let (ours, theirs) = pipe();
    let peer = Peer::with(ca.issue(URI, |_| {}));
    let client = endpoint(&ca, "client");
    let (verdict, _) = tokio::join!(client.connect(ours, &[], None), peer.accept(theirs));
    assert!(matches!(verdict, Err(HandshakeError::UnexpectedId { .. })));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = TestCa::new("td");
    let client = Peer { identity: None, ..Peer::with(ca.issue(URI, |_| {})) };
    assert!(matches!(server_verdict(&ca, client).await, HandshakeError::NoCertificate));
}

#[tokio::test]
async fn a_refused_client_learns_it_from_an_alert() {
    let ca = TestCa::new("td");
    let (ours, theirs) = pipe();
    let client = Peer { identity: None, ..Peer::with(ca.issue(URI, |_| {})) };
    let server = endpoint(&ca, "server");
    let (_, refused) = tokio::join!(server.accept(ours), client.connect(theirs));
    let error = HandshakeError::from(refused.unwrap_err());
    assert!(matches!(error, HandshakeError::Refused(AlertDescription::CertificateRequired)), "{error:?}");
}

#[tokio::test]
async fn an_expired_peer_is_told_from_one_that_is_not_valid_yet() {
    for verdict in verdicts(|leaf| leaf.not_after = from_now(-1)).await {
        assert!(matches!(verdict, HandshakeError::Expired { .. }), "{verdict:?}");
    }
    for verdict in verdicts(|leaf| leaf.not_before = from_now(60)).await {
        assert!(matches!(verdict, HandshakeError::InvalidSvid(SvidError::NotYetValid { .. })), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_peer_without_exactly_one_uri_san_is_refused() {
    for verdict in verdicts(|leaf| leaf.subject_alt_names.push(uri_san("spiffe://td/b"))).await {
        let HandshakeError::InvalidSvid(error) = verdict else { panic!("{verdict:?}") };
        assert_eq!(error, SvidError::SeveralUriSans { count: 2 });
    }
    for verdict in verdicts(|leaf| leaf.subject_alt_names.clear()).await {
        let HandshakeError::InvalidSvid(error) = verdict else { panic!("{verdict:?}") };
        assert_eq!(error, SvidError::NoUriSan);
    }
}

#[tokio::test]
async fn a_ca_certificate_and_a_wrong_key_usage_are_no_workload() {
    for verdict in verdicts(|leaf| leaf.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)).await {
        assert!(matches!(verdict, HandshakeError::InvalidSvid(SvidError::LeafIsCa { .. })), "{verdict:?}");
    }
    let server_only = |leaf: &mut CertificateParams| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    for verdict in verdicts(server_only).await {
        let HandshakeError::InvalidSvid(error) = verdict else { panic!("{verdict:?}") };
        assert!(matches!(error, SvidError::LeafExtendedKeyUsage { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn another_trust_domain_is_told_from_a_foreign_root_of_our_own() {
    let (td, other, fake) = (TestCa::new("td"), TestCa::new("other"), TestCa::new("td"));
    let stranger = || Peer::with(other.issue("spiffe://other/ns/a/sa/peer", |_| {}));
    let impostor = || Peer::with(fake.issue(URI, |_| {}));
    for verdict in [server_verdict(&td, stranger()).await, client_verdict(&td, stranger()).await] {
        assert!(matches!(verdict, HandshakeError::UnknownTrustDomain { .. }), "{verdict:?}");
    }
    for verdict in [server_verdict(&td, impostor()).await, client_verdict(&td, impostor()).await] {
        assert!(matches!(verdict, HandshakeError::InvalidSvid(SvidError::Untrusted { .. })), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_peer_that_does_not_hold_its_certificates_key_is_refused() {
    let ca = TestCa::new("td");
    let thief = || Peer::with(Issued { key: ca.issue(URI, |_| {}).key, ..ca.issue(URI, |_| {}) });
    for verdict in [server_verdict(&ca, thief()).await, client_verdict(&ca, thief()).await] {
        assert!(matches!(verdict, HandshakeError::Protocol(_)), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_long_chain_is_refused_and_a_huge_one_never_read_to_its_end() {
    let ca = TestCa::new("td");
    let long = |copies: usize| {
        let Issued { chain, key } = ca.issue(URI, |_| {});
        Peer::with(Issued { chain: vec![chain[0].clone(); copies], key })
    };
    for verdict in [server_verdict(&ca, long(20)).await, client_verdict(&ca, long(20)).await] {
        let HandshakeError::InvalidSvid(error) = verdict else { panic!("{verdict:?}") };
        assert!(matches!(error, SvidError::ChainTooLong { .. }), "{error:?}");
    }
    for verdict in [server_verdict(&ca, long(300)).await, client_verdict(&ca, long(300)).await] {
        assert!(matches!(verdict, HandshakeError::Protocol(_)), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_peer_that_speaks_another_protocol_over_tls_is_refused() {
    let ca = TestCa::new("td");
    for alpn in [vec![], vec![b"http/1.1".to_vec()], vec![b"istio".to_vec()]] {
        let peer = || Peer { alpn: alpn.clone(), ..Peer::with(ca.issue(URI, |_| {})) };
        let verdict = server_verdict(&ca, peer()).await;
        assert!(matches!(verdict, HandshakeError::NoAlpn), "{verdict:?}");
        let verdict = client_verdict(&ca, peer()).await;
        let refused = matches!(verdict, HandshakeError::Refused(AlertDescription::NoApplicationProtocol));
        assert!(refused || matches!(verdict, HandshakeError::NoAlpn), "{verdict:?}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_tls_are_named_so() {
    let ca = TestCa::new("td");
    let (ours, mut theirs) = pipe();
    theirs.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let error = endpoint(&ca, "server").accept(ours).await.unwrap_err();
    assert!(matches!(error, HandshakeError::NotTls), "{error:?}");
    let (ours, mut theirs) = pipe();
    theirs.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
    let error = endpoint(&ca, "client").connect(ours, &[], None).await.unwrap_err();
    assert!(matches!(error, HandshakeError::NotTls), "{error:?}");
}

#[tokio::test]
async fn a_peer_that_leaves_during_the_handshake_is_told_from_a_broken_one() {
    let ca = TestCa::new("td");
    for bytes in [&b""[..], &[0x16, 3, 1, 0, 200, 1, 0]] {
        let (ours, mut theirs) = pipe();
        theirs.write_all(bytes).await.unwrap();
        drop(theirs);
        let error = endpoint(&ca, "server").accept(ours).await.unwrap_err();
        assert!(matches!(error, HandshakeError::Closed), "{error:?}");
    }
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ca = TestCa::new("td");
    let (ours, mut theirs) = pipe();
    theirs.write_all(TLS12_CLIENT_HELLO).await.unwrap();
    let error = endpoint(&ca, "server").accept(ours).await.unwrap_err();
    assert!(matches!(error, HandshakeError::NoTls13(_)), "{error:?}");
}

/// A ClientHello of TLS 1.2: no supported_versions; one suite, one group, one signature scheme (RFC 5246 §7.4.1.2).
const TLS12_CLIENT_HELLO: &[u8] = &[
    0x16, 3, 1, 0, 67, // record
    1, 0, 0, 63, 3, 3, // ClientHello, 1.2
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
    29, 30, 31, 32, 0, // random, no session id
    0, 2, 0xc0, 0x2b, // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    1, 0, // no compression
    0, 20, // extensions
    0, 10, 0, 4, 0, 2, 0, 0x17, // supported_groups: secp256r1
    0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
    0, 23, 0, 0, // extended_master_secret
];
