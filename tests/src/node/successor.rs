//! The engine that stands by on a node, and how it becomes the node's engine.

use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::Node;
use crate::binaries;
use crate::process::Process;

impl Node {
    /// Starts another `signetd`, with the configuration of the first, that waits for the first to end.
    ///
    /// # Errors
    /// The first was never started, or this one cannot be.
    pub fn launch_successor(&self) -> Result<Process> {
        let stage = self.stage().display().to_string();
        self.launch(&["--stand-by", &stage], "successor.log")
    }

    /// Asks that one whether it could serve, as a startup probe does: `ok`, or what it lacks.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn ask_successor(&self) -> Result<String> {
        let stage = self.stage().display().to_string();
        let argv = [binaries::path("signetd")?.display().to_string(), format!("--ask={stage}")];
        let said = self.host.place("signetd")?.exec(&argv.each_ref().map(String::as_str))?;
        let lacks = String::from_utf8_lossy(&said.stderr).into_owned();
        Ok(if said.status.success() { "ok".to_owned() } else { lacks })
    }

    /// Asks the engine to end, lets its successor be the engine, and returns the one that ends.
    ///
    /// # Errors
    /// There is no engine.
    pub fn hand_over(&self, successor: Process) -> Result<Process> {
        let mut engine = self.engine.lock().expect("no holder panics");
        let predecessor = engine.replace(successor).context("the engine does not run")?;
        predecessor.signal(Signal::SIGTERM)?;
        Ok(predecessor)
    }

    fn stage(&self) -> PathBuf {
        self.host.directory().join("stage.sock")
    }
}
