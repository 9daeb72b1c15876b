//! `/metrics` and `/healthz/ready`, over plain HTTP.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use signet_apiserver::Health;

use crate::metrics::Metrics;

/// What the pages show.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    /// How the API server is heard, where there is one.
    pub(crate) health: Option<Health>,
}

impl Status {
    /// Whether it can sign and serve, and in words what is missing. An API server that goes away later is told of, and
    /// makes nobody unready: all replicas would be at once, and it is the API server that would have to hear of it.
    fn readiness(&self, now: SystemTime) -> (StatusCode, String) {
        if !self.metrics.is_valid(now) {
            let why = "the root or serving certificate has expired\n";
            return (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
        }
        let Some(health) = &self.health else { return (StatusCode::OK, "ready\n".to_owned()) };
        match (health.is_complete(), health.summary()) {
            (false, (_, what)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")),
            (true, (true, _)) => (StatusCode::OK, "ready\n".to_owned()),
            (true, (false, what)) => (StatusCode::OK, format!("ready; {what}\n")),
        }
    }
}

/// The pages. They exist only once the CA serves.
pub(crate) fn router(status: Status) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz/ready", get(ready))
        .with_state(Arc::new(status))
}

async fn metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &status.registry)
        .expect("writing to a String cannot fail, and there are no collectors");
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

async fn ready(State(status): State<Arc<Status>>) -> impl IntoResponse {
    status.readiness(SystemTime::now())
}
