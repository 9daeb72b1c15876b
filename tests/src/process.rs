//! Processes as guards, started in a network namespace and a cgroup, with their output kept in a file.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{live, wait};

/// Where a process runs: a network namespace and a cgroup.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace's file.
    pub netns: PathBuf,
    /// The cgroup's directory.
    pub cgroup: PathBuf,
}

impl Place {
    /// A command that enters the namespace first and the cgroup second, and then becomes `argv`. In that order, because
    /// the engine takes a new cgroup's network namespace from its first process.
    #[must_use]
    pub fn command(&self, argv: &[&str]) -> Command {
        live::proceed();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns.display()))
            .args(["sh", "-c", "echo 0 >\"$0\" && exec \"$@\""])
            .arg(self.cgroup.join("cgroup.procs"))
            .args(argv)
            // An error's text says what happened; a panic keeps its backtrace.
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(Stdio::null());
        command
    }

    /// Runs `argv` to its end and returns what it wrote.
    ///
    /// # Errors
    /// It could not be started, or did not end within [`EXEC_WITHIN`].
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        let line = argv.join(" ");
        let limit = EXEC_WITHIN.as_secs().to_string();
        let limited = [&["timeout", "--signal=KILL", &limit], argv].concat();
        let output = self.command(&limited).output().with_context(|| format!("cannot run {line}"))?;
        ensure!(output.status.signal().is_none(), "not done after {limit}s: {line}");
        Ok(output)
    }

    /// Starts `argv` and keeps it running; its output goes to `log`.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, argv: &[&str], log: &Path) -> Result<Process> {
        Process::start(self.command(argv), log)
    }
}

/// A running process; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command whose output is appended to `log`.
    ///
    /// # Errors
    /// The log cannot be written, or the command cannot be started.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, and what predecessors with the same log file have.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until a line of its log holds every one of `parts`, and returns the first such line.
    ///
    /// # Errors
    /// No such line came within `deadline`.
    pub fn wait_for_line(&self, parts: &[&str], deadline: Duration) -> Result<String> {
        wait::until(&format!("{} says {parts:?}", self.log.display()), deadline, || {
            let log = self.log()?;
            let line = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            line.map(str::to_owned).with_context(|| format!("its log ends with: {}", tail(&log)))
        })
    }

    /// Fails where the process has ended, with the end of its log.
    ///
    /// # Errors
    /// It has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended: {status}; its log ends with: {}", self.log.display(), tail(&self.log()?));
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).context("a pid")?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {pid}"))
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// It was still there after `deadline`; it is killed then.
    pub fn stop(mut self, signal: Signal, deadline: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(deadline)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It was still there after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait::until(&format!("{} has ended", self.log.display()), deadline, || {
            self.child.try_wait()?.context("it still runs")
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it has ended and been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text a program wrote to its standard output, without the final newline.
///
/// # Errors
/// It failed; carries its status and what it wrote.
pub fn stdout(output: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {text}{}", output.status, said.trim_end());
    Ok(text)
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// No single command of a test runs longer: `timeout --signal=KILL` ends it, and itself with it.
pub const EXEC_WITHIN: Duration = Duration::from_secs(60);
