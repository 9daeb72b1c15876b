//! Where everything of a cluster is, told by its name alone, so that it can be found and removed after its makers died.
//!
//! A name is `signetk-<chosen>`, or `signetk-<pid>-<n>` where a test made it. Directory, network namespaces, and the
//! cgroup of every hierarchy begin with it; mounts, pins and interfaces exist in namespaces of the cluster only.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::{binaries, cgroup};

/// The names and paths of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    name: String,
    directory: PathBuf,
    cgroup: PathBuf,
}

impl Layout {
    /// Of the cluster with a name that people or tests chose.
    ///
    /// # Errors
    /// It has other characters than `a-z`, `0-9` and `-`, there is no cgroup2 mount, or no build folder.
    pub(crate) fn of(chosen: &str) -> Result<Self> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            (1..=LONGEST_NAME).contains(&chosen.len()) && chosen.chars().all(legal),
            "a cluster's name has 1 to {LONGEST_NAME} of a-z, 0-9 and -: {chosen:?}"
        );
        Self::of_full(&format!("{PREFIX}{chosen}"))
    }

    /// As [`Self::of`], by the name that is on all it has.
    pub(crate) fn of_full(name: &str) -> Result<Self> {
        let directory = directory()?.join(name);
        Ok(Self { name: name.to_owned(), directory, cgroup: cgroup::mount()?.join(name) })
    }

    /// The name that is on all it has.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name that was chosen.
    pub(crate) fn chosen(&self) -> &str {
        self.name.strip_prefix(PREFIX).unwrap_or(&self.name)
    }

    /// Its files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The log of a component.
    pub(crate) fn log(&self, component: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{component}.log"))
    }

    /// The kubeconfig of the one who started it, for use from the machine's own network namespace.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// Written once it is up whole: a cluster without it was killed half-way.
    pub(crate) fn up_mark(&self) -> PathBuf {
        self.directory.join("up")
    }

    /// Held while it is brought up or taken down; beside its directory, which comes and goes.
    pub(crate) fn lock(&self) -> PathBuf {
        self.directory.with_extension("lock")
    }

    /// The network namespace of one of its machines.
    pub(crate) fn netns(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }

    /// The cgroup2 directory that all of it is below.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its directory in every cgroup hierarchy, version 1 and 2.
    pub(crate) fn cgroups(&self) -> Result<Vec<PathBuf>> {
        Ok(hierarchies()?.iter().map(|mount| mount.join(&self.name)).collect())
    }
}

/// Every cluster that has anything left on this machine, by its full name.
pub(crate) fn names() -> Result<Vec<String>> {
    let places = [directory()?, cgroup::mount()?, PathBuf::from(crate::netns::DIRECTORY)];
    let mut names: Vec<String> =
        places.iter().flat_map(|place| entries(place)).filter_map(|entry| cluster_of(&entry)).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The process that made a cluster of a test; `None` where people chose the name.
pub(crate) fn maker(name: &str) -> Option<u32> {
    let (pid, count) = name.strip_prefix(PREFIX)?.split_once('-')?;
    count.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// The mount points of every cgroup hierarchy.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_cgroups = fields.filter(|fields| ["cgroup", "cgroup2"].contains(&fields[2]));
    Ok(of_cgroups.map(|fields| PathBuf::from(fields[1])).collect())
}

/// Names in a directory; one that is not there has none.
pub(crate) fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok())
}

/// `signetk-<name>` of `signetk-<name>[-<machine>]`; a name that people chose may hold `-` itself. A lock is nothing that a
/// cluster has: whoever looks for one holds it.
fn cluster_of(entry: &str) -> Option<String> {
    entry.strip_prefix(PREFIX)?;
    if entry.ends_with(".lock") {
        return None;
    }
    let machine = MACHINES.iter().find_map(|machine| entry.strip_suffix(&format!("-{machine}")));
    Some(machine.unwrap_or(entry).to_owned())
}

fn directory() -> Result<PathBuf> {
    Ok(binaries::target()?.join("clusters"))
}

/// The control plane's machine, which is the router between the nodes too.
pub(crate) const CONTROL: &str = "ctl";
/// The nodes.
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];
const MACHINES: [&str; 3] = [CONTROL, NODES[0], NODES[1]];
/// Not `signet-`, which is a testbed's.
const PREFIX: &str = "signetk-";
const LONGEST_NAME: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_known_by_each_of_its_names() {
        for entry in ["signetk-my-dev", "signetk-my-dev-ctl", "signetk-my-dev-n2"] {
            assert_eq!(cluster_of(entry).as_deref(), Some("signetk-my-dev"), "{entry}");
        }
        assert_eq!(cluster_of("signet-1-2"), None);
        assert_eq!(cluster_of("signetk-my-dev.lock"), None);
    }

    #[test]
    fn only_a_tests_cluster_has_a_maker() {
        assert_eq!(maker("signetk-12-3"), Some(12));
        assert_eq!(maker("signetk-dev"), None);
        assert_eq!(maker("signetk-12-dev"), None);
    }
}
