//! What crosses a node's link, recorded on the node itself.
//!
//! As [`crate::capture`] for a testbed: the end of a recording is marked by a packet of our own, so that what came before
//! it is known to be in the file, and a recording that lost something is a failure.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::network::CONTROL_IP;
use super::{Cluster, Node};
use crate::capture::Packets;
use crate::process::Process;
use crate::wait;

/// A running recording; dropping it ends it.
#[derive(Debug)]
pub struct Wire<'c> {
    node: &'c Node,
    process: Process,
    file: PathBuf,
    mark: String,
}

impl<'c> Wire<'c> {
    /// Records the link of a node, from when this returns.
    ///
    /// # Errors
    /// tcpdump refused.
    pub fn record(cluster: &'c Cluster, node: &'c Node) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let mark = format!("mark-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let file = cluster.layout.directory().join(format!("{mark}.pcap"));
        let log = file.with_extension("tcpdump.log");
        let path = file.to_str().context("a path in UTF-8")?;
        let argv = ["tcpdump", "-i", "eth0", "-U", "-n", "-s", "0", "-B", "65536", "-Z", "root"];
        let argv = [&argv[..], &["--immediate-mode", "-w", path]].concat();
        let process = Process::start(node.command(&argv)?, &log)?;
        process.wait_for_line(&["listening on"], WITHIN)?;
        Ok(Self { node, process, file, mark })
    }

    /// Ends it and reads what it saw.
    ///
    /// # Errors
    /// It missed something.
    pub fn stop(self) -> Result<Packets> {
        // A question to CoreDNS carries the mark as a label.
        wait::until("the recording has caught up", WITHIN, || {
            self.node.exec(&["busybox", "nslookup", &format!("{}.invalid", self.mark), CONTROL_IP])?;
            let seen = fs::read(&self.file)?;
            let mark = self.mark.as_bytes();
            ensure!(seen.windows(mark.len()).any(|window| window == mark), "its last packet is not there");
            Ok(())
        })?;
        self.process.signal(Signal::SIGINT)?;
        let dropped = self.process.wait_for_line(&["dropped by kernel"], WITHIN)?;
        ensure!(dropped.starts_with("0 "), "the recording is not whole: {dropped}");
        Packets::parse(&fs::read(&self.file)?)
    }
}

const WITHIN: Duration = Duration::from_secs(30);
