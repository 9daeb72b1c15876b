//! A contender: where its load starts, where it goes, and which engines do the work in between.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use super::memory;
use super::stage::ACROSS;
use crate::memory::Memory;
use crate::pod::Pod;
use crate::process::Process;
use crate::{binaries, cgroup, wait};

/// One way from a client to a server.
pub(super) struct Contender<'a> {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) client: &'a Pod,
    pub(super) to: String,
    /// Their cgroups, the client's end first; none where nothing is in between.
    pub(super) engines: Vec<PathBuf>,
    /// Where its server's end takes handshakes, where that is measured.
    pub(super) handshake: Option<Handshake<'a>>,
}

/// Who knocks at the server's end of a contender.
pub(super) struct Handshake<'a> {
    /// A pod that nothing is in front of.
    pub(super) from: &'a Pod,
    pub(super) to: String,
    /// A file as `signet-load` reads it.
    pub(super) svid: PathBuf,
}

impl Contender<'_> {
    /// Runs one load in the client's pod and returns what it printed.
    ///
    /// # Errors
    /// The load failed; the text says how.
    pub(super) fn load<T: DeserializeOwned>(
        &self,
        what: &str,
        arguments: &[String],
        window: Duration,
    ) -> Result<T> {
        run(self.client, what, &self.to, arguments, &self.engines, window)
    }

    /// Starts idle connections that stay until what is returned is dropped.
    ///
    /// # Errors
    /// They could not be opened.
    pub(super) fn hold(&self, count: usize) -> Result<Process> {
        let binary = binaries::path("signet-load")?;
        let count = count.to_string();
        let argv = [binary.to_str().context("a path in UTF-8")?, "idle", &self.to, &count];
        let mut load = self.client.spawn("idle", &argv)?;
        wait::until(&format!("{count} connections are open"), OPEN_WITHIN, || {
            load.check_alive()?;
            ensure!(load.log()?.contains("open"), "some are not yet");
            Ok(())
        })?;
        Ok(load)
    }

    /// Something is in between.
    pub(super) fn has_engines(&self) -> bool {
        !self.engines.is_empty()
    }

    /// Its engines are its own and nobody else's: what they hold is told of it.
    pub(super) fn has_memory(&self) -> bool {
        self.has_engines() && self.path == ACROSS
    }

    /// Memory of each of its engines, the client's end first.
    ///
    /// # Errors
    /// One of them has ended.
    pub(super) fn memory(&self) -> Result<Vec<Memory>> {
        self.engines.iter().map(|engine| memory::of(engine)).collect()
    }

    /// Waits until the engines have cleaned up, or for long enough: the next contender's load shall have the machine.
    pub(super) fn wait_until_quiet(&self) {
        let cpu = || self.engines.iter().map(|engine| cgroup::cpu_seconds(engine)).sum::<Result<f64>>();
        let mut before = f64::NEG_INFINITY;
        let quiet = wait::until("the engines are quiet", QUIET_WITHIN, || {
            let now = cpu()?;
            let used = now - std::mem::replace(&mut before, now);
            ensure!(used < QUIET_SECONDS, "they used {used} s");
            Ok(())
        });
        // One that never is quiet disturbs the others: that is told by their spread, not by a failure here.
        let _ = quiet;
    }
}

impl Handshake<'_> {
    /// Runs handshakes, and nothing else, against the engine in `server`.
    ///
    /// # Errors
    /// They failed; the text says how.
    pub(super) fn load<T: DeserializeOwned>(
        &self,
        concurrency: usize,
        server: &Path,
        window: Duration,
    ) -> Result<T> {
        let svid = self.svid.to_str().context("a path in UTF-8")?.to_owned();
        let arguments = [concurrency.to_string(), svid];
        run(self.from, "handshake", &self.to, &arguments, &[server.to_owned()], window)
    }
}

fn run<T: DeserializeOwned>(
    from: &Pod,
    what: &str,
    to: &str,
    arguments: &[String],
    engines: &[PathBuf],
    window: Duration,
) -> Result<T> {
    let binary = binaries::path("signet-load")?;
    let seconds = window.as_secs_f64().to_string();
    let mut argv = vec![binary.to_str().context("a path in UTF-8")?, what, to];
    argv.extend(arguments.iter().map(String::as_str));
    argv.extend(["--seconds", &seconds]);
    for engine in engines {
        argv.extend(["--engine", engine.to_str().context("a path in UTF-8")?]);
    }
    let text = from.run(&argv)?;
    serde_json::from_str(&text).with_context(|| format!("signet-load printed {text}"))
}

/// Ten thousand, through a handshake each, on a machine that does other things too.
const OPEN_WITHIN: Duration = Duration::from_secs(120);
const QUIET_WITHIN: Duration = Duration::from_secs(20);
/// Of the time between two looks ([`wait::until`]): a few per cent of one core.
const QUIET_SECONDS: f64 = 0.001;
