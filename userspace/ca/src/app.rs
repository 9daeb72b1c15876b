//! Builds the CA in order, runs it, and ends it gracefully.
//!
//! Everything that can be wrong is found before a port is opened: configuration, root, token keys, inventory. What the
//! API server is watched for may come later, and keeps the CA from being ready meanwhile.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use prometheus_client::registry::Registry;
use signet_apiserver::{ApiServer, Health};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::config::{self, Config, LogFormat};
use crate::inventory::{Files, Pods, Reader};
use crate::issuer::Issuer;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::root::secret::Secret;
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
    serving: Arc<Serving>,
    /// What runs beside the service for as long as it does.
    background: JoinSet<Result<()>>,
    status: Status,
    grpc: TcpListener,
    http: TcpListener,
}

/// The API server, and how it is heard.
struct Cluster {
    api_server: ApiServer,
    health: Health,
}

impl Ca {
    /// Checks and builds everything, the ports last.
    pub(crate) async fn open(config: &Config) -> Result<Self> {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let cluster = Cluster::open(config, &mut registry).await?;
        let api_server = cluster.as_ref().map(|cluster| &cluster.api_server);
        let issuer = Arc::new(root::open(config, api_server).await?);
        metrics.set_issuer_expiry(issuer.expires());
        let mut background = JoinSet::new();
        let inventory = inventory(config, cluster.as_ref(), &mut background).await?;
        registry.register_collector(Box::new(inventory.clone()));
        let verifier = Verifier::open(&config.tokens, api_server, &inventory, &metrics)?;
        let serving = serve_tls(config, &issuer, &metrics, &mut background)?;
        if let Some(cluster) = &cluster {
            cluster.keep_roots(config, &issuer, &metrics, &mut background);
        }
        let trust_domain = config.trust_domain.clone();
        let service = Service { trust_domain, verifier, inventory, issuer, metrics: metrics.clone() };
        Ok(Self {
            service,
            serving,
            background,
            status: Status { registry, metrics, health: cluster.map(|cluster| cluster.health) },
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
        let Self { service, serving, mut background, status, grpc, http } = self;
        let connections = listener::accept(grpc, serving.tls()?, status.metrics.clone());
        let api = server().add_service(service.into_server());
        let mut api =
            tokio::spawn(api.serve_with_incoming_shutdown(connections, stopping_seen(stopped.clone())));
        let pages = axum::serve(http, status::router(status)).with_graceful_shutdown(stopping_seen(stopped));
        background.spawn(async move { Ok(pages.await?) });
        let ended = tokio::select! {
            () = stop => Ok(()),
            ended = &mut api => Err(anyhow::anyhow!("the API ended by itself: {ended:?}")),
            Some(ended) = background.join_next() => Err(ended_by_itself(ended)),
        };
        stopping.send_replace(true);
        if ended.is_ok() {
            // Who holds a connection open that long has it cut.
            let _ = tokio::time::timeout(GRACE, api).await;
        }
        ended
    }
}

impl Cluster {
    /// `None` where nothing needs it.
    async fn open(config: &Config, registry: &mut Registry) -> Result<Option<Self>> {
        if !config.uses_kubernetes() {
            return Ok(None);
        }
        let kubeconfig = config.kubernetes.kubeconfig.as_deref();
        let opened = ApiServer::open(kubeconfig, "signet-ca").await;
        let api_server = opened.map_err(|e| anyhow::anyhow!("kubernetes: {e}"))?;
        Ok(Some(Self { api_server, health: Health::register(registry, "signet_ca_source") }))
    }

    /// Publishes the roots, and sees to it that all replicas have the same.
    fn keep_roots(
        &self,
        config: &Config,
        issuer: &Arc<Issuer>,
        metrics: &Metrics,
        background: &mut JoinSet<Result<()>>,
    ) {
        let Self { api_server, health } = self;
        if let config::Root::Secret { .. } = &config.root {
            let secret = Secret::of(config, api_server);
            let (issuer, health, metrics) = (issuer.clone(), health.kind("Secret"), metrics.clone());
            background.spawn(async move { Err(secret.guard(&issuer, health, metrics).await.into()) });
        }
        if let Some(publish) = &config.publish {
            let (name, roots) = (publish.config_map.clone(), issuer.roots_pem());
            let publisher = Publisher::open(api_server, health, name, roots, metrics.clone());
            background.spawn(ends_never(publisher.run()));
        }
    }
}

async fn inventory(
    config: &Config,
    cluster: Option<&Cluster>,
    background: &mut JoinSet<Result<()>>,
) -> Result<Reader> {
    match (&config.inventory, cluster) {
        (config::Inventory::Files { directory }, _) => {
            let (files, reader) = Files::open(directory.clone()).await?;
            background.spawn(async move {
                let ended = files.run().await;
                ended.map_err(|e| anyhow::anyhow!("inventory.files.directory: {e}"))
            });
            Ok(reader)
        }
        (config::Inventory::Kubernetes {}, Some(Cluster { api_server, health })) => {
            let (pods, reader) = Pods::open(api_server, health);
            background.spawn(ends_never(pods.run()));
            Ok(reader)
        }
        (config::Inventory::Kubernetes {}, None) => bail!("inventory.kubernetes needs an API server"),
    }
}

fn serve_tls(
    config: &Config,
    issuer: &Arc<Issuer>,
    metrics: &Metrics,
    background: &mut JoinSet<Result<()>>,
) -> Result<Arc<Serving>> {
    let (serving, lifetime) = Serving::new(issuer.clone(), config.serving.clone(), metrics.clone())?;
    let renewed = serving.clone();
    background.spawn(ends_never(renewed.renew(lifetime)));
    Ok(serving)
}

async fn ends_never(part: impl Future<Output = ()>) -> Result<()> {
    part.await;
    bail!("it ended by itself")
}

fn ended_by_itself(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Err(e)) => e,
        other => anyhow::anyhow!("a part of the CA ended by itself: {other:?}"),
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
    // The client logs every attempt that fails; we tell an outage once.
    let Ok(filter) = EnvFilter::try_new(format!("kube_client=off,{}", log.filter)) else {
        bail!("log.filter {:?} is no filter: write for example info,access=off", log.filter);
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let done = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    done.map_err(|e| anyhow::anyhow!("cannot set up the log: {e}"))
}

/// How long a request may take: the review of a token, a wait for the inventory or a question in its place, a signature.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);
/// How long requests may finish at shutdown.
const GRACE: Duration = Duration::from_secs(5);
