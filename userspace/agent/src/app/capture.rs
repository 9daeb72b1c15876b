//! From the configuration and this machine to what is captured: cgroup root, pods' root, pins.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::config::{Config, Source};
use crate::kernel::{self, CaptureOptions, Finding, KernelError};
use crate::reconcile::NodeOptions;

/// What the kernel door is told.
///
/// # Errors
/// The machine has no cgroup2, or not what the configuration says of it.
pub(super) fn options(config: &Config) -> Result<CaptureOptions> {
    let mount = kernel::cgroup2_mount().ok_or(KernelError::NoCgroup2)?;
    let capture = &config.capture;
    let cgroup_root = capture.cgroup_root.clone().unwrap_or_else(|| default_cgroup_root(config, &mount));
    if !cgroup_root.starts_with(&mount) {
        bail!(
            "capture.cgroupRoot {}: not below the cgroup2 mount {}",
            cgroup_root.display(),
            mount.display()
        );
    }
    Ok(CaptureOptions {
        pods_root: configured_pods_root(config, &cgroup_root)?,
        kubelet_cgroup: capture.kubelet_cgroup.clone(),
        cgroup_root,
        pin_root: config.pin_root(),
        mount_bpffs: capture.mount_bpffs,
        unknown_pods: capture.unknown_pods,
        unprotected: capture.unprotected,
        engine_timeout: capture.engine_timeout,
    })
}

/// In a cluster that of the node whose kubelet has started this process.
fn default_cgroup_root(config: &Config, mount: &Path) -> PathBuf {
    let node = match config.source {
        Source::Kubernetes { .. } => kernel::own_node_root(mount),
        Source::Files { .. } => None,
    };
    node.unwrap_or_else(|| mount.to_owned())
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

/// What `reconcile` is told.
///
/// # Errors
/// The cgroup2 mount has gone meanwhile.
pub(super) fn node_options(config: &Config, capture: &CaptureOptions) -> Result<NodeOptions> {
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

/// What this machine has and lacks, one line each.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    options(config).map_or_else(
        |error| {
            let place = Finding { name: "capture".into(), ok: false, detail: error.to_string() };
            [kernel::machine(&config.pin_root(), config.capture.mount_bpffs), vec![place]].concat()
        },
        |options| kernel::preflight(&options),
    )
}

/// What this machine lacks beside what `error` says already, in one line; empty where that is all.
pub(super) fn lacks(config: &Config, error: &str) -> String {
    let mut findings = findings(config);
    findings.retain(|finding| !finding.ok && !error.contains(&finding.detail));
    in_one_line(&findings)
}

/// Whether an engine could start on this machine.
///
/// # Errors
/// What it lacks.
pub(super) fn rehearse(config: &Config) -> Result<()> {
    let lacking = kernel::lacking(&options(config)?);
    if lacking.is_empty() { Ok(()) } else { bail!("this machine lacks: {}", in_one_line(&lacking)) }
}

fn in_one_line(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|finding| format!("{}: {}", finding.name, finding.detail));
    lines.collect::<Vec<_>>().join("; ")
}
