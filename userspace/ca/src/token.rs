//! Who asks: a Kubernetes service account token, bound to the pod of a node daemon.
//!
//! Its witness is either a JWK Set, offline ([`signed`]), or the API server, by TokenReview ([`review`]). Errors are an
//! enumeration with a label each: what the caller hears is one sentence for all of them, what the operator reads is the
//! label.

mod cache;
mod review;
mod signed;

use std::collections::BTreeSet;
use std::sync::Arc;

use signet_apiserver::{ApiServer, Fault};

use crate::config::{self, Witness};
use crate::inventory::Reader;
use crate::jwks::{Jwks, JwksError};
use crate::metrics::Metrics;

use self::review::Reviewer;

/// Verifies tokens.
#[derive(Debug)]
pub(crate) struct Verifier {
    witness: Proof,
    rules: Rules,
}

#[derive(Debug)]
enum Proof {
    Jwks { keys: Jwks, issuer: String },
    Review(Reviewer),
}

/// What a token must say.
#[derive(Clone, Debug)]
struct Rules {
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
    fn named(name: Arc<str>) -> Self {
        Self { name }
    }

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
    /// The API server does not know it.
    #[error("the API server does not accept the token: {0}")]
    Rejected(String),
    /// Bound to no pod, or to one that is not there.
    #[error("the token is not bound to a pod that is there")]
    Unbound,
    /// Nobody can say now.
    #[error("the token cannot be reviewed now: {0}")]
    Unavailable(Fault),
}

impl TokenError {
    /// Whether it says something of us instead of the token.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

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
            Self::Rejected(_) => "token_rejected",
            Self::Unbound => "token_unbound",
            Self::Unavailable(_) => "token_review_unavailable",
        }
    }
}

impl Verifier {
    /// With the keys read for the first time, or with an API server to ask.
    pub(crate) fn open(
        config: &config::Tokens,
        api_server: Option<&ApiServer>,
        pods: &Reader,
        metrics: &Metrics,
    ) -> Result<Self, JwksError> {
        let rules = Rules {
            audience: config.audience.clone(),
            accounts: config.trusted_node_accounts.iter().cloned().collect(),
        };
        let witness = match (&config.witness, api_server) {
            (Witness::Jwks { path, issuer }, _) => {
                Proof::Jwks { keys: Jwks::open(path)?, issuer: issuer.clone() }
            }
            (Witness::Review, api_server) => {
                let api_server = api_server.expect("opened where the configuration needs it");
                Proof::Review(Reviewer::new(api_server, pods.clone(), metrics.clone()))
            }
        };
        Ok(Self { witness, rules })
    }

    /// The node behind the values of the `authorization` headers of a request.
    pub(crate) async fn verify(
        &self,
        headers: impl Iterator<Item = &[u8]> + Send,
    ) -> Result<Node, TokenError> {
        let token = bearer(headers)?;
        match &self.witness {
            Proof::Jwks { keys, issuer } => signed::verify(token, &keys.current(), issuer, &self.rules),
            Proof::Review(reviewer) => reviewer.review(token, &self.rules).await,
        }
    }
}

impl Rules {
    /// That an account is one of node daemons.
    fn trust(&self, namespace: &str, name: &str) -> Result<(), TokenError> {
        let account = format!("{namespace}/{name}");
        match self.accounts.contains(&account) {
            true => Ok(()),
            false => Err(TokenError::Account(account)),
        }
    }
}

/// The one bearer token (RFC 6750 §2.1).
fn bearer<'h>(mut headers: impl Iterator<Item = &'h [u8]> + Send) -> Result<&'h str, TokenError> {
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

/// A projected token has one to two kilobytes.
const MAX_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_exactly_one_bearer_token() {
        let of = |headers: &[&'static str]| bearer(headers.iter().map(|h| h.as_bytes()));
        assert_eq!(of(&["Bearer abc"]), Ok("abc"));
        assert_eq!(of(&["bearer abc"]), Ok("abc"));
        assert_eq!(of(&[]), Err(TokenError::Missing));
        assert_eq!(of(&["abc"]), Err(TokenError::Malformed));
        assert_eq!(of(&["Bearer a", "Bearer b"]), Err(TokenError::Malformed));
    }
}
