//! A token, judged by the API server (TokenReview): whether it is genuine, of an account that node daemons have, and bound
//! to a pod that is there, on which node.
//!
//! The audience is asked for and must be echoed, since an API server that does not know audiences would accept a token
//! for anybody. What the token says of itself is read for its expiry alone. Without an answer there is no node: an outage
//! refuses. A review that went well counts for a moment, and for as long as the pod it is bound to is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use signet_apiserver::{ApiServer, Created, Place, Resource};
use zeroize::Zeroizing;

use super::cache::{Cache, Fingerprint};
use super::{Node, Rules, TokenError};
use crate::inventory::{BoundPod, Reader};
use crate::metrics::{Metrics, Reviewed};

/// Asks the API server.
#[derive(Debug)]
pub(super) struct Reviewer {
    api_server: ApiServer,
    pods: Reader,
    metrics: Metrics,
    /// Written and read by whoever verifies a token; never held across an await.
    cache: Mutex<Cache<(BoundPod, Node)>>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    status: Verdict,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Verdict {
    authenticated: bool,
    audiences: Vec<String>,
    user: User,
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: HashMap<String, Vec<String>>,
}

impl Reviewer {
    pub(super) fn new(api_server: &ApiServer, pods: Reader, metrics: Metrics) -> Self {
        let api_server = api_server.with_room_for(AT_A_TIME);
        Self { api_server, pods, metrics, cache: Mutex::new(Cache::new()) }
    }

    pub(super) async fn review(&self, token: &str, rules: &Rules) -> Result<Node, TokenError> {
        let lives = lifetime(token, SystemTime::now())?;
        let fingerprint = Fingerprint::of(token);
        if let Some(node) = self.recall(fingerprint) {
            self.metrics.reviewed(Reviewed::Remembered);
            return Ok(node);
        }
        let reviewed = self.ask(token, rules).await;
        self.metrics.reviewed(match &reviewed {
            Ok(_) => Reviewed::Accepted,
            Err(error) if error.is_ours() => Reviewed::Unavailable,
            Err(_) => Reviewed::Refused,
        });
        let (pod, node) = reviewed?;
        self.cache.lock().put(fingerprint, (pod, node.clone()), lives, Instant::now());
        Ok(node)
    }

    fn recall(&self, token: Fingerprint) -> Option<Node> {
        let (pod, node) = self.cache.lock().get(token, Instant::now())?;
        self.pods.knows(&pod).then_some(node)
    }

    async fn ask(&self, token: &str, rules: &Rules) -> Result<(BoundPod, Node), TokenError> {
        let body = Zeroizing::new(
            json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "spec": {"token": token, "audiences": [rules.audience]},
            })
            .to_string(),
        );
        match self.api_server.create(REVIEWS, body.as_bytes()).await {
            Ok(Created::New(Answer { status })) => self.judge(status, rules).await,
            // Nothing of that kind is ever stored.
            Ok(Created::Before) => Err(TokenError::Rejected("a conflict".to_owned())),
            Err(fault) => Err(TokenError::Unavailable(fault)),
        }
    }

    async fn judge(&self, verdict: Verdict, rules: &Rules) -> Result<(BoundPod, Node), TokenError> {
        let (pod, node) = bound_pod(verdict, rules)?;
        let node = match node {
            Some(node) => node,
            // An API server before 1.32 does not say.
            None => {
                let node = self.pods.node_of(&pod).await.map_err(TokenError::Unavailable)?;
                node.ok_or(TokenError::Node)?
            }
        };
        Ok((pod, Node::named(node)))
    }
}

/// The pod that a verdict speaks of, and its node where it says so.
fn bound_pod(verdict: Verdict, rules: &Rules) -> Result<(BoundPod, Option<Arc<str>>), TokenError> {
    if !verdict.authenticated {
        let said = verdict.error.chars().take(SHOWN).collect();
        return Err(TokenError::Rejected(said));
    }
    if !verdict.audiences.contains(&rules.audience) {
        return Err(TokenError::Audience);
    }
    let User { username, extra } = verdict.user;
    let account = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else { return Err(TokenError::Account(username)) };
    rules.trust(namespace, account)?;
    let (name, uid) = (claim(&extra, POD_NAME)?, claim(&extra, POD_UID)?);
    let (Some(name), Some(uid)) = (name, uid) else { return Err(TokenError::Unbound) };
    Ok((BoundPod { namespace: namespace.into(), name, uid }, claim(&extra, NODE_NAME)?))
}

/// One value, or none.
fn claim(extra: &HashMap<String, Vec<String>>, key: &str) -> Result<Option<Arc<str>>, TokenError> {
    match extra.get(key).map(Vec::as_slice) {
        None | Some([]) => Ok(None),
        Some([value]) if !value.is_empty() => Ok(Some(value.as_str().into())),
        Some(_) => Err(TokenError::Claims),
    }
}

/// How long a token has left by its own account: nothing is decided by it but how long a review of it counts, and that
/// what is no JWT or has expired costs no review.
fn lifetime(token: &str, now: SystemTime) -> Result<Duration, TokenError> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed);
    };
    let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Malformed)?);
    let Claims { exp } = serde_json::from_slice(&claims).map_err(|_| TokenError::Malformed)?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(exp).checked_sub(now).filter(|left| !left.is_zero()).ok_or(TokenError::Expired)
}

const REVIEWS: Place<'_> = Place {
    resource: Resource { group: "authentication.k8s.io", kind: "TokenReview", plural: "tokenreviews" },
    version: "v1",
    namespace: None,
};
/// `kubernetes/staging/src/k8s.io/apiserver/pkg/authentication/serviceaccount/util.go`.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Whoever reaches the port can make us ask: so many at a time, and no more.
const AT_A_TIME: usize = 16;
/// How much of the API server's words the log shows, in characters.
const SHOWN: usize = 256;

#[cfg(test)]
mod tests;
