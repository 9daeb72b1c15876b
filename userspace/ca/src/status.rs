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

use crate::metrics::Metrics;

/// What the pages show.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
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
    match status.metrics.is_valid(SystemTime::now()) {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the root or serving certificate has expired\n"),
    }
}
