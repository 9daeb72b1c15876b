//! An API server whose every answer the test gives: for what a real one answers only on bad days. The good days are tested
//! on a real cluster.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use kube::config::Config;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::connect::ApiServer;

/// The server's side.
#[derive(Debug)]
pub struct Server {
    /// `http://127.0.0.1:…`.
    pub address: String,
    asked: mpsc::Receiver<Asked>,
}

/// A request that waits for the test's answer.
#[derive(Debug)]
pub struct Asked {
    /// How it asks.
    pub method: Method,
    /// Where.
    pub path: String,
    query: HashMap<String, String>,
    /// What it sends.
    pub body: Value,
    answer: oneshot::Sender<Response>,
}

impl Server {
    /// On a port of its own.
    ///
    /// # Panics
    /// There is no loopback.
    pub async fn start() -> Self {
        let (tx, asked) = mpsc::channel(64);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port of loopback");
        let address = format!("http://{}", listener.local_addr().expect("it listens"));
        let router = axum::Router::new().fallback(ask).with_state(tx);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    /// A client of it.
    ///
    /// # Panics
    /// The address is none.
    #[must_use]
    pub fn client(&self, account: &'static str) -> ApiServer {
        let config = Config::new(self.address.parse().expect("it is a URL"));
        ApiServer::with(config, account).expect("nothing of it can be wrong")
    }

    /// Nobody waits for an answer.
    pub fn is_idle(&mut self) -> bool {
        self.asked.is_empty()
    }

    /// The next question.
    ///
    /// # Panics
    /// Nobody asks.
    pub async fn next(&mut self) -> Asked {
        tokio::time::timeout(DEADLINE, self.asked.recv())
            .await
            .expect("somebody asks")
            .expect("the server runs")
    }
}

async fn ask(
    State(tests): State<mpsc::Sender<Asked>>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Response {
    let (answer, answered) = oneshot::channel();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let _ = tests.send(Asked { method, path: uri.path().to_owned(), query, body, answer }).await;
    answered.await.unwrap_or_else(|_| status(503, "the test does not answer"))
}

impl Asked {
    /// Whether it is one.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|watch| watch == "true")
    }

    /// A parameter of it.
    #[must_use]
    pub fn of(&self, name: &str) -> &str {
        self.query.get(name).map(String::as_str).unwrap_or_default()
    }

    /// One page of a list.
    pub fn list(self, items: &[Value], more: &str) {
        let list = json!({
            "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": "10", "continue": more},
        });
        self.say(Response::new(Body::from(list.to_string())));
    }

    /// A watch that says these events, and goes on for as long as what it returns is kept.
    ///
    /// # Panics
    /// There are more than 16.
    #[must_use]
    pub fn watch(self, events: &[Value]) -> Watching {
        let (tx, rx) = mpsc::channel(16);
        for event in events {
            tx.try_send(Ok(Bytes::from(format!("{event}\n")))).expect("there is room for 16");
        }
        self.say(Response::new(Body::from_stream(ReceiverStream::new(rx))));
        tx
    }

    /// No.
    pub fn refuse(self, code: u16, reason: &str) {
        self.say(status(code, reason));
    }

    /// One object.
    pub fn object(self, object: &Value) {
        self.say(Response::new(Body::from(object.to_string())));
    }

    fn say(self, response: Response) {
        let _ = self.answer.send(response);
    }
}

/// The server's end of a watch.
pub type Watching = mpsc::Sender<Result<Bytes, io::Error>>;

fn status(code: u16, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code});
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).expect("the test gives a status");
    response
}

const DEADLINE: Duration = Duration::from_secs(20);
