//! A token's signature, verified offline against a JWK Set.
//!
//! The algorithm comes from the key, never from the token, so `alg: none` and a public key used as an HMAC secret have no
//! way in. A token that was withdrawn before it expires is not noticed: that takes the API server.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;

use super::{Node, Rules, TokenError};
use crate::jwks::KeySet;

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

/// The node that a token names.
pub(super) fn verify(token: &str, keys: &KeySet, issuer: &str, rules: &Rules) -> Result<Node, TokenError> {
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
    validation.set_issuer(&[issuer]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims: Claims = decode(token, &key.verifying, &validation).map_err(|e| from_library(&e))?.claims;
    node(claims, rules)
}

fn node(claims: Claims, rules: &Rules) -> Result<Node, TokenError> {
    let Kubernetes { namespace, serviceaccount, node } = claims.kubernetes.ok_or(TokenError::Claims)?;
    if claims.sub != format!("system:serviceaccount:{namespace}:{}", serviceaccount.name) {
        return Err(TokenError::Claims);
    }
    rules.trust(&namespace, &serviceaccount.name)?;
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

/// How far two clocks may be apart (RFC 7519 §4.1.4: "usually no more than a few minutes").
const LEEWAY_SECONDS: u64 = 60;

#[cfg(test)]
mod tests;
