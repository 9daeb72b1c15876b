//! The way out: one node's instance out of its kernel, and a whole cluster's.
//!
//! In a cluster the DaemonSet itself becomes the removal ([`withdraw`]): its pods end, and in their place others take
//! the instance out of every node's kernel and stay, ready, until they are deleted. So tainted nodes and nodes whose engine
//! is broken are reached as the engine was, and whoever asked can wait for all of them.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::{Configured, init_log};
use crate::admin;
use crate::config::Config;
use crate::discovery;
use crate::kernel::{self, Claim};
use crate::net::{self, Netns};

/// Takes the programs, links and maps of this configuration's instance out of the kernel, and its settings out of the
/// workloads' network namespaces. With `stay` it then says that it is ready, until it is told to end.
///
/// # Errors
/// What could not be removed; the instance's engine still runs.
pub async fn uninstall(configured: &Configured, stay: bool) -> Result<()> {
    let config = configured.read()?;
    init_log(&config)?;
    remove(&config)?;
    info!(pins = %config.pin_root().display(), "uninstalled");
    if !stay {
        return Ok(());
    }
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    admin::agree(&config.listen, async move {
        let _ = terminate.recv().await;
    })
    .await?;
    Ok(())
}

/// Has a DaemonSet, `<namespace>/<name>`, uninstall on all its nodes, and waits until it has.
///
/// # Errors
/// The API server refuses, or cannot be reached.
pub async fn withdraw(daemon_set: &str) -> Result<()> {
    Ok(discovery::withdraw(daemon_set, |progress| println!("{progress}")).await?)
}

fn remove(config: &Config) -> Result<()> {
    let pins = config.pin_root();
    if config.capture.mount_bpffs || kernel::is_on_bpffs(&pins) {
        let _claim = Claim::take(&pins, config.capture.mount_bpffs)?;
        net::open_settings()?;
        for namespace in kernel::steered_namespaces(&pins)? {
            net::restore(&Netns::new(namespace))?;
        }
        kernel::uninstall(&pins)?;
    }
    // What an engine that was killed has left.
    match std::fs::remove_file(&config.listen.admin) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", config.listen.admin.display()))
        }
        _ => Ok(()),
    }
}
