//! Builds everything in order, runs it, and takes it down in reverse.
//!
//! The order is the start-up contract: configuration and log first, so that whatever fails can say so; then the
//! kernel programs are loaded but not attached; then sources are read, maps filled and listeners opened; the programs
//! attach last (see `reconcile`). Going down, the listeners close first and the pins stay: the kernel goes on
//! refusing what would have come to us.

mod capture;
mod probes;
mod proxies;
mod removal;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::admin::{self, About, Listening, Sources};
use crate::config::{self, Ca, Config, ConfigError, Source};
use crate::discovery::{ApiServer, DiscoveryOptions, Files, Health, Kubernetes, Origin};
use crate::drain::{Drain, Watch};
use crate::kernel::{self, Claim, DirectEnd, Kernel, KernelError};
use crate::net;
use crate::proxy;
use crate::proxy::awaited::Awaited;
use crate::proxy::connections::Connections;
use crate::proxy::direct::Direct;
use crate::proxy::earlier::Earlier;
use crate::proxy::hbone::Pool;
use crate::proxy::metrics::Metrics;
use crate::proxy::native;
use crate::reconcile::{Reconciler, Served, Statuses};
use crate::state::{Event, RangeKind, Ranges, State};
use crate::svid::{FileAuthority, IstioAuthority, IstioOptions, Store};
use crate::telemetry::{self, LogFormat, LogOutput, Registry};
use crate::workers::{Threads, Workers};

use self::probes::Probes;
use self::proxies::Proxies;

pub use self::removal::{uninstall, withdraw};

/// Which configuration.
#[derive(Clone, Debug)]
pub struct Configured {
    /// The file.
    pub file: PathBuf,
    /// The node's name, where many nodes share the file.
    pub node: Option<String>,
}

impl Configured {
    fn read(&self) -> Result<Config, ConfigError> {
        Config::read(&self.file, self.node.as_deref())
    }
}

/// Runs the engine until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be set up, on which object, and what to do.
pub async fn run(configured: &Configured) -> Result<()> {
    let config = configured.read()?;
    init_log(&config)?;
    match net::raise_open_files() {
        Ok(limit) => info!(limit, "open files"),
        Err(error) => warn!(%error, "cannot raise the limit of open files: connections beyond it will wait"),
    }
    let mut stop = Stop::listen()?;
    let listening = admin::bind(&config.listen).await?;
    let (drain, watch) = Drain::new();
    let (sources, mut engine) = match Engine::start(&config, watch.clone()).await {
        Ok(started) => started,
        Err(error) => return Err(refuse(&config, listening, error, stop).await),
    };
    let admin = tokio::spawn(listening.serve(Arc::new(sources), watch));
    let ended = tokio::select! {
        name = stop.received() => { info!(signal = name, "stopping"); None }
        ended = &mut engine.reconciler => Some(ended),
    };
    match ended {
        None => engine.finish(drain, admin, config.timeouts.drain).await,
        Some(ended) => match ended? {
            Ok(_) => bail!("the reconciler ended by itself"),
            Err(e) => Err(e.into()),
        },
    }
}

/// Prints what this machine has and lacks, before anything is installed; `signet check` asks a running engine for more.
///
/// # Errors
/// The configuration is wrong, or something is missing.
pub fn check(configured: &Configured) -> Result<()> {
    let findings = capture::findings(&configured.read()?);
    for finding in &findings {
        let result = if finding.ok { "ok" } else { "FAILED" };
        println!("{result:<6}  {:<20}  {}", finding.name, finding.detail);
    }
    match findings.iter().filter(|finding| !finding.ok).count() {
        0 => Ok(()),
        missing => bail!("{missing} of {} are not as needed", findings.len()),
    }
}

/// Why the engine does not start, with what the machine lacks. In a cluster readiness says it for a while: whoever looks
/// at a pod that has just ended finds nobody to ask.
async fn refuse(
    config: &Config,
    listening: Listening,
    error: anyhow::Error,
    mut stop: Stop,
) -> anyhow::Error {
    let lacks = capture::lacks(config, &error.to_string());
    let error =
        if lacks.is_empty() { error } else { anyhow::anyhow!("{error}; this machine lacks: {lacks}") };
    if matches!(config.source, Source::Kubernetes { .. }) {
        error!(%error, "not started");
        let stopped = async move { drop(tokio::time::timeout(REFUSAL, stop.received()).await) };
        listening.refuse(&error.to_string(), stopped).await;
    }
    error
}

/// The running tasks.
struct Engine {
    reconciler: JoinHandle<Result<Proxies, KernelError>>,
    source: JoinHandle<()>,
    /// Writes down the ends of direct connections.
    ends: Option<JoinHandle<()>>,
    /// Looks for connections from before.
    looks: JoinHandle<()>,
    claim: Claim,
    /// Those that serve connections.
    threads: Threads,
}

impl Engine {
    async fn start(config: &Config, drain: Watch) -> Result<(Sources, Self)> {
        let started = Instant::now();
        let (workers, threads) = start_workers(config)?;
        let own = Handle::current();
        let runtimes = workers.runtimes().chain([&own]);
        let mut registry = telemetry::registry("signetd", env!("CARGO_PKG_VERSION"), runtimes);
        registry.register_collector(Box::new(workers.clone()));
        let capture = capture::options(config)?;
        net::open_settings()?;
        let claim = Kernel::claim(&capture.pin_root, capture.mount_bpffs)?;
        let (mut kernel, kernel_events) = Kernel::load(&capture)?;
        kernel.register(&mut registry);
        let (svids, authority) = svid_store(config, &mut registry)?;
        let state = Arc::new(State::new(&config.mesh.root_namespace));
        let statuses = Statuses::default();
        let (epoch, policy_epoch) = watch::channel(state.epoch());
        let (tell, discovered) = watch::channel(());
        let changes = Changes { policy_epoch, discovered };
        let (report, served) = mpsc::channel(1024);
        let engine = Shared { workers, drain: drain.clone() };
        let context = proxy_context(config, &mut kernel, &state, changes, report, &mut registry, engine);
        let (connections, direct) = (context.connections.clone(), context.direct.clone());
        let ends = kernel.take_ends().map(|ends| tokio::spawn(write_down(ends, direct.clone())));
        let earlier = Earlier::new(state.clone(), Box::new(kernel.earlier()?), &mut registry);
        let looks = tokio::spawn(earlier.clone().run(epoch.subscribe()));
        let proxies = Proxies::new(Arc::new(context), earlier.clone(), epoch, tell);
        let options = capture::node_options(config, &capture)?;
        let reconciler =
            Reconciler::new(options, state.clone(), kernel, svids.clone(), proxies, statuses.clone());
        let Started { task: source, events, health, api_server } =
            start_source(config, &mut registry, drain.clone()).await?;
        let probes = Probes { authority, api_server };
        let sources = Sources {
            about: about(config, started),
            statuses,
            state,
            source: health,
            certificates: Box::new(move || svids.certificates()),
            connections: Box::new(move || [connections.views(), direct.views(), earlier.views()].concat()),
            preflight: Box::new(move || kernel::preflight(&capture)),
            probes: Box::new(move || probes.findings()),
            registry: Arc::new(registry),
        };
        let reconciler = tokio::spawn(reconciler.run(events, kernel_events, served, drain));
        Ok((sources, Self { reconciler, source, ends, looks, claim, threads }))
    }

    /// Lets live connections finish, then lets go of everything. The pins stay.
    async fn finish(self, drain: Drain, admin: JoinHandle<()>, deadline: Duration) -> Result<()> {
        let Self { reconciler, source, ends, looks, claim: _claim, threads: _threads } = self;
        let finished = async {
            let mut proxies = reconciler.await??;
            proxies.finished(deadline).await;
            admin.abort();
            source.abort();
            ends.iter().chain([&looks]).for_each(JoinHandle::abort);
            anyhow::Ok(())
        };
        let (in_time, finished) = tokio::join!(drain.drain(deadline), finished);
        if !in_time {
            warn!(?deadline, "connections were still open and have been reset");
        }
        finished
    }
}

fn about(config: &Config, started: Instant) -> About {
    About {
        instance: config.instance.clone(),
        node: config.node.name.clone(),
        trust_domain: config.mesh.trust_domain.to_string(),
        root_namespace: config.mesh.root_namespace.clone(),
        started,
    }
}

fn init_log(config: &Config) -> Result<()> {
    let format = match config.log.format {
        config::LogFormat::Text => LogFormat::Text,
        config::LogFormat::Json => LogFormat::Json,
    };
    Ok(telemetry::init_log(format, LogOutput::Stdout, &config.log.filter)?)
}

/// What the reconciler tells the proxies.
struct Changes {
    policy_epoch: watch::Receiver<u64>,
    discovered: watch::Receiver<()>,
}

fn proxy_context(
    config: &Config,
    kernel: &mut Kernel,
    state: &Arc<State>,
    changes: Changes,
    report: mpsc::Sender<Served>,
    registry: &mut Registry,
    engine: Shared,
) -> proxy::Context {
    let connections = Arc::new(Connections::new());
    let metrics = Arc::new(Metrics::new(registry, connections.clone()));
    let flows = Arc::new(kernel.direct().flows());
    let report: proxy::direct::Report = Box::new(move |client, server, to| {
        // Told again by the next connection that goes through the engine.
        let _ = report.try_send(Served { client: client.clone(), server: server.clone(), to });
    });
    proxy::Context {
        state: state.clone(),
        origins: Arc::new(kernel.origins()),
        pool: Pool::new(),
        native: native::Pool::new(),
        tunnel: config.mesh.tunnel,
        outside: config.mesh.outbound_traffic_policy,
        direct: Direct::new(state.clone(), metrics.clone(), flows, report, registry),
        metrics,
        connections,
        told: Default::default(),
        timeouts: config.timeouts.clone(),
        zone: config.node.zone.as_str().into(),
        policy_epoch: changes.policy_epoch,
        discovered: changes.discovered,
        awaited: Awaited::new(registry),
        drain: engine.drain,
        workers: engine.workers,
    }
}

/// What all connections share with the engine.
struct Shared {
    workers: Workers,
    drain: Watch,
}

/// Half of the cores, since the others are the workloads', but never one alone where there are two: it would carry every
/// connection of the node while the other rests (docs/benchmark.md has the figures).
fn start_workers(config: &Config) -> Result<(Workers, Threads)> {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let half = NonZeroUsize::new((cores.get() / 2).max(2)).unwrap_or(cores);
    let count = config.node.workers.unwrap_or(half.min(cores));
    Workers::start(count).context("cannot start the threads that serve connections")
}

/// Until the kernel's door is closed.
async fn write_down(mut ends: mpsc::Receiver<Vec<DirectEnd>>, direct: Arc<Direct>) {
    while let Some(batch) = ends.recv().await {
        direct.ended(&batch);
    }
}

/// The store, and the CA where it is one that can be asked whether it is there.
fn svid_store(config: &Config, registry: &mut Registry) -> Result<(Store, Option<Arc<IstioAuthority>>)> {
    Ok(match config.ca.clone() {
        Ca::Istio { address, server_name, roots, token, ttl } => {
            let cluster = config.mesh.cluster.clone();
            let options = IstioOptions { address, server_name, roots, token, ttl, cluster };
            let authority = Arc::new(IstioAuthority::new(options)?);
            (Store::new(authority.clone(), registry), Some(authority))
        }
        Ca::File { directory } => (Store::new(FileAuthority::new(directory), registry), None),
    })
}

/// The source's task, what it says, and how it is where it can be cut off.
struct Started {
    task: JoinHandle<()>,
    events: mpsc::Receiver<Event>,
    health: Option<Health>,
    api_server: Option<ApiServer>,
}

async fn start_source(config: &Config, registry: &mut Registry, drain: Watch) -> Result<Started> {
    let (events_tx, events) = mpsc::channel(1024);
    for ranges in configured_ranges(&config.mesh) {
        events_tx.try_send(Event::Ranges(ranges)).context("a new channel has room")?;
    }
    match &config.source {
        Source::Files { directory } => {
            let options = discovery_options(config, Origin::Directory);
            let files = Files::open(directory.clone(), options, registry)?;
            let task = tokio::spawn(run_files(files, events_tx, drain));
            Ok(Started { task, events, health: None, api_server: None })
        }
        Source::Kubernetes { kubeconfig } => {
            let options = discovery_options(config, Origin::Cluster { node: config.node.name.clone() });
            let source = Kubernetes::open(kubeconfig.as_deref(), options, registry).await?;
            let (health, api_server) = (Some(source.health()), Some(source.api_server()));
            Ok(Started { task: tokio::spawn(source.run(events_tx, drain)), events, health, api_server })
        }
    }
}

/// The configuration is one more that tells of ranges, and the first.
fn configured_ranges(mesh: &config::Mesh) -> Vec<Ranges> {
    let told = [
        (RangeKind::Services, &mesh.service_ranges),
        (RangeKind::Pods, &mesh.pod_ranges),
        (RangeKind::Outside, &mesh.outside_ranges),
    ];
    let ranges = |(kind, blocks): (RangeKind, &Vec<_>)| Ranges {
        kind,
        owner: "".into(),
        blocks: blocks.clone(),
        node: Vec::new(),
    };
    told.into_iter().filter(|(_, blocks)| !blocks.is_empty()).map(ranges).collect()
}

fn discovery_options(config: &Config, origin: Origin) -> DiscoveryOptions {
    DiscoveryOptions {
        trust_domain: config.mesh.trust_domain.clone(),
        cluster: config.mesh.cluster.clone(),
        cluster_domain: config.mesh.cluster_domain.clone(),
        root_namespace: config.mesh.root_namespace.clone(),
        same_node: config.mesh.same_node,
        node: config.node.name.clone(),
        zone: config.node.zone.clone(),
        origin,
    }
}

async fn run_files(files: Files, events: mpsc::Sender<Event>, drain: Watch) {
    if let Err(e) = files.run(events, drain).await {
        error!(error = %e, "source.files: what is known stays in force, changes are not seen: restart signetd");
    }
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// How long readiness tells why there is no engine, before the process ends and is started again.
const REFUSAL: Duration = Duration::from_secs(20);
