//! Builds everything in order, runs it, and takes it down in reverse.
//!
//! The order is the start-up contract: configuration and log first, so that whatever fails can say so; then the
//! kernel programs are loaded but not attached; then sources are read, maps filled and listeners opened; the programs
//! attach last (see `reconcile`). Going down, the listeners close first and the pins stay: the kernel goes on
//! refusing what would have come to us. Once no listener, no port and nothing of the kernel's is ours any more a successor
//! may begin (`standby`), while our connections finish.

mod arguments;
mod capture;
mod ending;
mod probes;
mod proxies;
mod removal;
mod source;
mod standby;

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::admin::{self, About, AdminError, Listening, Sources, Stage};
use crate::config::{self, Ca, Config, ConfigError, Listen, Source};
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
use crate::reconcile::{Finishing, Reconciler, Served, Statuses};
use crate::state::State;
use crate::svid::{FileAuthority, IstioAuthority, IstioOptions, Store};
use crate::telemetry::{self, LogFormat, LogOutput, Registry};
use crate::workers::{Threads, Workers};

use self::ending::Stop;
use self::probes::Probes;
use self::proxies::Proxies;
use self::source::Started;

pub use self::arguments::Arguments;
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

/// Runs the engine until SIGTERM or SIGINT. With `stand_by`, the path of a socket, it first waits there for the instance's
/// engine to end, where one runs.
///
/// # Errors
/// What could not be set up, on which object, and what to do.
pub async fn run(configured: &Configured, stand_by: Option<&Path>) -> Result<()> {
    let config = configured.read()?;
    init_log(&config)?;
    match net::raise_open_files() {
        Ok(limit) => info!(limit, "open files"),
        Err(error) => warn!(%error, "cannot raise the limit of open files: connections beyond it will wait"),
    }
    let mut stop = Stop::listen()?;
    let stage = stand_by.map(Stage::open).transpose()?;
    let claim = tokio::select! {
        claim = claim(&config, stage.as_ref()) => claim,
        name = stop.received() => {
            info!(signal = name, "stopping before its turn");
            return Ok(());
        }
    };
    let listening = match bind(&config.listen, &claim, stage.is_some()).await {
        Ok(listening) => listening,
        Err(error) => return Err(claim.err().map_or_else(|| error.into(), anyhow::Error::from)),
    };
    let (drain, watch) = Drain::new();
    let (sources, mut engine) = match Engine::start(&config, &claim, watch.clone()).await {
        Ok(started) => started,
        // A successor waits meanwhile: the ports are still this one's.
        Err(error) => return Err(refuse(&config, listening, stage, error, stop).await),
    };
    if let Some(stage) = &stage {
        // What is missing from here on, readiness says.
        stage.tell(Ok(()));
    }
    let admin = tokio::spawn(listening.serve(Arc::new(sources), watch));
    let ended = tokio::select! {
        name = stop.received() => { info!(signal = name, "stopping"); None }
        ended = &mut engine.reconciler => Some(ended),
    };
    let Some(ended) = ended else {
        return engine.finish(claim, drain, admin, config.timeouts.drain).await;
    };
    // Listeners and ports end with the process; so must this.
    std::mem::forget(claim);
    match ended? {
        Ok(_) => bail!("the reconciler ended by itself"),
        Err(e) => Err(e.into()),
    }
}

/// The node's ports. A predecessor that was killed may have them a moment longer than its claim: the kernel closes what a
/// process had open in no order that it promises.
async fn bind(
    listen: &Listen,
    claim: &Result<Claim, KernelError>,
    has_stood_by: bool,
) -> Result<Listening, AdminError> {
    let until =
        Instant::now() + if has_stood_by && claim.is_ok() { PORTS_FREE_WITHIN } else { Duration::ZERO };
    loop {
        match admin::bind(listen).await {
            Err(AdminError::Tcp { .. } | AdminError::Taken { .. }) if Instant::now() < until => {
                tokio::time::sleep(PORTS_ASKED_EVERY).await;
            }
            bound => return bound,
        }
    }
}

async fn claim(config: &Config, stage: Option<&Stage>) -> Result<Claim, KernelError> {
    match stage {
        Some(stage) => standby::turn(config, stage).await,
        None => Claim::take(&config.pin_root(), config.capture.mount_bpffs),
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
    stage: Option<Stage>,
    error: anyhow::Error,
    mut stop: Stop,
) -> anyhow::Error {
    let lacks = capture::lacks(config, &error.to_string());
    let error = if lacks.is_empty() { error } else { anyhow!("{error}; this machine lacks: {lacks}") };
    if let Some(stage) = &stage {
        stage.tell(Err(error.to_string()));
    }
    if matches!(config.source, Source::Kubernetes { .. }) {
        error!(%error, "not started");
        let stopped = async move { drop(timeout(REFUSAL, stop.received()).await) };
        listening.refuse(&error.to_string(), stopped).await;
    }
    error
}

/// Where kubelet takes a container's termination message from; on any other machine there is no such file.
fn say_last_words(error: &anyhow::Error) {
    let file = std::fs::OpenOptions::new().write(true).open("/dev/termination-log");
    let _ = file.and_then(|mut file| writeln!(file, "{error}"));
}

/// The running tasks.
struct Engine {
    reconciler: JoinHandle<Result<Finishing<Proxies>, KernelError>>,
    source: JoinHandle<()>,
    /// Writes down the ends of direct connections.
    ends: Option<JoinHandle<()>>,
    /// Looks for connections from before.
    looks: JoinHandle<()>,
    /// Those that serve connections.
    threads: Threads,
}

impl Engine {
    async fn start(
        config: &Config,
        claim: &Result<Claim, KernelError>,
        drain: Watch,
    ) -> Result<(Sources, Self)> {
        let started = Instant::now();
        let (workers, threads) = start_workers(config)?;
        let own = Handle::current();
        let runtimes = workers.runtimes().chain([&own]);
        let mut registry = telemetry::registry("signetd", env!("CARGO_PKG_VERSION"), runtimes);
        registry.register_collector(Box::new(workers.clone()));
        let capture = capture::options(config)?;
        net::open_settings()?;
        let claim = claim.as_ref().map_err(|error| anyhow!("{error}"))?;
        let (mut kernel, kernel_events) = Kernel::load(&capture)?;
        if !claim.is_handed_over() {
            kernel.forget_flows()?;
        }
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
        let looks = tokio::spawn(earlier.clone().run(epoch.subscribe(), drain.clone()));
        let proxies = Proxies::new(Arc::new(context), earlier.clone(), epoch, tell);
        let options = capture::node_options(config, &capture)?;
        let reconciler =
            Reconciler::new(options, state.clone(), kernel, svids.clone(), proxies, statuses.clone());
        let Started { task: source, events, health, api_server } =
            source::start(config, &mut registry, drain.clone()).await?;
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
        Ok((sources, Self { reconciler, source, ends, looks, threads }))
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

/// How long readiness tells why there is no engine, before the process ends and is started again.
const REFUSAL: Duration = Duration::from_secs(20);
/// How long a predecessor's ports are waited for once its claim is free, and how often they are asked for.
const PORTS_FREE_WITHIN: Duration = Duration::from_secs(5);
const PORTS_ASKED_EVERY: Duration = Duration::from_millis(50);
