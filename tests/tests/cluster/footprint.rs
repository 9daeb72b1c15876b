//! What an engine holds on its node: entries of the kernel programs' maps, pins, workloads, SVIDs, connections; and
//! what that takes: tasks, descriptors, memory. What pods have brought must be gone with them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use signet_testkit::cluster::{Node, Release};
use signet_testkit::http::Metrics;
use signet_testkit::memory::Memory;
use signet_testkit::process::stdout;
use signet_testkit::wait;

use crate::shared::WITHIN;

/// An engine at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Footprint {
    held: BTreeMap<String, u64>,
    size: Size,
}

/// What it takes, or may take more than before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Of the runtime.
    pub(crate) tasks: u64,
    /// Open files.
    pub(crate) descriptors: u64,
    /// Anonymous KiB: the pages of an unoptimised program's code are several times that, and come and go.
    pub(crate) anonymous: u64,
}

impl Size {
    /// For an engine that is another process than before.
    pub(crate) const ANY: Self = Self { tasks: u64::MAX, descriptors: u64::MAX, anonymous: u64::MAX };

    fn of(node: &Node, metrics: &Metrics) -> Result<Self> {
        let whole = |name| metrics.sum(name, &[]) as u64;
        Ok(Self {
            tasks: whole("tokio_num_alive_tasks"),
            descriptors: whole("process_open_fds"),
            anonymous: anonymous(node)?,
        })
    }

    fn is_within(self, before: Self, more: Self) -> bool {
        let fits = |now, before: u64, more| now <= before.saturating_add(more);
        fits(self.tasks, before.tasks, more.tasks)
            && fits(self.descriptors, before.descriptors, more.descriptors)
            && fits(self.anonymous, before.anonymous, more.anonymous)
    }
}

impl Footprint {
    pub(crate) fn of(signet: &Release, node: &Node) -> Result<Self> {
        let ask = ["curl", "--silent", "--fail", "--max-time", "10", "http://127.0.0.1:15020/metrics"];
        let metrics = Metrics::parse(&stdout(&node.exec(&ask)?)?);
        let pins = stdout(&node.exec(&["find", "/sys/fs/bpf", "-mindepth", "1", "-path", "*signet*"])?)?;
        let counts = signet.signet(node.name(), &["status"])?["counts"].clone();
        let entries = |map: &&str| (format!("map {map}"), metrics.sum(ENTRIES, &[("map", map)]) as u64);
        let mut held: BTreeMap<String, u64> = MAPS.iter().map(entries).collect();
        held.insert("pins".to_owned(), u64::try_from(pins.lines().count())?);
        for what in ["workloads", "local_workloads", "certificates", "connections"] {
            let count = counts[what].as_u64().with_context(|| format!("no {what} in {counts}"))?;
            held.insert(what.to_owned(), count);
        }
        Ok(Self { held, size: Size::of(node, &metrics)? })
    }

    /// Waits until the engine of a node holds no more than this, and takes at most `more` than it took; returns how it is then.
    pub(crate) fn wait_for_return(&self, signet: &Release, node: &Node, more: Size) -> Result<Self> {
        wait::until(&format!("the engine of {} holds what it held", node.name()), WITHIN * 2, || {
            let now = Self::of(signet, node)?;
            let is_back =
                |(what, now): (&String, &u64)| self.held.get(what).is_some_and(|before| now <= before);
            ensure!(now.held.iter().all(is_back), "now {:?}, before {:?}", now.held, self.held);
            ensure!(now.size.is_within(self.size, more), "now {:?}, before {:?}", now.size, self.size);
            Ok(now)
        })
    }
}

/// KiB of a node's engine: no metric has it.
fn anonymous(node: &Node) -> Result<u64> {
    let engine = format!("^/usr/bin/signetd .*--node={} ", node.name());
    // A predecessor may still finish its connections.
    let pid = stdout(&node.exec(&["pgrep", "--newest", "--full", &engine])?)?;
    let status = stdout(&node.exec(&["cat", &format!("/proc/{}/status", pid.trim())])?)?;
    Ok(Memory::parse(&status)?.anonymous)
}

const ENTRIES: &str = "signet_bpf_map_entries";
const MAPS: [&str; 6] = ["direct", "flows", "permits", "ports", "services", "workloads"];
