//! Takes a cluster down by its name alone, whatever state it is in: whole, half-started, or of a process that was killed.
//!
//! Everything that runs for it, kubelets, shims and containers included, is below one cgroup, so one write kills it. With
//! the last process of a node its mount namespace ends, and with that every mount and pin; with the network namespaces
//! end the interfaces, routes and rules. What remains are names: of cgroups, of network namespaces, of files.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::{self, Layout};
use crate::live::report;
use crate::{cgroup, netns, wait};

/// Removes everything that carries a cluster's full name. Nothing of it there is fine.
///
/// # Errors
/// The first thing that could not be removed, after trying the rest.
pub(crate) fn remove(name: &str) -> Result<()> {
    let layout = Layout::of_full(name)?;
    let cgroup = cgroup::remove(layout.cgroup());
    let hierarchies = remove_hierarchies(&layout);
    let netns = remove_netns(&layout);
    let directory = remove_directory(layout.directory());
    cgroup.and(hierarchies).and(netns).and(directory)
}

/// Removes what the clusters of dead tests have left; those with a chosen name stay.
pub(crate) fn sweep() -> Result<()> {
    let dead =
        |name: &String| layout::maker(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    layout::names()?.iter().filter(|name| dead(name)).for_each(|name| report(remove(name)));
    Ok(())
}

/// Version 1 has no kill; its processes were those of version 2, and leave the other hierarchies a moment later.
fn remove_hierarchies(layout: &Layout) -> Result<()> {
    for path in layout.cgroups()? {
        wait::until("the killed processes have left", LEFT_WITHIN, || remove_empty(&path))?;
    }
    Ok(())
}

fn remove_empty(path: &Path) -> Result<()> {
    for child in layout::entries(path).map(|entry| path.join(entry)).filter(|child| child.is_dir()) {
        remove_empty(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_netns(layout: &Layout) -> Result<()> {
    let machines = layout::NODES.into_iter().chain([layout::CONTROL]).map(|machine| layout.netns(machine));
    let lines: Vec<String> = machines
        .filter(|name| Path::new(netns::DIRECTORY).join(name).exists())
        .map(|name| format!("netns del {name}"))
        .collect();
    if lines.is_empty() { Ok(()) } else { netns::ip(None, &lines.join("\n")) }
}

fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// As generous as for a killed process, see `cgroup`.
const LEFT_WITHIN: Duration = Duration::from_secs(10);
