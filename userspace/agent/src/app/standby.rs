//! A successor that waits for its predecessor to end, so that a node changes engines without one that has none.
//!
//! Two engines of an instance cannot run side by side ([`Claim`]), and an engine that ends lets its connections finish,
//! which takes as long as it is given. So its successor is started before: it reads its configuration, looks at the
//! machine, reads the source through to the end and has the CA make an SVID, as a rehearsal, and says on its [`Stage`] how
//! that went. A successor that could not serve never says `ok`, and whoever rolls it out leaves its predecessor alone. It
//! does not ask that one to end, and takes its place when it does: at once where it is ready, and otherwise a little later,
//! when nobody else has, since a predecessor that was killed is started again.

use std::fmt::Display;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use super::source::{self, Started};
use super::{capture, svid_store};
use crate::admin::Stage;
use crate::config::Config;
use crate::drain::Drain;
use crate::kernel::{Claim, KernelError};
use crate::state::{Event, Workload};
use crate::telemetry::Registry;

/// The right to be the one engine, once nobody else is it.
///
/// # Errors
/// That right cannot be had at all.
pub(super) async fn turn(config: &Config, stage: &Stage) -> Result<Claim, KernelError> {
    let (pins, mount_bpffs) = (config.pin_root(), config.capture.mount_bpffs);
    match Claim::take(&pins, mount_bpffs) {
        Err(KernelError::InstanceInUse { .. }) => {}
        taken => return taken,
    }
    info!(pins = %pins.display(), "another signetd runs: standing by until it ends");
    let mut rehearsal = pin!(rehearsed(config, stage));
    let mut is_ready = false;
    loop {
        let mut turn = pin!(Claim::await_turn(&pins, mount_bpffs));
        let claim = loop {
            tokio::select! {
                claim = &mut turn => break claim?,
                () = &mut rehearsal, if !is_ready => is_ready = true,
            }
        };
        if is_ready {
            return Ok(claim);
        }
        // Whoever had it could serve, and may be started again.
        warn!(after = ?DEFERENCE, "the node has no engine, and this one is not ready: taking over all the same");
        drop(claim);
        tokio::select! {
            () = tokio::time::sleep(DEFERENCE) => {}
            () = &mut rehearsal => is_ready = true,
        }
        match Claim::take(&pins, mount_bpffs) {
            Err(KernelError::InstanceInUse { .. }) => {}
            taken => return taken.map(Claim::handed_over),
        }
    }
}

/// Once it has worked nothing is asked again: what breaks later would break a running engine as well.
async fn rehearsed(config: &Config, stage: &Stage) {
    attempted(stage, async || {
        let config = config.clone();
        tokio::task::spawn_blocking(move || capture::rehearse(&config)).await?
    })
    .await;
    attempted(stage, async || rehearse(config, stage).await).await;
    info!("ready to take over");
    stage.tell(Ok(()));
}

/// Again and again until it works.
async fn attempted(stage: &Stage, attempt: impl AsyncFn() -> Result<()>) {
    while let Err(missing) = attempt().await {
        let missing = missing.to_string();
        warn!(%missing, "it could not take over: trying again");
        stage.tell(Err(missing));
        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
    }
}

/// Everything that a start needs of others: the CA, what the source has to tell, and an SVID for one of the node's workloads.
async fn rehearse(config: &Config, stage: &Stage) -> Result<()> {
    let mut registry = Registry::default();
    let (svids, authority) = svid_store(config, &mut registry)?;
    if let Some(authority) = &authority {
        authority.reach().await.map_err(|missing| anyhow!("ca: {missing}"))?;
    }
    let workload = read_source(config, &mut registry, stage).await?;
    let (Some(_), Some(workload)) = (authority, workload) else { return Ok(()) };
    let tracked = svids.track(workload.uid.clone(), workload.identity.clone());
    let mut credentials = tracked.credentials();
    let failed = |error: &dyn Display| anyhow!("ca: no SVID for {}: {error}", workload.uid);
    match timeout(config.timeouts.svid, credentials.get()).await {
        Ok(fetched) => fetched.map(drop).map_err(|error| failed(&error)),
        Err(late) => Err(credentials.last_error().map_or_else(|| failed(&late), |error| failed(&error))),
    }
}

/// All of it, once, and forgets it, but for one workload of this node that is to have an SVID. The source's task ends with
/// the drain, here or where this is cut off.
async fn read_source(
    config: &Config,
    registry: &mut Registry,
    stage: &Stage,
) -> Result<Option<Arc<Workload>>> {
    let (_drain, watch) = Drain::new();
    let Started { mut events, health, .. } = source::start(config, registry, watch).await?;
    let mut read = pin!(synced(&mut events, &config.node.name));
    loop {
        match timeout(BETWEEN_REPORTS, &mut read).await {
            Ok(read) => return read,
            Err(_) => {
                let health = health.as_ref().map_or_else(String::new, |health| health.summary().1);
                stage.tell(Err(format!("source: not read yet: {health}")));
            }
        }
    }
}

async fn synced(events: &mut mpsc::Receiver<Event>, node: &str) -> Result<Option<Arc<Workload>>> {
    let mut local = None;
    while let Some(event) = events.recv().await {
        match event {
            Event::Synced => return Ok(local),
            Event::Workload(workload) if workload.enrolled && *workload.node == *node => {
                local = Some(workload)
            }
            _ => {}
        }
    }
    bail!("source: it has ended by itself, see the log")
}

const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(5);
/// How often it is said how far the source is read.
const BETWEEN_REPORTS: Duration = Duration::from_secs(1);
/// How long a place that is free is left to others by one that is not ready. Connects wait for longer (`capture.engineTimeout`).
const DEFERENCE: Duration = Duration::from_secs(10);
