//! What the figures were measured on, for whoever reads them later.

use std::fmt::{self, Display, Formatter};
use std::fs;

use time::OffsetDateTime;

/// This machine and this moment.
pub(super) struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    load: String,
    nice: i32,
}

impl Machine {
    pub(super) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let now = OffsetDateTime::now_utc();
        Self {
            date: format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute()),
            cpu: cpu_model(&read("/proc/cpuinfo")).unwrap_or("of an unknown model").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory_gib(&read("/proc/meminfo")).unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            nice: nice().unwrap_or_default(),
        }
    }
}

impl Display for Machine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { date, cpu, cores, memory_gib, kernel, load, nice } = self;
        write!(
            f,
            "{date}; {cores} cores ({cpu}), {memory_gib:.0} GiB, Linux {kernel}; load average {load} at the start, \
             processes of the benchmark at nice {nice}"
        )
    }
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    // x86 says so; elsewhere there may be a part number only.
    let line = cpuinfo.lines().find(|line| line.starts_with("model name") || line.starts_with("CPU part"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

fn memory_gib(meminfo: &str) -> Option<f64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u32 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(f64::from(kib) / 1024.0 / 1024.0)
}

/// The nice value of this process.
pub(super) fn nice() -> Option<i32> {
    nice_of(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Field 19 of proc_pid_stat(5); the second is a name in parentheses that may hold anything.
fn nice_of(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(16)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_from_proc() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: EPYC 9\n"), Some("EPYC 9"));
        assert_eq!(memory_gib("MemTotal:       2097152 kB\nMemFree: 1 kB\n"), Some(2.0));
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 0 0 20 -10 1 0 100";
        assert_eq!(nice_of(stat), Some(-10));
    }
}
