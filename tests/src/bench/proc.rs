//! What the kernel says a process has used: `/proc/<pid>/stat` and `/proc/<pid>/status`.

use std::fs;

use anyhow::{Context, Result};

/// CPU time of a process and of all its threads since its start, in seconds, in user and kernel mode.
///
/// # Errors
/// The process is gone.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = read(pid, "stat")?;
    ticks(&stat).map(|ticks| ticks as f64 / USER_HZ).with_context(|| format!("cannot read {stat}"))
}

/// Resident memory of a process, in MiB.
///
/// # Errors
/// The process is gone.
pub(super) fn resident_mib(pid: u32) -> Result<f64> {
    let status = read(pid, "status")?;
    resident_kib(&status).map(|kib| kib as f64 / 1024.0).with_context(|| format!("cannot read {status}"))
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// `utime + stime`, fields 14 and 15 of proc_pid_stat(5). The second field is a name in parentheses and may hold
/// spaces and parentheses itself.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// `VmRSS` of proc_pid_status(5), in KiB.
fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Ticks per second in `/proc`: fixed by the kernel's ABI (`include/asm-generic/param.h`), whatever the kernel's own HZ.
const USER_HZ: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_process_name() {
        let rest = "S 1 2 3 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 9";
        assert_eq!(ticks(&format!("42 (envoy) {rest}")), Some(300));
        assert_eq!(ticks(&format!("42 (a ) b (c) {rest}")), Some(300));
        assert_eq!(ticks("42 (envoy) S 1 2"), None);
    }

    #[test]
    fn resident_memory_is_one_line_of_many() {
        assert_eq!(resident_kib("VmPeak:\t  99 kB\nVmRSS:\t   17920 kB\nRssAnon:\t 1 kB\n"), Some(17920));
        assert_eq!(resident_kib("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_mib(std::process::id()).unwrap() > 0.0);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }
}
