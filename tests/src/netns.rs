//! Network namespaces as guards, configured by `ip -batch`, entered by a thread of this process.
//!
//! Never through `ip netns exec`: it mounts a fresh `/sys` and so hides the cgroups. Links are made inside the
//! namespaces, so nothing of a testbed ever appears in the machine's own namespace.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::live;

/// A named network namespace; dropping it deletes the name, and with the last process in it the namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes the namespace and brings its loopback up.
    ///
    /// # Errors
    /// `ip` refused: not root, or the name exists.
    pub fn add(name: &str) -> Result<Self> {
        live::proceed();
        ip(None, &format!("netns add {name}"))?;
        let netns = Self { name: name.to_owned() };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, for `nsenter --net=` and `setns`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs `ip` commands inside, one a line.
    ///
    /// # Errors
    /// The command that failed, and what `ip` said.
    pub fn ip(&self, batch: &str) -> Result<()> {
        ip(Some(&self.name), batch)
    }

    /// Runs `work` on a thread that is inside the namespace.
    ///
    /// # Errors
    /// The namespace is gone, or may not be entered.
    ///
    /// # Panics
    /// Where `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        enter(&self.path(), work)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Gone already where the testbed was taken down first.
        if !self.path().exists() {
            return;
        }
        if let Err(error) = ip(None, &format!("netns del {}", self.name)) {
            eprintln!("testkit: {error:#}");
        }
    }
}

/// As [`Netns::enter`], by the namespace's file.
///
/// # Errors
/// The namespace is gone, or may not be entered.
///
/// # Panics
/// Where `work` does.
pub fn enter<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| -> Result<T> {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter {}", netns.display()))?;
            Ok(work())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` commands, one a line, in a namespace by its name or in this process's own.
///
/// # Errors
/// The command that failed, and what `ip` said.
pub fn ip(netns: Option<&str>, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = netns {
        command.args(["-n", name]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip: install iproute2")?;
    child.stdin.take().expect("piped above").write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip in {netns:?} failed: {}\n{batch}", said.trim());
    Ok(())
}

/// Where `ip netns` keeps the names.
pub(crate) const DIRECTORY: &str = "/run/netns";
