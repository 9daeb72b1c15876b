//! One process of the cluster: started in its machine's namespaces and in a cgroup of its own, stopped and started again
//! by tests, and named with the end of its log where something waits for it in vain.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::layout::{Layout, NODES};
use crate::process::Process;
use crate::{live, wait};

/// Where commands of one machine run: the namespaces to enter, and the cgroup that holds its components.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    /// Arguments of nsenter; none to stay where this process is.
    pub(crate) enter: Vec<String>,
    /// Each component has a cgroup below it.
    pub(crate) cgroup: PathBuf,
}

impl Spot {
    /// A command that enters the namespaces and the cgroup and then becomes `argv`.
    ///
    /// # Errors
    /// The cgroup cannot be made.
    pub(crate) fn command<S: AsRef<str>>(&self, unit: &str, argv: &[S]) -> Result<Command> {
        live::proceed();
        let cgroup = self.cgroup.join(unit);
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make cgroup {}", cgroup.display()))?;
        let mut command = Command::new("nsenter");
        command
            .args(&self.enter)
            .args(["--", "sh", "-c", "echo 0 >\"$0\" && exec \"$@\""])
            .arg(cgroup.join("cgroup.procs"))
            .args(argv.iter().map(AsRef::as_ref))
            .env("PATH", PATH)
            .stdin(Stdio::null());
        Ok(command)
    }
}

/// A process of the cluster.
#[derive(Debug)]
pub struct Component {
    name: String,
    spot: Spot,
    argv: Vec<String>,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Component {
    /// Starts it. Its log and its cgroup are named after it.
    pub(crate) fn launch(layout: &Layout, spot: &Spot, name: &str, argv: Vec<String>) -> Result<Self> {
        let process = Mutex::new(None);
        let component =
            Self { name: name.to_owned(), spot: spot.clone(), argv, log: layout.log(name), process };
        component.start()?;
        Ok(component)
    }

    /// Its name: `kube-apiserver`, `n1-kubelet`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cgroup's name, which is that on any node: `kubelet`.
    fn unit(&self) -> &str {
        let of_node = |node: &&str| self.name.strip_prefix(*node)?.strip_prefix('-');
        NODES.iter().find_map(of_node).unwrap_or(&self.name)
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process id.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        let process = self.process.lock().expect("no holder panics");
        process.as_ref().map(Process::pid).with_context(|| format!("{} does not run", self.name))
    }

    /// Starts it, again where it was stopped or killed.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self) -> Result<()> {
        // One that still runs would hold the ports.
        self.process.lock().expect("no holder panics").take();
        let mut command = self.spot.command(self.unit(), &self.argv)?;
        // Not with the terminal's Ctrl-C: a cluster that is kept outlives its maker.
        command.process_group(0);
        let process = Process::start(command, &self.log).with_context(|| self.name.clone())?;
        *self.process.lock().expect("no holder panics") = Some(process);
        Ok(())
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    /// It does not run, or did not end.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// Kills it.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        let process = self.process.lock().expect("no holder panics").take();
        let process = process.with_context(|| format!("{} does not run", self.name))?;
        process.stop(signal, ENDED_WITHIN).map(drop).with_context(|| self.name.clone())
    }

    /// Waits until its log holds a line with all `parts`.
    ///
    /// # Errors
    /// None came within `deadline`, or it has ended; the text has the end of its log.
    pub fn wait_for_line(&self, parts: &[&str], deadline: Duration) -> Result<String> {
        self.wait_until(&format!("says {parts:?}"), deadline, || {
            let log = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
            let line = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            line.map(str::to_owned).context("no such line in its log")
        })
    }

    /// Waits for a condition as long as it lives; otherwise says why it ended.
    pub(crate) fn wait_until<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut ended = None;
        let found = wait::until(&format!("{} {what}", self.name), deadline, || match self.check_alive() {
            Ok(()) => condition().map(Some),
            Err(error) => {
                ended = Some(error);
                Ok(None)
            }
        });
        match found.with_context(|| self.log_tail())? {
            Some(value) => Ok(value),
            None => Err(ended.context("it ended or it holds")?),
        }
    }

    fn check_alive(&self) -> Result<()> {
        let mut process = self.process.lock().expect("no holder panics");
        process.as_mut().with_context(|| format!("{} does not run", self.name))?.check_alive()
    }

    /// The end of its log, for an error's text.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let log = log.unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        format!("the log of {} ends with:\n{tail}\n", self.name)
    }
}

/// containerd looks for runc, and kube-proxy for iptables, where an ordinary user's PATH does not lead.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// An API server whose etcd is gone takes a minute.
const ENDED_WITHIN: Duration = Duration::from_secs(90);
const TAIL_LINES: usize = 12;
