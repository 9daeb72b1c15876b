//! Builds the CA in order, runs it, and ends it gracefully.
//!
//! Everything that can be wrong is found before a port is opened: configuration, root, token keys, inventory.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Server;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::config::{self, Config, LogFormat};
use crate::inventory::Source;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::serving::Serving;
use crate::status::{self, Status};
use crate::token::Verifier;
use crate::{listener, root};

/// Runs the CA until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be set up, on which object, and what to do.
pub async fn run(config_path: &Path) -> Result<()> {
    let config = Config::read(config_path)?;
    init_log(&config.log)?;
    let stop = stop_signal()?;
    let ca = Ca::open(&config).await?;
    info!(grpc = %ca.grpc_address()?, trust_domain = %config.trust_domain, "serving");
    ca.serve(stop).await
}

/// A CA whose ports are open.
pub(crate) struct Ca {
    service: Service,
    inventory: Source,
    serving: Arc<Serving>,
    serving_lifetime: Duration,
    status: Status,
    grpc: TcpListener,
    http: TcpListener,
}

impl Ca {
    /// Checks and builds everything, the ports last.
    pub(crate) async fn open(config: &Config) -> Result<Self> {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let issuer = Arc::new(root::open(config)?);
        metrics.set_issuer_expiry(issuer.expires());
        let verifier = Verifier::open(&config.tokens)?;
        let config::Inventory::Files { directory } = &config.inventory;
        let (inventory, reader) = Source::open(directory.clone()).await?;
        let (serving, serving_lifetime) =
            Serving::new(issuer.clone(), config.serving.clone(), metrics.clone())?;
        let service = Service {
            trust_domain: config.trust_domain.clone(),
            verifier,
            inventory: reader,
            issuer,
            metrics: metrics.clone(),
        };
        Ok(Self {
            service,
            inventory,
            serving,
            serving_lifetime,
            status: Status { registry, metrics },
            grpc: bind("listen.grpc", config.listen.grpc).await?,
            http: bind("listen.metrics", config.listen.metrics).await?,
        })
    }

    /// Where the CA API listens.
    pub(crate) fn grpc_address(&self) -> Result<SocketAddr> {
        Ok(self.grpc.local_addr()?)
    }

    /// Where the pages are.
    #[cfg(test)]
    pub(crate) fn http_address(&self) -> Result<SocketAddr> {
        Ok(self.http.local_addr()?)
    }

    /// Serves until `stop`, then finishes what has begun. Ends with an error when a part of it ends by itself.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> Result<()> {
        let (stopping, stopped) = watch::channel(false);
        let Self { service, inventory, serving, serving_lifetime, status, grpc, http } = self;
        let metrics = status.metrics.clone();
        let renewal = tokio::spawn(serving.clone().renew(serving_lifetime));
        let mut inventory = tokio::spawn(inventory.run());
        let connections = listener::accept(grpc, serving.tls()?, metrics);
        let api = server().add_service(service.into_server());
        let mut api =
            tokio::spawn(api.serve_with_incoming_shutdown(connections, stopping_seen(stopped.clone())));
        let pages = axum::serve(http, status::router(status)).with_graceful_shutdown(stopping_seen(stopped));
        let pages = tokio::spawn(pages.into_future());
        let ended = tokio::select! {
            () = stop => Ok(()),
            ended = &mut api => Err(anyhow::anyhow!("the API ended by itself: {ended:?}")),
            ended = &mut inventory => Err(inventory_ended(ended)),
        };
        stopping.send_replace(true);
        if ended.is_ok() {
            // Who holds a connection open that long has it cut.
            let _ = tokio::time::timeout(GRACE, api).await;
        }
        for task in [renewal.abort_handle(), inventory.abort_handle(), pages.abort_handle()] {
            task.abort();
        }
        ended
    }
}

fn inventory_ended(
    ended: Result<Result<(), signet_manifests::WatchError>, tokio::task::JoinError>,
) -> anyhow::Error {
    match ended {
        Ok(Err(e)) => anyhow::anyhow!("inventory.files.directory: {e}"),
        other => anyhow::anyhow!("the inventory ended by itself: {other:?}"),
    }
}

/// HTTP/2 bounds: a node has one connection and asks for a few certificates at a time.
fn server() -> Server {
    Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .concurrency_limit_per_connection(32)
        .max_concurrent_streams(64)
        .http2_max_header_list_size(16 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
}

async fn bind(field: &str, address: SocketAddr) -> Result<TcpListener> {
    let listening = TcpListener::bind(address).await;
    listening
        .map_err(|e| anyhow::anyhow!("{field}: cannot listen on {address}: {e}; free it or choose another"))
}

async fn stopping_seen(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which means the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => info!(signal = "SIGTERM", "stopping"),
            _ = interrupt.recv() => info!(signal = "SIGINT", "stopping"),
        }
    })
}

fn init_log(log: &config::Log) -> Result<()> {
    let Ok(filter) = EnvFilter::try_new(&log.filter) else {
        bail!("log.filter {:?} is no filter: write for example info,access=off", log.filter);
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let done = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    done.map_err(|e| anyhow::anyhow!("cannot set up the log: {e}"))
}

/// How long a request may take: a wait for the inventory and a signature.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests may finish at shutdown.
const GRACE: Duration = Duration::from_secs(5);
