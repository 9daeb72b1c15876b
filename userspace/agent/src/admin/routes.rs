//! Which path shows what. Every answer is taken afresh; nothing is cached, nothing is changed.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Serialize;

use super::Sources;
use super::views;
use crate::telemetry;

/// The admin socket's paths.
pub(super) fn views(sources: Arc<Sources>) -> Router {
    Router::new()
        .route("/v1/status", json(views::status))
        .route("/v1/workloads", json(views::workloads))
        .route("/v1/certificates", json(|sources| (sources.certificates)()))
        .route("/v1/connections", json(|sources| (sources.connections)()))
        .route("/v1/policies", json(views::policies))
        .route("/v1/check", json(views::check))
        .with_state(sources)
}

/// Prometheus' paths: the usual one, and Istio's.
pub(super) fn metrics(sources: Arc<Sources>) -> Router {
    Router::new().route("/metrics", get(scrape)).route("/stats/prometheus", get(scrape)).with_state(sources)
}

/// The probes' paths: whether the engine carries traffic, and whether it answers at all.
pub(super) fn readiness(sources: Arc<Sources>) -> Router {
    Router::new().route("/healthz/ready", get(ready)).route("/healthz/live", get(live)).with_state(sources)
}

/// The same with an answer that does not change.
pub(super) fn fixed(readiness: views::ReadinessView) -> Router {
    let answer = move || std::future::ready(readiness_answer(readiness.clone()));
    Router::new().route("/healthz/ready", get(answer)).route("/healthz/live", get(live))
}

type Route = axum::routing::MethodRouter<Arc<Sources>>;

/// A view as JSON. On a thread that may block: views take locks, and the preflight asks the kernel.
fn json<T: Serialize + Send + 'static>(view: fn(&Sources) -> T) -> Route {
    get(async move |State(sources): State<Arc<Sources>>| answer(move || Json(view(&sources))).await)
}

async fn scrape(State(sources): State<Arc<Sources>>) -> Response {
    let text = move || telemetry::encode(&sources.registry);
    answer(move || ([(header::CONTENT_TYPE, OPENMETRICS)], text())).await
}

async fn ready(State(sources): State<Arc<Sources>>) -> Response {
    readiness_answer(views::readiness(&sources))
}

/// The runtime answers: what it waits for, readiness says.
async fn live() -> &'static str {
    "alive\n"
}

fn readiness_answer(readiness: views::ReadinessView) -> Response {
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

async fn answer<T: IntoResponse + Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(make).await {
        Ok(made) => made.into_response(),
        // The view panicked; the log has it, the next request is served.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// OpenMetrics 1.0.0, what `telemetry::encode` writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
