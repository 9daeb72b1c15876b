//! What processes hold of the machine's memory: `/proc/<pid>/status` (proc_pid_status(5)).
//!
//! Resident memory counts a program's own pages too, which come and go; anonymous memory is what grows with work. What the
//! kernel holds for their sockets is in neither.

use std::fs;
use std::iter::Sum;

use anyhow::{Context, Result};

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// `VmRSS`.
    pub resident: u64,
    /// `RssAnon`.
    pub anonymous: u64,
}

impl Memory {
    /// Of a process of this machine.
    ///
    /// # Errors
    /// There is none of that id.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        Self::parse(&fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?)
    }

    /// From the text of a process' status.
    ///
    /// # Errors
    /// It lacks a figure.
    pub fn parse(status: &str) -> Result<Self> {
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
            kib.with_context(|| format!("no {name} in:\n{status}"))
        };
        Ok(Self { resident: kib("VmRSS:")?, anonymous: kib("RssAnon:")? })
    }
}

impl Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(each: I) -> Self {
        each.fold(Self::default(), |sum, one| Self {
            resident: sum.resident + one.resident,
            anonymous: sum.anonymous + one.anonymous,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_two_lines_of_many() {
        let status = "VmPeak:\t  99 kB\nVmRSS:\t   17920 kB\nRssAnon:\t 1024 kB\nRssFile:\t 9 kB\n";
        assert_eq!(Memory::parse(status).unwrap(), Memory { resident: 17920, anonymous: 1024 });
        let error = Memory::parse("Name:\tkthreadd\n").unwrap_err();
        assert!(error.to_string().contains("no VmRSS:"), "{error}");
    }
}
