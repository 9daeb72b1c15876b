//! A contender: where its load starts, where it goes, and which processes do the work in between.

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use super::proc;
use crate::binaries;
use crate::pod::Pod;
use crate::process::Process;

/// One way from a client to a server.
pub(super) struct Contender<'a> {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    client: &'a Pod,
    to: String,
    /// Process ids; none where nothing is in between.
    engines: Vec<u32>,
}

impl<'a> Contender<'a> {
    pub(super) fn new(
        name: &'static str,
        path: &'static str,
        client: &'a Pod,
        to: String,
        engines: &[u32],
    ) -> Self {
        Self { name, path, client, to, engines: engines.to_vec() }
    }

    /// Runs one load in the client's pod and returns what it printed.
    ///
    /// # Errors
    /// The load failed; the text says how.
    pub(super) fn load<T: DeserializeOwned>(&self, what: &str, arguments: &[String]) -> Result<T> {
        let binary = binaries::path("signet-load")?;
        let mut argv = vec![binary.to_str().context("a path in UTF-8")?, what, &self.to];
        argv.extend(arguments.iter().map(String::as_str));
        let text = self.client.run(&argv)?;
        serde_json::from_str(&text).with_context(|| format!("signet-load printed {text}"))
    }

    /// Starts a load in the client's pod that stays until it is dropped.
    ///
    /// # Errors
    /// It could not be started.
    pub(super) fn spawn(&self, what: &str, argument: &str) -> Result<Process> {
        let binary = binaries::path("signet-load")?;
        self.client.spawn(what, &[binary.to_str().context("a path in UTF-8")?, what, &self.to, argument])
    }

    /// Something is in between.
    pub(super) fn has_engines(&self) -> bool {
        !self.engines.is_empty()
    }

    /// CPU time of all its engines together since their start, in seconds.
    ///
    /// # Errors
    /// One of them has ended.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        self.engines.iter().map(|pid| proc::cpu_seconds(*pid)).sum()
    }

    /// Resident memory of the largest of its engines, in MiB.
    ///
    /// # Errors
    /// One of them has ended.
    pub(super) fn resident_mib(&self) -> Result<f64> {
        let mut sizes = self.engines.iter().map(|pid| proc::resident_mib(*pid));
        sizes.try_fold(0.0, |most, size| Ok(f64::max(most, size?)))
    }
}
