//! The source against an API server whose every answer the test gives: what is asked, in which order, and what is made of
//! answers that a real one gives only on bad days. The good days are tested on a real cluster.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::json;
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::discovery::{Origin, testing};

mod following;
mod stages;

/// The server's side.
struct Server {
    address: String,
    asked: mpsc::Receiver<Asked>,
}

/// A request that waits for the test's answer.
struct Asked {
    path: String,
    query: HashMap<String, String>,
    answer: oneshot::Sender<Response>,
}

impl Server {
    async fn start() -> Self {
        let (tx, asked) = mpsc::channel(64);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(ask).with_state(tx);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    fn client(&self) -> Client {
        let mut config = Config::new(self.address.parse().unwrap());
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    async fn next(&mut self) -> Asked {
        tokio::time::timeout(DEADLINE, self.asked.recv()).await.expect("somebody asks").unwrap()
    }
}

async fn ask(
    State(tests): State<mpsc::Sender<Asked>>,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let (answer, answered) = oneshot::channel();
    let _ = tests.send(Asked { path: uri.path().to_owned(), query, answer }).await;
    answered.await.unwrap_or_else(|_| status(503, "the test does not answer"))
}

impl Asked {
    fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|watch| watch == "true")
    }

    fn of(&self, name: &str) -> &str {
        self.query.get(name).map(String::as_str).unwrap_or_default()
    }

    /// One page of a list.
    fn list(self, items: &[Value], more: &str) {
        let list = json!({
            "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": "10", "continue": more},
        });
        self.say(Response::new(Body::from(list.to_string())));
    }

    /// A watch that says these events, and goes on for as long as what it returns is kept.
    fn watch(self, events: &[Value]) -> mpsc::Sender<Result<Bytes, std::io::Error>> {
        let (tx, rx) = mpsc::channel(16);
        for event in events {
            tx.try_send(Ok(Bytes::from(format!("{event}\n")))).unwrap();
        }
        self.say(Response::new(Body::from_stream(ReceiverStream::new(rx))));
        tx
    }

    fn refuse(self, code: u16, reason: &str) {
        self.say(status(code, reason));
    }

    fn say(self, response: Response) {
        let _ = self.answer.send(response);
    }
}

fn status(code: u16, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code});
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn pod(name: &str, version: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version},
        "spec": {"nodeName": "n1"}, "status": {"podIP": "10.0.0.1"},
    })
}

const DEADLINE: Duration = Duration::from_secs(20);
