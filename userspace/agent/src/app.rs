//! Builds everything in order, runs it, and takes it down in reverse.
//!
//! The order is the start-up contract: configuration and log first, so that whatever fails can say so; then the
//! kernel programs are loaded but not attached; then sources are read, maps filled and listeners opened; the programs
//! attach last (see `reconcile`). Going down, the listeners close first and the pins stay: the kernel goes on
//! refusing what would have come to us.

mod proxies;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::admin::{self, About, Sources};
use crate::config::{self, Ca, Config, Source};
use crate::discovery::{DiscoveryOptions, Files, Health, Kubernetes, Origin};
use crate::drain::{Drain, Watch};
use crate::kernel::{self, CaptureOptions, Claim, DirectEnd, Kernel, KernelError};
use crate::net;
use crate::proxy;
use crate::proxy::connections::Connections;
use crate::proxy::direct::Direct;
use crate::proxy::hbone::Pool;
use crate::proxy::metrics::Metrics;
use crate::proxy::native;
use crate::reconcile::{NodeOptions, Reconciler, Served, Statuses};
use crate::state::{Event, State};
use crate::svid::{FileAuthority, IstioAuthority, IstioOptions, Store};
use crate::telemetry::{self, LogFormat, LogOutput, Registry};

use self::proxies::Proxies;

/// Runs the engine until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be set up, on which object, and what to do.
pub async fn run(config_path: &Path) -> Result<()> {
    let config = Config::read(config_path)?;
    init_log(&config)?;
    match net::raise_open_files() {
        Ok(limit) => info!(limit, "open files"),
        Err(error) => warn!(%error, "cannot raise the limit of open files: connections beyond it will wait"),
    }
    let mut stop = Stop::listen()?;
    let (drain, watch) = Drain::new();
    let mut engine = Engine::start(&config, watch).await?;
    let ended = tokio::select! {
        name = stop.received() => { info!(signal = name, "stopping"); None }
        ended = &mut engine.reconciler => Some(ended),
    };
    match ended {
        None => engine.finish(drain, config.timeouts.drain).await,
        Some(ended) => match ended? {
            Ok(_) => bail!("the reconciler ended by itself"),
            Err(e) => Err(e.into()),
        },
    }
}

/// Takes the programs, links and maps of this configuration's instance out of the kernel.
///
/// # Errors
/// What could not be removed; the instance's engine still runs.
pub fn uninstall(config_path: &Path) -> Result<()> {
    let config = Config::read(config_path)?;
    let _claim = Kernel::claim(&config.pin_root())?;
    Kernel::uninstall(&config.pin_root())?;
    Ok(())
}

/// Prints what this machine has and lacks, before anything is installed; `signet check` asks a running engine for more.
///
/// # Errors
/// The configuration is wrong, or something is missing.
pub fn check(config_path: &Path) -> Result<()> {
    let config = Config::read(config_path)?;
    let findings = kernel::preflight(&capture_options(&config)?);
    for finding in &findings {
        let result = if finding.ok { "ok" } else { "FAILED" };
        println!("{result:<6}  {:<20}  {}", finding.name, finding.detail);
    }
    match findings.iter().filter(|finding| !finding.ok).count() {
        0 => Ok(()),
        missing => bail!("{missing} of {} are not as needed", findings.len()),
    }
}

/// The running tasks.
struct Engine {
    reconciler: JoinHandle<Result<Proxies, KernelError>>,
    source: JoinHandle<()>,
    admin: JoinHandle<()>,
    /// Writes down the ends of direct connections.
    ends: Option<JoinHandle<()>>,
    claim: Claim,
}

impl Engine {
    async fn start(config: &Config, drain: Watch) -> Result<Self> {
        let started = Instant::now();
        let listening = admin::bind(&config.listen).await?;
        let mut registry = telemetry::registry("signetd", env!("CARGO_PKG_VERSION"));
        let capture = capture_options(config)?;
        let claim = Kernel::claim(&capture.pin_root)?;
        let (mut kernel, kernel_events) = Kernel::load(&capture)?;
        kernel.register(&mut registry);
        let svids = svid_store(config, &mut registry)?;
        let state = Arc::new(State::new(&config.mesh.root_namespace));
        let statuses = Statuses::default();
        let (epoch, policy_epoch) = watch::channel(state.epoch());
        let (report, served) = mpsc::channel(1024);
        let context =
            proxy_context(config, &mut kernel, &state, policy_epoch, report, &mut registry, drain.clone());
        let (connections, direct) = (context.connections.clone(), context.direct.clone());
        let ends = kernel.take_ends().map(|ends| tokio::spawn(write_down(ends, direct.clone())));
        let proxies = Proxies::new(Arc::new(context), epoch);
        let options = node_options(config, &capture)?;
        let reconciler =
            Reconciler::new(options, state.clone(), kernel, svids.clone(), proxies, statuses.clone());
        let Started { task: source, events, health } =
            start_source(config, &mut registry, drain.clone()).await?;
        let sources = Sources {
            about: about(config, started),
            statuses,
            state,
            source: health,
            certificates: Box::new(move || svids.certificates()),
            connections: Box::new(move || [connections.views(), direct.views()].concat()),
            preflight: Box::new(move || kernel::preflight(&capture)),
            registry: Arc::new(registry),
        };
        Ok(Self {
            reconciler: tokio::spawn(reconciler.run(events, kernel_events, served, drain.clone())),
            source,
            admin: tokio::spawn(listening.serve(Arc::new(sources), drain)),
            ends,
            claim,
        })
    }

    /// Lets live connections finish, then lets go of everything. The pins stay.
    async fn finish(self, drain: Drain, deadline: Duration) -> Result<()> {
        let Self { reconciler, source, admin, ends, claim: _claim } = self;
        let finished = async {
            let mut proxies = reconciler.await??;
            proxies.finished(deadline).await;
            admin.abort();
            source.abort();
            ends.iter().for_each(JoinHandle::abort);
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

fn capture_options(config: &Config) -> Result<CaptureOptions> {
    let mount = kernel::cgroup2_mount().context(
        "no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with it",
    )?;
    let capture = &config.capture;
    let cgroup_root = capture.cgroup_root.clone().unwrap_or_else(|| mount.clone());
    if !cgroup_root.starts_with(&mount) {
        bail!(
            "capture.cgroupRoot {}: not below the cgroup2 mount {}",
            cgroup_root.display(),
            mount.display()
        );
    }
    Ok(CaptureOptions {
        pods_root: configured_pods_root(config, &cgroup_root)?,
        cgroup_root,
        pin_root: config.pin_root(),
        unknown_pods: capture.unknown_pods,
        unprotected: capture.unprotected,
        engine_timeout: capture.engine_timeout,
    })
}

/// A cluster's pods are found by their cgroups, so their root must be known; elsewhere there need be none.
fn configured_pods_root(config: &Config, cgroup_root: &Path) -> Result<Option<PathBuf>> {
    match (&config.capture.pods_root, &config.source) {
        (Some(root), _) => Ok(Some(root.clone())),
        (None, Source::Files { .. }) => Ok(None),
        (None, Source::Kubernetes { .. }) => kernel::find_pods_root(cgroup_root).map(Some).with_context(|| {
            let root = cgroup_root.display();
            format!("capture.podsRoot: kubelet's cgroup for pods is not found below {root}: start kubelet, or name it")
        }),
    }
}

fn node_options(config: &Config, capture: &CaptureOptions) -> Result<NodeOptions> {
    let mount = kernel::cgroup2_mount().context("the cgroup2 mount is gone")?;
    Ok(NodeOptions {
        node: config.node.name.clone(),
        zone: config.node.zone.clone(),
        pods_root: pods_root(capture, &mount),
        cgroup_mount: mount,
        // Two missed stamps are forgiven.
        heartbeat: capture.engine_timeout / 3,
    })
}

/// Relative to the mount.
fn pods_root(capture: &CaptureOptions, mount: &Path) -> Option<PathBuf> {
    let root = capture.cgroup_root.join(capture.pods_root.as_ref()?);
    root.strip_prefix(mount).map(Path::to_owned).ok()
}

fn proxy_context(
    config: &Config,
    kernel: &mut Kernel,
    state: &Arc<State>,
    policy_epoch: watch::Receiver<u64>,
    report: mpsc::Sender<Served>,
    registry: &mut Registry,
    drain: Watch,
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
        direct: Direct::new(state.clone(), metrics.clone(), flows, report, registry),
        metrics,
        connections,
        timeouts: config.timeouts.clone(),
        zone: config.node.zone.as_str().into(),
        policy_epoch,
        drain,
    }
}

/// Until the kernel's door is closed.
async fn write_down(mut ends: mpsc::Receiver<Vec<DirectEnd>>, direct: Arc<Direct>) {
    while let Some(batch) = ends.recv().await {
        direct.ended(&batch);
    }
}

fn svid_store(config: &Config, registry: &mut Registry) -> Result<Store> {
    Ok(match config.ca.clone() {
        Ca::Istio { address, server_name, roots, token, ttl } => {
            let cluster = config.mesh.cluster.clone();
            let options = IstioOptions { address, server_name, roots, token, ttl, cluster };
            Store::new(IstioAuthority::new(options)?, registry)
        }
        Ca::File { directory } => Store::new(FileAuthority::new(directory), registry),
    })
}

/// The source's task, what it says, and how it is where it can be cut off.
struct Started {
    task: JoinHandle<()>,
    events: mpsc::Receiver<Event>,
    health: Option<Health>,
}

async fn start_source(config: &Config, registry: &mut Registry, drain: Watch) -> Result<Started> {
    let (events_tx, events) = mpsc::channel(1024);
    match &config.source {
        Source::Files { directory } => {
            let options = discovery_options(config, Origin::Directory);
            let files = Files::open(directory.clone(), options, registry)?;
            Ok(Started { task: tokio::spawn(run_files(files, events_tx, drain)), events, health: None })
        }
        Source::Kubernetes { kubeconfig } => {
            let options = discovery_options(config, Origin::Cluster { node: config.node.name.clone() });
            let source = Kubernetes::open(kubeconfig.as_deref(), options, registry).await?;
            let health = Some(source.health());
            Ok(Started { task: tokio::spawn(source.run(events_tx, drain)), events, health })
        }
    }
}

fn discovery_options(config: &Config, origin: Origin) -> DiscoveryOptions {
    DiscoveryOptions {
        trust_domain: config.mesh.trust_domain.clone(),
        cluster: config.mesh.cluster.clone(),
        cluster_domain: config.mesh.cluster_domain.clone(),
        root_namespace: config.mesh.root_namespace.clone(),
        same_node: config.mesh.same_node,
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
