//! Who asks: a Kubernetes service account token, bound to the pod of a node daemon.
//!
//! Verified offline against a JWK Set. The algorithm comes from the key, never from the token, so `alg: none` and a
//! public key used as an HMAC secret have no way in. Errors are an enumeration with a label each: what the caller hears is
//! one sentence for all of them, what the operator reads is the label.

use std::collections::BTreeSet;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;

use crate::config;
use crate::jwks::{Jwks, JwksError, KeySet};

/// Verifies tokens.
#[derive(Debug)]
pub(crate) struct Verifier {
    jwks: Arc<Jwks>,
    rules: Rules,
}

/// What a token must say.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    issuer: String,
    audience: String,
    /// `<namespace>/<service account>`.
    accounts: BTreeSet<String>,
}

/// A node daemon, authenticated. Only [`Verifier::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    name: Arc<str>,
}

impl Node {
    /// The node's name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }
}

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// No `authorization` header.
    #[error("no token")]
    Missing,
    /// More than one, not `Bearer`, not a JWT, or of fields that cannot be read.
    #[error("the token is malformed")]
    Malformed,
    /// Longer than a token is.
    #[error("the token is longer than {MAX_BYTES} bytes")]
    TooLarge,
    /// Signed by a key the JWK Set does not have, or that names none.
    #[error("the token's key is not in the JWK Set")]
    UnknownKey,
    /// Not the algorithm of its key.
    #[error("the token's algorithm is not that of its key")]
    Algorithm,
    /// The signature does not hold.
    #[error("the token's signature is wrong")]
    Signature,
    /// Out of date.
    #[error("the token has expired")]
    Expired,
    /// From the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// For somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// By somebody else.
    #[error("the token is of another issuer")]
    Issuer,
    /// A claim is missing or contradicts another.
    #[error("the token's claims are incomplete or contradict each other")]
    Claims,
    /// Not one of `tokens.trustedNodeAccounts`.
    #[error("the account {0:?} is not in tokens.trustedNodeAccounts")]
    Account(String),
    /// Not bound to a pod on a node (Kubernetes before 1.30, or a token made by hand).
    #[error("the token names no node: it must be bound to the daemon's pod")]
    Node,
}

impl TokenError {
    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Malformed => "token_malformed",
            Self::TooLarge => "token_too_large",
            Self::UnknownKey => "token_unknown_key",
            Self::Algorithm => "token_algorithm",
            Self::Signature => "token_signature",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::Audience => "token_audience",
            Self::Issuer => "token_issuer",
            Self::Claims => "token_claims",
            Self::Account(_) => "token_account",
            Self::Node => "token_node",
        }
    }
}

/// What Kubernetes puts into a projected token (`kubernetes/pkg/serviceaccount/claims.go`).
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Debug, Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    node: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

impl Verifier {
    /// Reads the keys for the first time.
    pub(crate) fn open(config: &config::Tokens) -> Result<Self, JwksError> {
        let rules = Rules {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            accounts: config.trusted_node_accounts.iter().cloned().collect(),
        };
        Ok(Self { jwks: Arc::new(Jwks::open(&config.jwks)?), rules })
    }

    /// The node behind the values of the `authorization` headers of a request.
    pub(crate) fn verify<'h>(&self, headers: impl Iterator<Item = &'h [u8]>) -> Result<Node, TokenError> {
        let token = bearer(headers)?;
        verify(token, &self.jwks.current(), &self.rules)
    }
}

/// The one bearer token (RFC 6750 §2.1).
fn bearer<'h>(mut headers: impl Iterator<Item = &'h [u8]>) -> Result<&'h str, TokenError> {
    let header = headers.next().ok_or(TokenError::Missing)?;
    if header.len() > MAX_BYTES {
        return Err(TokenError::TooLarge);
    }
    let text = std::str::from_utf8(header).map_err(|_| TokenError::Malformed)?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && headers.next().is_none() => {
            Ok(token.trim_matches(' '))
        }
        _ => Err(TokenError::Malformed),
    }
}

fn verify(token: &str, keys: &KeySet, rules: &Rules) -> Result<Node, TokenError> {
    let header = decode_header(token).map_err(|e| from_library(&e))?;
    // RFC 7515 §4.1.11: what we do not understand and must is a reason to refuse.
    if header.crit.is_some() {
        return Err(TokenError::Malformed);
    }
    let key = header.kid.and_then(|id| keys.get(&id)).ok_or(TokenError::UnknownKey)?;
    if header.alg != key.algorithm {
        return Err(TokenError::Algorithm);
    }
    let mut validation = Validation::new(key.algorithm);
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation.set_audience(&[&rules.audience]);
    validation.set_issuer(&[&rules.issuer]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims: Claims = decode(token, &key.verifying, &validation).map_err(|e| from_library(&e))?.claims;
    node(claims, rules)
}

fn node(claims: Claims, rules: &Rules) -> Result<Node, TokenError> {
    let Kubernetes { namespace, serviceaccount, node } = claims.kubernetes.ok_or(TokenError::Claims)?;
    if claims.sub != format!("system:serviceaccount:{namespace}:{}", serviceaccount.name) {
        return Err(TokenError::Claims);
    }
    let account = format!("{namespace}/{}", serviceaccount.name);
    if !rules.accounts.contains(&account) {
        return Err(TokenError::Account(account));
    }
    let node = node.filter(|node| !node.name.is_empty()).ok_or(TokenError::Node)?;
    Ok(Node { name: node.name.into() })
}

fn from_library(error: &jsonwebtoken::errors::Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYetValid,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::InvalidIssuer => TokenError::Issuer,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => TokenError::Algorithm,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => TokenError::Claims,
        _ => TokenError::Malformed,
    }
}

/// A projected token has one to two kilobytes.
const MAX_BYTES: usize = 8 * 1024;
/// How far two clocks may be apart (RFC 7519 §4.1.4: "usually no more than a few minutes").
const LEEWAY_SECONDS: u64 = 60;

#[cfg(test)]
mod tests;
