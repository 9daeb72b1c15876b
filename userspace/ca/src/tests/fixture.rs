//! A CA in this process, its client, and everything it trusts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType};
use serde_json::json;
use signet_identity::testing::{TestCa, pem};
use signet_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use signet_proto::istio_ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::app::Ca;
use crate::config::{Config, Root};

/// A running CA.
pub(crate) struct Fixture {
    directory: tempfile::TempDir,
    config: Config,
    roots: std::path::PathBuf,
    running: Option<Running>,
    pub(crate) tokens: TokenIssuer,
}

struct Running {
    grpc: SocketAddr,
    http: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// One request, each part of which a test may spoil.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) authorization: Option<String>,
    pub(crate) identity: Option<String>,
    pub(crate) csr: String,
    pub(crate) ttl: i64,
}

impl Request {
    /// What node n1 sends for a workload.
    pub(crate) fn good(ca: &Fixture, identity: &str) -> Self {
        Self {
            authorization: Some(format!("Bearer {}", ca.tokens.sign(&node_claims("n1")))),
            identity: Some(identity.into()),
            csr: csr_for(identity),
            ttl: 0,
        }
    }
}

impl Fixture {
    /// With a root of its own.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::Directory(directory.path().join("root"));
        let roots = directory.path().join("root/root-cert.pem");
        Self::with_root(directory, root, roots).await
    }

    /// With an intermediate two below somebody else's root.
    pub(crate) async fn start_plugged() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = plug(directory.path());
        let roots = directory.path().join("plugged-root.pem");
        Self::with_root(directory, root, roots).await
    }

    async fn with_root(directory: tempfile::TempDir, root: Root, roots: std::path::PathBuf) -> Self {
        let path = directory.path();
        let tokens = TokenIssuer::new();
        std::fs::write(path.join("jwks.json"), tokens.jwks().to_string()).unwrap();
        std::fs::create_dir(path.join("manifests")).unwrap();
        let mut config: Config = serde_json::from_value(json!({
            "trustDomain": "cluster.local",
            "listen": {"grpc": "127.0.0.1:0", "metrics": "127.0.0.1:0"},
            "root": {"directory": "/replaced/below"},
            "serving": {"names": ["signet-ca"], "addresses": ["127.0.0.1"]},
            "tokens": {"jwks": path.join("jwks.json"), "issuer": ISSUER, "audience": "istio-ca",
                "trustedNodeAccounts": ["signet-system/signetd"]},
            "inventory": {"files": {"directory": path.join("manifests")}},
            "svid": {"ttl": "20m", "maxTtl": "2h", "minTtl": "30s"},
        }))
        .unwrap();
        config.root = root;
        let mut fixture = Self { directory, config, roots, running: None, tokens };
        fixture.write_pods(&[("frontend", "n1"), ("backend", "n2")]);
        fixture.restart().await;
        fixture
    }

    /// Stops it gracefully where it runs, and starts it again.
    pub(crate) async fn restart(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop.send(()).unwrap();
            running.task.await.unwrap().unwrap();
        }
        let ca = Ca::open(&self.config).await.unwrap();
        let (grpc, http) = (ca.grpc_address().unwrap(), ca.http_address().unwrap());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(ca.serve(async move {
            let _ = stopped.await;
        }));
        self.running = Some(Running { grpc, http, stop, task });
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.as_ref().unwrap().grpc
    }

    pub(crate) fn roots_pem(&self) -> String {
        std::fs::read_to_string(&self.roots).unwrap()
    }

    /// Replaces the inventory: pods of photo-ns, by service account and node.
    pub(crate) fn write_pods(&self, pods: &[(&str, &str)]) {
        let pod = |(account, node): &(&str, &str)| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {account}, namespace: photo-ns}}\n\
                 spec: {{nodeName: {node}, serviceAccountName: {account}}}\n---\n"
            )
        };
        let text: String = pods.iter().map(pod).collect();
        std::fs::write(self.directory().join("manifests/pods.yaml"), text).unwrap();
    }

    /// Asks over a connection of its own.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Vec<String>, Status> {
        let tls = ClientTlsConfig::new()
            .domain_name("signet-ca")
            .ca_certificate(Certificate::from_pem(self.roots_pem()));
        let endpoint =
            Endpoint::from_shared(format!("https://{}", self.address())).unwrap().tls_config(tls).unwrap();
        let channel: Channel = endpoint.connect().await.unwrap();
        let fields = request.identity.iter().map(|identity| {
            let value = Value { kind: Some(Kind::StringValue(identity.clone())) };
            (IMPERSONATED_IDENTITY.to_owned(), value)
        });
        let mut message = tonic::Request::new(IstioCertificateRequest {
            csr: request.csr.clone(),
            validity_duration: request.ttl,
            metadata: Some(Struct { fields: fields.collect::<BTreeMap<_, _>>() }),
        });
        if let Some(authorization) = &request.authorization {
            message.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(message).await?;
        Ok(answer.into_inner().cert_chain)
    }

    pub(crate) async fn page(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.running.as_ref().unwrap().http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: ca\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// A sample without labels, or with these.
    pub(crate) async fn metric(&self, name: &str) -> i64 {
        let text = self.page("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    pub(crate) async fn refused(&self, reason: &str) -> i64 {
        self.metric(&format!("signet_ca_refused_total{{reason=\"{reason}\"}}")).await
    }

    /// Until it is so.
    pub(crate) async fn until(&self, condition: impl AsyncFn() -> bool) {
        let wait = async {
            while !condition().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    }
}

/// Writes a chain, key and root, and says where.
pub(crate) fn plug(directory: &Path) -> Root {
    let root = TestCa::new("cluster.local");
    let issuing = root.intermediate(|_| ()).intermediate(|_| ());
    let issued = issuing.issue("spiffe://cluster.local/unused", |_| ());
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let chain = file("ca-chain.pem", &pem(&issued.chain[1..]));
    let root = file("plugged-root.pem", &root.root_pem());
    let key = file("ca-key.pem", &issuing.issuer().key().serialize_pem());
    set_mode(&key, 0o600);
    Root::Plugged { chain, key, root }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Signs tokens as a cluster does.
pub(crate) struct TokenIssuer(KeyPair);

impl TokenIssuer {
    pub(crate) fn new() -> Self {
        Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    pub(crate) fn jwks(&self) -> serde_json::Value {
        let point = self.0.der_bytes();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [
            {"kty": "oct", "kid": "hmac", "k": encode(b"secret")},
            {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "k1",
             "x": encode(&point[1..33]), "y": encode(&point[33..])},
        ]})
    }

    pub(crate) fn sign(&self, claims: &serde_json::Value) -> String {
        self.sign_as("k1", claims)
    }

    pub(crate) fn sign_as(&self, kid: &str, claims: &serde_json::Value) -> String {
        let key = EncodingKey::from_ec_pem(self.0.serialize_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&header(Algorithm::ES256, kid), claims, &key).unwrap()
    }

    /// The old trick: the public key as an HMAC secret.
    pub(crate) fn hmac_with_public_key(&self, claims: &serde_json::Value) -> String {
        let key = EncodingKey::from_secret(self.0.public_key_pem().as_bytes());
        jsonwebtoken::encode(&header(Algorithm::HS256, "k1"), claims, &key).unwrap()
    }
}

fn header(algorithm: Algorithm, kid: &str) -> Header {
    let mut header = Header::new(algorithm);
    header.kid = Some(kid.into());
    header
}

/// `alg: none`.
pub(crate) fn unsigned(claims: &serde_json::Value) -> String {
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", encode(&json!({"alg": "none", "typ": "JWT", "kid": "k1"})), encode(claims))
}

/// A projected token's claims.
pub(crate) fn node_claims(node: &str) -> serde_json::Value {
    json!({
        "iss": ISSUER, "aud": ["istio-ca"], "sub": "system:serviceaccount:signet-system:signetd",
        "iat": now(), "nbf": now(), "exp": now() + 3600,
        "kubernetes.io": {
            "namespace": "signet-system",
            "serviceaccount": {"name": "signetd", "uid": "u1"},
            "pod": {"name": "signetd-x", "uid": "u2"},
            "node": {"name": node, "uid": "u3"},
        },
    })
}

pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// As ztunnel makes it: P-256, one URI, no subject.
pub(crate) fn csr_for(identity: &str) -> String {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params.serialize_request(&key).unwrap().pem().unwrap()
}

/// Sends bytes and waits for the other end to close.
pub(crate) async fn send_plain(address: SocketAddr, bytes: &[u8]) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    // An error is a reset, which is closed too.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

pub(crate) const ISSUER: &str = "https://signet.test";
/// `openssl req -new -newkey rsa:2048 -nodes -subj /CN=x`, its key thrown away.
pub(crate) const RSA_CSR: &str = include_str!("rsa.csr");
