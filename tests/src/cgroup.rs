//! cgroup2 directories as guards: whatever still runs in one is killed when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{live, wait};

/// A cgroup; dropping it kills its processes and removes it with all below it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup, by its path below the cgroup2 mount.
    ///
    /// # Errors
    /// There is no cgroup2 mount, or this process may not write to it.
    pub fn add(relative: impl AsRef<Path>) -> Result<Self> {
        Self::make(mount()?.join(relative))
    }

    /// Makes a cgroup below this one. Its parent's guard removes it too, so it may be forgotten.
    ///
    /// # Errors
    /// This process may not write to it.
    pub fn child(&self, relative: impl AsRef<Path>) -> Result<Self> {
        Self::make(self.path.join(relative))
    }

    fn make(path: PathBuf) -> Result<Self> {
        live::proceed();
        fs::create_dir_all(&path).with_context(|| format!("cannot make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path below the cgroup2 mount: the form of the annotation `signet.dev/cgroup`.
    ///
    /// # Errors
    /// There is no cgroup2 mount any more.
    pub fn relative(&self) -> Result<String> {
        let mount = mount()?;
        let relative = self.path.strip_prefix(&mount).context("the cgroup2 mount has moved")?;
        Ok(relative.display().to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("testkit: {error:#}");
        }
    }
}

/// The cgroup2 mount point, from `/proc/mounts`: not the same on every machine.
///
/// # Errors
/// There is none.
pub fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' '))
        .find_map(|mut fields| Some((fields.nth(1)?, fields.next()?)).filter(|(_, kind)| *kind == "cgroup2"))
        .map(|(path, _)| PathBuf::from(path))
        .context("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Processor time of everything that has run in a cgroup since it was made, in user and kernel mode, in seconds. As fine as
/// the scheduler's own clock, and processes and threads that have ended count too.
///
/// # Errors
/// It is gone.
pub fn cpu_seconds(path: &Path) -> Result<f64> {
    let path = path.join("cpu.stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    let microseconds: u64 = usage
        .and_then(|usage| usage.parse().ok())
        .with_context(|| format!("{} says {text}", path.display()))?;
    Ok(Duration::from_micros(microseconds).as_secs_f64())
}

/// The processes in a cgroup, without those below it.
///
/// # Errors
/// It is gone.
pub fn processes(path: &Path) -> Result<Vec<u32>> {
    let path = path.join("cgroup.procs");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|pid| pid.parse().with_context(|| format!("{pid} is no process id"))).collect()
}

/// Kills everything below a cgroup and removes it, children first. One that is gone is fine.
///
/// # Errors
/// A process survived the kill, or a directory could not be removed.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // Again and again: a process that its killed parent had just started enters after the first.
    wait::until("the killed processes are gone", KILLED_WITHIN, || kill(path).and_then(|()| empty(path)))?;
    remove_tree(path)
}

fn kill(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("cannot kill cgroup {}", path.display()))
}

fn empty(path: &Path) -> Result<()> {
    let events = fs::read_to_string(path.join("cgroup.events"))?;
    ensure!(events.contains("populated 0"), "cgroup {} still has processes", path.display());
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("cannot remove cgroup {}", path.display()))
}

/// A killed process that holds much memory takes its time.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
