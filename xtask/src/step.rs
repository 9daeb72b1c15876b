//! Runs one long command: a line with the elapsed time while it runs, its last words only where it fails.
//!
//! The whole output goes to `target/xtask-logs/<name>.log`. Commands whose output is the point (tests, cargo builds) do
//! not come through here: they inherit the terminal.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{iter, thread};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Runs `command` to its end under a title.
///
/// # Errors
/// It could not be started, or did not succeed; the end of its output is in the error.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<()> {
    let log = log_file(title)?;
    let started = Instant::now();
    let status = supervise(title, command, &log)?;
    finish_line(title, if status.success() { "done" } else { "FAILED" }, started.elapsed());
    if status.success() {
        return Ok(());
    }
    bail!("{title}: `{}` ended with {status}\n{}", shown(command), tail(&log));
}

/// Runs a command that writes to this terminal itself.
///
/// # Errors
/// It could not be started, or did not succeed.
pub(crate) fn inherit(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a program of the test kit with the flags that are set; its success is this command's.
///
/// # Errors
/// It could not be started.
pub(crate) fn hand_over(command: &mut Command, flags: &[(&str, bool)]) -> Result<ExitCode> {
    let set = flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag);
    let status = command.args(set).status().with_context(|| format!("cannot run `{}`", shown(command)))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A command's standard output as text; `None` where it cannot be run or does not succeed.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn log_file(title: &str) -> Result<PathBuf> {
    let folder = workspace::target().join("xtask-logs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let slug: String = title.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Ok(folder.join(format!("{slug}.log")))
}

fn supervise(title: &str, command: &mut Command, log: &Path) -> Result<ExitStatus> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = command
        .stdin(std::process::Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("{title}: cannot run `{}`", shown(command)))?;
    // The waiting thread sends once and ends; nobody else holds the sender.
    let (done, ended) = mpsc::channel();
    let started = Instant::now();
    thread::spawn(move || done.send(child.wait()));
    loop {
        match ended.recv_timeout(progress_period()) {
            Ok(status) => return status.with_context(|| format!("{title}: lost the child")),
            Err(_) => progress_line(title, started.elapsed()),
        }
    }
}

fn progress_period() -> Duration {
    if std::io::stderr().is_terminal() { Duration::from_secs(1) } else { Duration::from_secs(30) }
}

fn progress_line(title: &str, elapsed: Duration) {
    if std::io::stderr().is_terminal() {
        eprint!("\r  {title} … {}s", elapsed.as_secs());
        let _ = std::io::stderr().flush();
    } else {
        eprintln!("  {title} … {}s", elapsed.as_secs());
    }
}

fn finish_line(title: &str, word: &str, elapsed: Duration) {
    let clear = if std::io::stderr().is_terminal() { "\r" } else { "" };
    eprintln!("{clear}  {title}: {word} ({}s)", elapsed.as_secs());
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    format!("{}\n(all of it: {})", last.join("\n"), log.display())
}

/// Enough for a compiler's last error.
const TAIL_LINES: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_shows_its_last_words() {
        let error =
            run("a step that fails", Command::new("sh").args(["-c", "echo the reason; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("the reason") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn a_step_that_cannot_start_names_its_command() {
        let error = run("no such step", &mut Command::new("/no/such/program")).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
