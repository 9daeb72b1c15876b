//! What an API server may say of a token, and what is made of it.

use serde_json::Value;
use signet_apiserver::Health;
use signet_apiserver::testing::{Asked, Server};

use super::*;
use crate::inventory::Pods;

struct Reviewing {
    server: Server,
    reviewer: Arc<Reviewer>,
}

fn rules() -> Rules {
    Rules { audience: "istio-ca".into(), accounts: ["signet-system/signetd".to_owned()].into() }
}

fn token(seconds_left: i64) -> String {
    let exp = crate::tests::fixture::now() + seconds_left;
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(json!({"exp": exp}).to_string()))
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "signetd-x", "namespace": "signet-system", "uid": "u1", "resourceVersion": "1"},
        "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
    })
}

/// A verdict that is right in every part.
fn verdict() -> Value {
    json!({
        "authenticated": true, "audiences": ["istio-ca"],
        "user": {"username": "system:serviceaccount:signet-system:signetd", "extra": {
            POD_NAME: ["signetd-x"], POD_UID: ["u1"], NODE_NAME: ["n1"],
        }},
    })
}

async fn reviewing() -> Reviewing {
    let mut server = Server::start().await;
    let api_server = server.client("signet-ca");
    let mut registry = prometheus_client::registry::Registry::default();
    let health = Health::register(&mut registry, "x");
    let (pods, reader) = Pods::open(&api_server, &health);
    tokio::spawn(pods.run());
    server.next().await.list(&[pod()], "");
    std::mem::forget(server.next().await.watch(&[]));
    let reviewer = Reviewer::new(&api_server, reader, Metrics::new(&mut registry));
    Reviewing { server, reviewer: Arc::new(reviewer) }
}

impl Reviewing {
    /// What becomes of a token of which the API server says this.
    async fn of(&mut self, token: &str, answer: impl FnOnce(Asked)) -> Result<Node, TokenError> {
        let (reviewer, token) = (self.reviewer.clone(), token.to_owned());
        let review = tokio::spawn(async move { reviewer.review(&token, &rules()).await });
        answer(self.server.next().await);
        review.await.unwrap()
    }

    async fn said(&mut self, verdict: Value) -> Result<Node, TokenError> {
        self.of(&token(600), |asked| asked.object(&json!({"status": verdict}))).await
    }
}

#[tokio::test]
async fn a_genuine_token_names_its_node_and_is_asked_for_once() {
    let mut reviewing = reviewing().await;
    let good = token(600);
    let node = reviewing
        .of(&good, |asked| {
            assert_eq!(asked.path, "/apis/authentication.k8s.io/v1/tokenreviews");
            assert_eq!(asked.body["spec"]["audiences"], json!(["istio-ca"]));
            asked.object(&json!({"status": verdict()}));
        })
        .await;
    assert_eq!(&**node.unwrap().name(), "n1");
    // The server would wait for an answer that nobody gives.
    assert_eq!(&**reviewing.reviewer.review(&good, &rules()).await.unwrap().name(), "n1");
}

#[tokio::test]
async fn a_verdict_that_lacks_anything_names_no_node() {
    let mut reviewing = reviewing().await;
    let without = |pointer: &str, value: Value| {
        let mut verdict = verdict();
        *verdict.pointer_mut(pointer).unwrap() = value;
        verdict
    };
    let extra = |key: &str, value: Value| {
        let mut verdict = verdict();
        verdict["user"]["extra"][key] = value;
        verdict
    };
    for (verdict, label) in [
        (json!({}), "token_rejected"),
        (without("/authenticated", json!(false)), "token_rejected"),
        (without("/audiences", json!([])), "token_audience"),
        (without("/audiences", json!(["kubernetes"])), "token_audience"),
        (without("/user/username", json!("admin")), "token_account"),
        (without("/user/username", json!("system:serviceaccount:shop:web")), "token_account"),
        (without("/user/username", json!("system:serviceaccount:signet-system/signetd")), "token_account"),
        (without("/user/extra", json!({})), "token_unbound"),
        (extra(POD_UID, json!([])), "token_unbound"),
        (extra(POD_NAME, json!(["a", "b"])), "token_claims"),
        (extra(NODE_NAME, json!([""])), "token_claims"),
    ] {
        let error = reviewing.said(verdict.clone()).await.unwrap_err();
        assert_eq!(error.label(), label, "{verdict}");
    }
}

#[tokio::test]
async fn without_a_node_in_the_verdict_it_is_that_of_the_pod_it_is_bound_to() {
    let mut reviewing = reviewing().await;
    let mut verdict = verdict();
    verdict["user"]["extra"].as_object_mut().unwrap().remove(NODE_NAME);
    assert_eq!(&**reviewing.said(verdict.clone()).await.unwrap().name(), "n1");
    verdict["user"]["extra"][POD_UID] = json!(["of-a-predecessor"]);
    let (reviewer, token) = (reviewing.reviewer.clone(), token(601));
    let review = tokio::spawn(async move { reviewer.review(&token, &rules()).await });
    reviewing.server.next().await.object(&json!({"status": verdict}));
    reviewing.server.next().await.object(&pod());
    assert_eq!(review.await.unwrap(), Err(TokenError::Node));
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_refuses_as_unavailable_and_nothing_is_kept() {
    let mut reviewing = reviewing().await;
    for code in [403, 500, 503] {
        let error =
            reviewing.of(&token(600), |asked| asked.refuse(code, "u cannot create")).await.unwrap_err();
        assert!(error.is_ours() && error.label() == "token_review_unavailable", "{error}");
    }
    let error = reviewing.of(&token(600), |asked| asked.object(&json!("nonsense"))).await.unwrap_err();
    assert!(error.is_ours(), "{error}");
}

#[tokio::test]
async fn what_is_no_token_or_has_expired_is_not_asked_for() {
    let reviewing = reviewing().await;
    for (token, label) in [
        ("abc".to_owned(), "token_malformed"),
        ("a.b".to_owned(), "token_malformed"),
        ("a.!.c".to_owned(), "token_malformed"),
        (format!("a.{}.c", URL_SAFE_NO_PAD.encode("{}")), "token_malformed"),
        (token(-1), "token_expired"),
        (token(0), "token_expired"),
    ] {
        assert_eq!(reviewing.reviewer.review(&token, &rules()).await.unwrap_err().label(), label, "{token}");
    }
}

proptest::proptest! {
    #[test]
    fn no_token_panics(text in "[A-Za-z0-9_.-]{0,200}|\\PC{0,60}") {
        let _ = lifetime(&text, SystemTime::now());
    }

    #[test]
    fn no_verdict_panics(text in "[\\[\\]{}:,\"a-z0-9.\\-]{0,80}") {
        if let Ok(Answer { status }) = serde_json::from_str(&text) {
            proptest::prop_assert!(bound_pod(status, &rules()).is_err());
        }
    }
}
