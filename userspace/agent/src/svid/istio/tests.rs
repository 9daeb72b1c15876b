//! Against a CA of our own over real TLS and gRPC, which lies in each way a CA can.

use std::net::SocketAddr;

use rcgen::{CertificateSigningRequestParams, PublicKeyData};
use rustls::pki_types::CertificateDer;
use signet_identity::SvidError;
use signet_identity::testing::{TestCa, from_now, pem, rcgen};
use signet_proto::istio_ca::IstioCertificateResponse;
use signet_proto::istio_ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::*;
use crate::svid::Skew;

const URI: &str = "spiffe://td/ns/a/sa/b";

/// What a CA answers with, for a request as it arrived.
type Answers = dyn Fn(&Seen) -> Result<Vec<String>, Status> + Send + Sync;

/// A request as the CA sees it.
struct Seen {
    message: IstioCertificateRequest,
    csr: CertificateSigningRequestParams,
    authorization: String,
    cluster: Option<String>,
}

struct FakeCa {
    answers: Box<Answers>,
    slow: bool,
}

#[tonic::async_trait]
impl IstioCertificateService for FakeCa {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        if self.slow {
            std::future::pending::<()>().await;
        }
        let header = |name: &str| Some(request.metadata().get(name)?.to_str().unwrap().to_owned());
        let seen = Seen {
            authorization: header("authorization").unwrap_or_default(),
            cluster: header("clusterid"),
            csr: CertificateSigningRequestParams::from_pem(&request.get_ref().csr).unwrap(),
            message: request.into_inner(),
        };
        let cert_chain = (self.answers)(&seen)?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// A CA that listens, and the files by which a node finds and persuades it.
struct Bench {
    address: SocketAddr,
    files: TempDir,
    server: JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Bench {
    async fn new(answers: impl Fn(&Seen) -> Result<Vec<String>, Status> + Send + Sync + 'static) -> Self {
        Self::with(FakeCa { answers: Box::new(answers), slow: false }).await
    }

    async fn with(ca: FakeCa) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, &TestCa::new("serving"), ca)
    }

    /// The server's certificate is for `127.0.0.1` and `signet-ca`.
    fn on(listener: TcpListener, serving: &TestCa, ca: FakeCa) -> Self {
        let address = listener.local_addr().unwrap();
        let issued = serving.issue("https://unused/", |leaf| {
            leaf.subject_alt_names =
                vec![SanType::IpAddress(address.ip()), SanType::DnsName("signet-ca".try_into().unwrap())];
        });
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(issued.chain_pem(), issued.key_pem()));
        let router =
            Server::builder().tls_config(tls).unwrap().add_service(IstioCertificateServiceServer::new(ca));
        let server = tokio::spawn(async move {
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("roots.pem"), serving.root_pem()).unwrap();
        std::fs::write(files.path().join("token"), "the-token\n").unwrap();
        Self { address, files, server }
    }

    fn options(&self) -> IstioOptions {
        IstioOptions {
            address: format!("https://{}", self.address),
            server_name: None,
            roots: self.files.path().join("roots.pem"),
            token: self.files.path().join("token"),
            ttl: Duration::from_secs(600),
            cluster: "Kubernetes".into(),
        }
    }

    fn authority(&self) -> IstioAuthority {
        IstioAuthority::new(self.options()).unwrap()
    }

    async fn fetch(&self) -> Result<X509Svid, FetchError> {
        fetch(&self.authority()).await
    }
}

async fn fetch(authority: &IstioAuthority) -> Result<X509Svid, FetchError> {
    let id = SpiffeId::parse(URI).unwrap();
    authority.fetch(&WorkloadUid::new("1"), &id).await
}

/// A good answer, as elements: a chain and the root.
fn elements(chain: &[CertificateDer<'static>], ca: &TestCa) -> Vec<String> {
    let mut elements: Vec<_> = chain.iter().map(|der| pem(std::slice::from_ref(der))).collect();
    elements.push(ca.root_pem());
    elements
}

fn sign(ca: &TestCa, key: &impl PublicKeyData) -> Vec<String> {
    elements(&ca.sign(URI, key, |_| {}), ca)
}

#[tokio::test]
async fn a_good_ca_gives_an_svid_with_a_fresh_key_for_what_was_asked() {
    let ca = TestCa::new("td").intermediate(|_| {});
    let bench = Bench::new(move |seen| {
        assert_eq!(seen.csr.params.subject_alt_names, [SanType::URI(URI.try_into().unwrap())]);
        assert_eq!(seen.csr.params.distinguished_name, DistinguishedName::new());
        assert_eq!(seen.message.metadata, Some(impersonating(&SpiffeId::parse(URI).unwrap())));
        assert_eq!(seen.message.validity_duration, 600);
        assert_eq!(seen.authorization, "Bearer the-token");
        assert_eq!(seen.cluster.as_deref(), Some("Kubernetes"));
        Ok(sign(&ca, &seen.csr.public_key))
    })
    .await;
    let authority = bench.authority();
    let (first, second) = (fetch(&authority).await.unwrap(), fetch(&authority).await.unwrap());
    assert_eq!((first.id().as_str(), first.chain().len()), (URI, 2));
    assert_ne!(first.key().pkcs8().secret_pkcs8_der(), second.key().pkcs8().secret_pkcs8_der());
}

#[tokio::test]
async fn the_token_is_read_anew_for_each_attempt() {
    let bench = Bench::new(|seen| Err(Status::unauthenticated(&seen.authorization))).await;
    let authority = bench.authority();
    for token in ["one", "two"] {
        std::fs::write(bench.files.path().join("token"), token).unwrap();
        let error = fetch(&authority).await.unwrap_err();
        assert!(matches!(error, FetchError::Unauthenticated { .. }), "{error}");
        assert!(error.to_string().contains(&format!("Bearer {token}")), "{error}");
    }
}

/// What we say to a CA that answers like that.
async fn verdict(
    answers: impl Fn(&Seen) -> Result<Vec<String>, Status> + Send + Sync + 'static,
) -> FetchError {
    Bench::new(answers).await.fetch().await.unwrap_err()
}

#[tokio::test]
async fn a_ca_that_lies_is_found_out() {
    let lie =
        |make: fn(&TestCa, &Seen) -> Vec<String>| verdict(move |seen| Ok(make(&TestCa::new("td"), seen)));
    let error = lie(|ca, seen| elements(&ca.sign("spiffe://td/ns/a/sa/c", &seen.csr.public_key, |_| {}), ca));
    let error = error.await;
    assert!(matches!(&error, FetchError::Lying { error: SvidError::UnexpectedId { .. }, .. }), "{error}");
    let error = lie(|ca, _| elements(&ca.issue(URI, |_| {}).chain, ca)).await;
    assert!(matches!(&error, FetchError::Lying { error: SvidError::WrongKey { .. }, .. }), "{error}");
    let error =
        lie(|ca, seen| elements(&ca.sign(URI, &seen.csr.public_key, |_| {}), &TestCa::new("td"))).await;
    assert!(matches!(&error, FetchError::Lying { error: SvidError::Untrusted { .. }, .. }), "{error}");
    assert!(error.to_string().contains("https://127.0.0.1") && error.to_string().contains(URI), "{error}");
}

#[tokio::test]
async fn a_ca_of_another_time_is_told_from_one_that_lies() {
    let signed = |seen: &Seen, change: fn(&mut CertificateParams)| {
        let ca = TestCa::new("td");
        Ok(elements(&ca.sign(URI, &seen.csr.public_key, change), &ca))
    };
    let error = verdict(move |seen| signed(seen, |leaf| leaf.not_after = from_now(-1))).await;
    assert!(matches!(error, FetchError::Clock { skew: Skew::Ahead(_), .. }), "{error}");
    let error = verdict(move |seen| signed(seen, |leaf| leaf.not_before = from_now(600))).await;
    assert!(matches!(error, FetchError::Clock { skew: Skew::Behind(_), .. }), "{error}");
    assert_eq!(error.label(), "clock");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_the_cas_fault() {
    let garbage = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    for answer in [vec![], vec![garbage.to_owned()], vec![garbage.to_owned(), garbage.to_owned()]] {
        let error = verdict(move |_| Ok(answer.clone())).await;
        assert!(matches!(error, FetchError::Malformed { .. }), "{error}");
    }
    let error = verdict(|_| Ok(vec!["x".repeat(1024 * 1024), String::new()])).await;
    assert!(matches!(error, FetchError::Malformed { .. }), "{error}");
    assert!(error.to_string().contains("too large"), "{error}");
}

#[tokio::test]
async fn a_refusal_names_the_reason_and_what_to_check() {
    let error = verdict(|_| Err(Status::unauthenticated("no such pod on node n1"))).await;
    let text = error.to_string();
    assert!(text.contains("no such pod on node n1") && text.contains("inventory"), "{text}");
    let error = verdict(|_| Err(Status::invalid_argument("bad csr"))).await;
    assert!(matches!(&error, FetchError::Refused { message, .. } if message == "bad csr"), "{error}");
}

#[tokio::test]
async fn a_slow_ca_is_left_after_a_while() {
    let bench = Bench::with(FakeCa { answers: Box::new(|_| Ok(vec![])), slow: true }).await;
    let mut authority = bench.authority();
    authority.timeout = Duration::from_millis(200);
    let error = fetch(&authority).await.unwrap_err();
    assert!(matches!(error, FetchError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_ca_that_is_down_is_no_start_failure_and_is_found_when_it_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = TestCa::new("serving");
    let bench = Bench::on(listener, &serving, FakeCa { answers: Box::new(|_| Ok(vec![])), slow: true });
    let authority = bench.authority();
    bench.server.abort();
    while !bench.server.is_finished() {
        tokio::task::yield_now().await;
    }
    let error = fetch(&authority).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    let ca = TestCa::new("td");
    let answers = Box::new(move |seen: &Seen| Ok(sign(&ca, &seen.csr.public_key)));
    let listener = TcpListener::bind(address).await.unwrap();
    let _back = Bench::on(listener, &serving, FakeCa { answers, slow: false });
    fetch(&authority).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_our_ca_gets_no_token() {
    let bench = Bench::new(|_| panic!("a request came through")).await;
    let error = fetch(
        &IstioAuthority::new(IstioOptions { server_name: Some("istiod".into()), ..bench.options() }).unwrap(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, FetchError::UntrustedCa { .. }), "{error}");
    std::fs::write(bench.files.path().join("roots.pem"), TestCa::new("serving").root_pem()).unwrap();
    let error = bench.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::UntrustedCa { .. }), "{error}");
}

#[tokio::test]
async fn the_name_may_differ_from_the_address_and_roots_may_be_replaced() {
    let ca = TestCa::new("td");
    let bench = Bench::new(move |seen| Ok(sign(&ca, &seen.csr.public_key))).await;
    let options = IstioOptions { server_name: Some("signet-ca".into()), ..bench.options() };
    let authority = IstioAuthority::new(options).unwrap();
    let roots = bench.files.path().join("roots.pem");
    let good = std::fs::read(&roots).unwrap();
    std::fs::write(&roots, TestCa::new("serving").root_pem()).unwrap();
    fetch(&authority).await.unwrap_err();
    std::fs::write(&roots, good).unwrap();
    fetch(&authority).await.unwrap();
}

#[tokio::test]
async fn a_server_without_tls_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = Bench::new(|_| Ok(vec![])).await;
    let options =
        IstioOptions { address: format!("https://{}", listener.local_addr().unwrap()), ..bench.options() };
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let error = fetch(&IstioAuthority::new(options).unwrap()).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    plain.await.unwrap();
}

#[tokio::test]
async fn files_that_are_missing_or_unusable_are_named() {
    let bench = Bench::new(|_| Ok(vec![])).await;
    let spoil = |name: &str, content: Option<&[u8]>| {
        let path = bench.files.path().join(name);
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        path
    };
    for (name, content) in [
        ("roots.pem", Some(&b"no PEM"[..])),
        ("roots.pem", None),
        ("token", Some(b"two\nlines")),
        ("token", Some(&[b'x'; MAX_TOKEN_BYTES + 1])),
        ("token", None),
    ] {
        let path = spoil(name, content);
        let error = bench.fetch().await.unwrap_err();
        assert!(matches!(&error, FetchError::File { path: named, .. } if *named == path), "{error}");
    }
}
