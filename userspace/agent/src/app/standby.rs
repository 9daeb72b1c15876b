//! A successor that waits for its predecessor to end, so that a node changes engines without one that has none.
//!
//! Two engines of an instance cannot run side by side ([`Claim`]), and an engine that ends lets its connections finish,
//! which takes as long as it is given. So its successor is started before: it reads its configuration, looks at the
//! machine, reads the source through to the end and asks the CA, as a rehearsal, and says on its [`Stage`] how that
//! went. A successor that could not serve never says `ok`, and whoever rolls it out leaves its predecessor alone. It does not ask
//! that one to end, and takes its place when it does: at once where it is ready, and otherwise a little later, when nobody
//! else has, since a predecessor that was killed is started again.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::source::{self, Started};
use super::{capture, svid_store};
use crate::admin::Stage;
use crate::config::Config;
use crate::drain::Drain;
use crate::kernel::{Claim, KernelError};
use crate::state::Event;
use crate::telemetry::Registry;

/// The right to be the one engine, once nobody else is it.
///
/// # Errors
/// That right cannot be had at all.
pub(super) async fn turn(config: &Config, stage: &Stage) -> Result<Claim, KernelError> {
    let (pins, mount_bpffs) = (config.pin_root(), config.capture.mount_bpffs);
    let mut rehearsal = pin!(rehearsed(config, stage));
    let mut is_ready = false;
    loop {
        match Claim::take(&pins, mount_bpffs) {
            Err(KernelError::InstanceInUse { .. }) => {}
            taken => return taken,
        }
        info!(pins = %pins.display(), "another signetd runs: standing by until it ends");
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
    }
}

/// Once it has worked nothing is asked again: what breaks later would break a running engine as well.
async fn rehearsed(config: &Config, stage: &Stage) {
    while let Err(missing) = rehearse(config, stage).await {
        let missing = missing.to_string();
        warn!(%missing, "it could not take over: trying again");
        stage.tell(Err(missing));
        tokio::time::sleep(BETWEEN_REHEARSALS).await;
    }
    info!("ready to take over");
    stage.tell(Ok(()));
}

/// Everything that a start needs and that can be had beside another engine.
async fn rehearse(config: &Config, stage: &Stage) -> Result<()> {
    let of_machine = config.clone();
    tokio::task::spawn_blocking(move || capture::rehearse(&of_machine)).await??;
    let mut registry = Registry::default();
    if let (_, Some(authority)) = svid_store(config, &mut registry)? {
        authority.reach().await.map_err(|missing| anyhow!("ca: {missing}"))?;
    }
    read_source(config, &mut registry, stage).await
}

/// All of it, once, and forgets it. The source's task ends with the drain, here or where this is cut off.
async fn read_source(config: &Config, registry: &mut Registry, stage: &Stage) -> Result<()> {
    let (_drain, watch) = Drain::new();
    let Started { mut events, health, .. } = source::start(config, registry, watch).await?;
    let mut read = pin!(synced(&mut events));
    loop {
        match tokio::time::timeout(BETWEEN_REPORTS, &mut read).await {
            Ok(true) => return Ok(()),
            Ok(false) => bail!("source: it has ended by itself, see the log"),
            Err(_) => {
                let health = health.as_ref().map_or_else(String::new, |health| health.summary().1);
                stage.tell(Err(format!("source: not read yet: {health}")));
            }
        }
    }
}

async fn synced(events: &mut mpsc::Receiver<Event>) -> bool {
    while let Some(event) = events.recv().await {
        if matches!(event, Event::Synced) {
            return true;
        }
    }
    false
}

const BETWEEN_REHEARSALS: Duration = Duration::from_secs(5);
/// How long a place that is free is left to others by one that is not ready. Connects wait for longer (`capture.engineTimeout`).
const DEFERENCE: Duration = Duration::from_secs(10);
/// How often it is said how far the source is read.
const BETWEEN_REPORTS: Duration = Duration::from_secs(1);
