//! Node tokens: JWTs shaped like Kubernetes' projected service account tokens, signed by a key of the testkit.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde_json::{Value, json};

/// The cluster's token issuer.
#[derive(Debug)]
pub struct Issuer {
    key: KeyPair,
}

impl Issuer {
    /// An issuer with a fresh P-256 key.
    ///
    /// # Errors
    /// No randomness.
    pub fn new() -> Result<Self> {
        Ok(Self { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)? })
    }

    /// Its JWK Set (RFC 7517).
    ///
    /// # Errors
    /// The public key is no P-256 point.
    pub fn jwks(&self) -> Result<Value> {
        let point = self.key.der_bytes();
        let coordinates = point.strip_prefix(&[UNCOMPRESSED]).context("the public key is compressed")?;
        let (x, y) = coordinates.split_at_checked(32).context("the public key is no P-256 point")?;
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        Ok(json!({"keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID, "x": encode(x), "y": encode(y),
        }]}))
    }

    /// The token of the node daemon on `node`.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn node_token(&self, node: &str) -> Result<String> {
        self.sign(&node_claims(node, LIFETIME)?)
    }

    /// Signs any claims, for tests of what the CA refuses.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(KEY_ID.into());
        let key = EncodingKey::from_ec_pem(self.key.serialize_pem().as_bytes())?;
        jsonwebtoken::encode(&header, claims, &key).context("cannot sign a token")
    }

    /// Writes the node's token where `signetd` will read it.
    ///
    /// # Errors
    /// It cannot be signed or written.
    pub fn write_node_token(&self, node: &str, path: &Path) -> Result<()> {
        std::fs::write(path, self.node_token(node)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The claims of a projected token of `signet-system/signetd`, bound to its pod and node.
///
/// # Errors
/// The clock is before 1970.
pub fn node_claims(node: &str, lifetime: Duration) -> Result<Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(json!({
        "iss": ISSUER, "aud": [AUDIENCE], "sub": "system:serviceaccount:signet-system:signetd",
        "iat": now, "nbf": now, "exp": now + lifetime.as_secs(),
        "kubernetes.io": {
            "namespace": "signet-system",
            "serviceaccount": {"name": "signetd", "uid": "6a9f0a5c-0000-4000-8000-000000000001"},
            "pod": {"name": format!("signetd-{node}"), "uid": "6a9f0a5c-0000-4000-8000-000000000002"},
            "node": {"name": node, "uid": "6a9f0a5c-0000-4000-8000-000000000003"},
        },
    }))
}

/// `iss`.
pub const ISSUER: &str = "https://signet.test";
/// `aud`.
pub const AUDIENCE: &str = "istio-ca";
/// Longer than any test, and than most looks at a kept demo.
const LIFETIME: Duration = Duration::from_secs(12 * 3600);
const KEY_ID: &str = "testkit";
/// The first byte of an uncompressed point (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;
