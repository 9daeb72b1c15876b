//! The probe, run inside a pod.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Report;
use crate::binaries;
use crate::pod::Pod;
use crate::process::Process;

impl Pod {
    /// Starts the server on a port and waits until it listens.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve(&self, port: u16) -> Result<Process> {
        let process = self.probe(&format!("serve-{port}"), &["serve", &port.to_string()])?;
        process.wait_for_line(&["listening"], STARTED_WITHIN)?;
        Ok(process)
    }

    /// Starts a server that resets each connection when its client has half-closed, and waits until it listens.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve_resets(&self, port: u16) -> Result<Process> {
        let process = self.probe(&format!("reset-{port}"), &["serve", "--reset", &port.to_string()])?;
        process.wait_for_line(&["listening"], STARTED_WITHIN)?;
        Ok(process)
    }

    /// Opens a connection to `to`, and resets it after the first echo.
    ///
    /// # Errors
    /// It could not be established.
    pub fn abort(&self, to: &str) -> Result<()> {
        let process = self.probe("abort", &["abort", to])?;
        process.wait_for_line(&["reset"], STARTED_WITHIN).map(drop)
    }

    /// Connects to `to` (`address:port`) and reports; `options` are the probe's (`--kind`, `--from`, `--device`, `--text`).
    ///
    /// # Errors
    /// The probe could not run. A connection that is refused is a report.
    pub fn dial(&self, to: &str, options: &[&str]) -> Result<Report> {
        let probe = binaries::path("signet-probe")?;
        let argv = [&[probe.to_str().context("a path in UTF-8")?, "dial", to], options].concat();
        let text = self.run(&argv)?;
        serde_json::from_str(&text).with_context(|| format!("the probe printed {text:?}"))
    }

    /// Keeps a connection to `to` busy, and returns when its first bytes have come back. It prints `ended: …` when the
    /// connection breaks.
    ///
    /// # Errors
    /// It could not be established.
    pub fn hold(&self, to: &str) -> Result<Process> {
        let process = self.probe("hold", &["hold", to])?;
        process.wait_for_line(&["established"], STARTED_WITHIN)?;
        Ok(process)
    }

    /// Opens `count` silent connections to `to`, and returns when the server has greeted on all of them.
    ///
    /// # Errors
    /// One could not be established.
    pub fn idle(&self, to: &str, count: usize) -> Result<Process> {
        let process = self.probe("idle", &["idle", to, &count.to_string()])?;
        process.wait_for_line(&[&format!("open {count}")], OPENED_WITHIN)?;
        Ok(process)
    }

    fn probe(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let probe = binaries::path("signet-probe")?;
        self.spawn(name, &[&[probe.to_str().context("a path in UTF-8")?], arguments].concat())
    }
}

const STARTED_WITHIN: Duration = Duration::from_secs(20);
/// Ten thousand handshakes' worth, on a busy machine.
const OPENED_WITHIN: Duration = Duration::from_secs(300);
