//! What the process tells about itself, read at each scrape: file descriptors, memory, CPU time, the tokio runtimes.
//!
//! The names are those of the Prometheus client libraries and of ztunnel. What `/proc` does not give is left out of
//! that scrape: a metrics page with a gap is better than none.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::runtime::{Handle, RuntimeMetrics};

/// The process and its runtimes.
#[derive(Debug)]
pub(super) struct Process {
    runtimes: Vec<RuntimeMetrics>,
}

impl Process {
    pub(super) fn of<'a>(runtimes: impl Iterator<Item = &'a Handle>) -> Self {
        Self { runtimes: runtimes.map(Handle::metrics).collect() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        encode_process(&mut encoder)?;
        encode_runtimes(&mut encoder, &self.runtimes)
    }
}

fn encode_process(encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    if let Some(open) = open_fds() {
        gauge(encoder, "process_open_fds", "Number of open file descriptors", open)?;
    }
    if let Some(max) = max_fds() {
        gauge(encoder, "process_max_fds", "Maximum number of open file descriptors", max)?;
    }
    if let Some(bytes) = resident_bytes() {
        let name = "process_resident_memory";
        let metric =
            encoder.encode_descriptor(name, "Resident memory size", Some(&Unit::Bytes), MetricType::Gauge)?;
        ConstGauge::new(bytes).encode(metric)?;
    }
    if let Some(seconds) = cpu_seconds() {
        let name = "process_cpu";
        let help = "Total user and system CPU time spent";
        let metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        ConstCounter::new(seconds).encode(metric)?;
    }
    Ok(())
}

/// Of all of them together.
fn encode_runtimes(encoder: &mut DescriptorEncoder<'_>, runtimes: &[RuntimeMetrics]) -> Result<(), Error> {
    let sum = |of: fn(&RuntimeMetrics) -> usize| saturating(runtimes.iter().map(of).sum());
    let threads =
        || runtimes.iter().flat_map(|runtime| (0..runtime.num_workers()).map(move |w| (runtime, w)));
    let busy: f64 = threads().map(|(runtime, w)| runtime.worker_total_busy_duration(w).as_secs_f64()).sum();
    let parks: u64 = threads().map(|(runtime, w)| runtime.worker_park_count(w)).sum();
    let workers = sum(RuntimeMetrics::num_workers);
    let alive = sum(RuntimeMetrics::num_alive_tasks);
    let queued = sum(RuntimeMetrics::global_queue_depth);
    gauge(encoder, "tokio_num_workers", "Threads that run tasks", workers)?;
    gauge(encoder, "tokio_num_alive_tasks", "Tasks that have not ended", alive)?;
    gauge(encoder, "tokio_global_queue_depth", "Tasks that wait in a runtime's global queue", queued)?;
    counter(encoder, "tokio_worker_park_count", "How often workers had nothing to do", parks)?;
    let help = "Time that workers were busy, all together";
    counter(encoder, "tokio_worker_total_busy_duration_seconds", help, busy)
}

fn gauge<V>(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: V) -> Result<(), Error>
where
    V: EncodeGaugeValue,
{
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter<V>(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: V) -> Result<(), Error>
where
    V: EncodeCounterValue,
{
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn open_fds() -> Option<i64> {
    Some(saturating(std::fs::read_dir("/proc/self/fd").ok()?.count()))
}

/// The soft limit, proc_pid_limits(5): `Max open files  <soft>  <hard>  files`.
fn max_fds() -> Option<i64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `VmRSS`, in kB, proc_pid_status(5).
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<i64>().ok()?.saturating_mul(1024))
}

/// `utime` and `stime`, fields 14 and 15 of proc_pid_stat(5), in clock ticks.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the command in parentheses and may hold spaces: the third begins after the last ')'.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / CLOCK_TICKS_PER_SECOND)
}

fn saturating(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// `USER_HZ`, which Linux fixes at 100 on every architecture that Signet runs on (time(7)).
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;
