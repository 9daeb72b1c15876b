//! The keys that sign tokens, from a JWK Set file (RFC 7517).
//!
//! The file is read at each use and parsed when its bytes have changed: requests are rare, the file is small, and a key
//! that was taken out must not be believed a moment longer. A file that is broken or gone leaves the last good keys in
//! force, because an update in place must not make every node a stranger.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use serde::Deserialize;
use tracing::error;

/// A JWK Set file.
#[derive(Debug)]
pub(crate) struct Jwks {
    path: PathBuf,
    /// Written and read by whoever verifies a token; never held across an await.
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    bytes: Vec<u8>,
    keys: Arc<KeySet>,
    /// What the log has been told is wrong with the file now.
    fault: Option<String>,
}

/// Keys that verify tokens.
#[derive(Debug, Default)]
pub(crate) struct KeySet(Vec<Key>);

/// One of them.
pub(crate) struct Key {
    id: String,
    /// The only algorithm it is good for.
    pub(crate) algorithm: Algorithm,
    pub(crate) verifying: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JwksError {
    /// The file cannot be read.
    #[error("cannot read the token keys {} (tokens.jwks): {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is too large.
    #[error("the token keys {} (tokens.jwks) are more than {MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It is no JWK Set.
    #[error("{} (tokens.jwks) is no JWK Set: {reason}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// None of its keys can be used.
    #[error("{} (tokens.jwks) has no key with a kid for RS256, ES256 or EdDSA", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
}

impl Jwks {
    /// Opens the file and reads it for the first time.
    pub(crate) fn open(path: &Path) -> Result<Self, JwksError> {
        let bytes = read(path)?;
        let keys = Arc::new(parse(path, &bytes)?);
        Ok(Self { path: path.to_owned(), last: Mutex::new(Last { bytes, keys, fault: None }) })
    }

    /// The keys that hold now.
    pub(crate) fn current(&self) -> Arc<KeySet> {
        let read = read(&self.path);
        let mut last = self.last.lock();
        let parsed = match read {
            Ok(bytes) if bytes == last.bytes => Ok(()),
            Ok(bytes) => parse(&self.path, &bytes).map(|keys| {
                last.keys = Arc::new(keys);
                last.bytes = bytes;
            }),
            Err(e) => Err(e),
        };
        let fault = parsed.err().map(|e| e.to_string());
        if fault != last.fault
            && let Some(fault) = &fault
        {
            error!(fault, "token keys not taken, the last good ones stay in force");
        }
        last.fault = fault;
        last.keys.clone()
    }
}

impl KeySet {
    /// The key of that id.
    pub(crate) fn get(&self, id: &str) -> Option<&Key> {
        self.0.iter().find(|key| key.id == id)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, JwksError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| JwksError::Read { path: path.to_owned(), source })?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(JwksError::TooLarge { path: path.to_owned() }),
        false => Ok(bytes),
    }
}

/// Keys of other kinds and for other uses are left out, as RFC 7517 §5 asks.
fn parse(path: &Path, bytes: &[u8]) -> Result<KeySet, JwksError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(bytes)
        .map_err(|e| JwksError::Malformed { path: path.to_owned(), reason: e.to_string() })?;
    let keys: Vec<Key> = set.keys.into_iter().filter_map(key).collect();
    match keys.is_empty() {
        true => Err(JwksError::Empty { path: path.to_owned() }),
        false => Ok(KeySet(keys)),
    }
}

fn key(value: serde_json::Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let algorithm = algorithm(&jwk)?;
    let declared = jwk.common.key_algorithm.map(|declared| declared.to_string());
    if declared.is_some_and(|declared| declared != format!("{algorithm:?}")) {
        return None;
    }
    let verifying = DecodingKey::from_jwk(&jwk).ok()?;
    Some(Key { id: jwk.common.key_id?, algorithm, verifying })
}

/// The one algorithm that a key of this kind may verify here; symmetric keys verify nothing.
fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Some(Algorithm::RS256),
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => Some(Algorithm::ES256),
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            Some(Algorithm::EdDSA)
        }
        _ => None,
    }
}

/// A JWK Set of a cluster has a handful of keys of at most a kilobyte.
const MAX_BYTES: u64 = 1024 * 1024;
