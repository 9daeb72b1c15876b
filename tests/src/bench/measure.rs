//! What is measured: loads, the figures that come of each, and memory.

use std::time::Duration;

use anyhow::Result;

use super::contender::Contender;
use crate::load::{Direction, Exchanges, Flow};

/// One load.
#[derive(Clone, Copy, Debug)]
pub(super) enum Measure {
    /// Bytes as fast as they go.
    Stream { streams: usize, direction: Direction },
    /// Requests on connections that stay.
    Request { connections: usize },
    /// A connection for every request.
    Connect { concurrency: usize },
}

/// One figure.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) measure: String,
    pub(super) unit: &'static str,
    pub(super) value: f64,
}

impl Measure {
    /// Begins the names of its figures.
    pub(super) fn name(self) -> String {
        match self {
            Self::Stream { streams, direction: Direction::Upload } => format!("throughput_{streams}"),
            Self::Stream { streams, direction: Direction::Download } => {
                format!("throughput_{streams}_reversed")
            }
            Self::Request { connections } => format!("requests_{connections}"),
            Self::Connect { concurrency } => format!("connections_{concurrency}"),
        }
    }

    /// Puts its load on a contender for a window of `length`. The first figure is the one to show on the way.
    ///
    /// # Errors
    /// The load failed, or an engine is gone.
    pub(super) fn take(self, contender: &Contender<'_>, length: Duration) -> Result<Vec<Figure>> {
        let seconds = length.as_secs_f64().to_string();
        let cpu_before = contender.cpu_seconds()?;
        let (mut figures, cpu_units, cpu_unit) = match self {
            Self::Stream { streams, direction } => {
                let arguments = [streams.to_string(), direction.to_string(), seconds];
                let flow: Flow = contender.load("stream", &arguments)?;
                (self.of_flow(&flow), flow.bytes as f64 / 1e9, "s/GB")
            }
            Self::Request { connections } => {
                let exchanges: Exchanges = contender.load("request", &[connections.to_string(), seconds])?;
                (self.of_exchanges(&exchanges, "req/s"), exchanges.count as f64 / 1e4, "s/10k req")
            }
            Self::Connect { concurrency } => {
                let exchanges: Exchanges = contender.load("connect", &[concurrency.to_string(), seconds])?;
                (self.of_exchanges(&exchanges, "conn/s"), exchanges.count as f64 / 1e4, "s/10k conn")
            }
        };
        if contender.has_engines() {
            let cpu = contender.cpu_seconds()? - cpu_before;
            figures.push(self.figure("_cpu", cpu_unit, cpu / cpu_units));
        }
        Ok(figures)
    }

    fn of_flow(self, flow: &Flow) -> Vec<Figure> {
        vec![self.figure("", "Gbit/s", flow.bytes_per_second * 8.0 / 1e9)]
    }

    fn of_exchanges(self, exchanges: &Exchanges, unit: &'static str) -> Vec<Figure> {
        vec![
            self.figure("", unit, exchanges.per_second),
            self.figure("_p50", "µs", exchanges.p50_us),
            self.figure("_p99", "µs", exchanges.p99_us),
        ]
    }

    fn figure(self, suffix: &str, unit: &'static str, value: f64) -> Figure {
        Figure { measure: self.name() + suffix, unit, value }
    }
}

/// Memory of a contender's engines before any load, and with [`IDLE`] connections that do nothing.
///
/// # Errors
/// The connections could not be opened, or an engine is gone.
pub(super) fn memory(contender: &Contender<'_>) -> Result<Vec<Figure>> {
    let fresh = contender.resident_mib()?;
    let load = contender.spawn("idle", &IDLE.to_string())?;
    load.wait_for_line(&["open"], IDLE_WITHIN)?;
    let figure = |measure: &str, unit, value| Figure { measure: measure.to_owned(), unit, value };
    let idle = contender.resident_mib()?;
    Ok(vec![
        figure("memory_fresh", "MiB", fresh),
        figure("memory_1000_idle", "MiB", idle),
        figure("memory_per_idle", "KiB", (idle - fresh) * 1024.0 / IDLE as f64),
    ])
}

/// Every load, in the order in which a round runs them.
pub(super) const MEASURES: [Measure; 9] = [
    Measure::Stream { streams: 1, direction: Direction::Upload },
    Measure::Stream { streams: 4, direction: Direction::Upload },
    Measure::Stream { streams: 1, direction: Direction::Download },
    Measure::Stream { streams: 4, direction: Direction::Download },
    Measure::Request { connections: 1 },
    Measure::Request { connections: 16 },
    Measure::Request { connections: 64 },
    Measure::Connect { concurrency: 1 },
    Measure::Connect { concurrency: 16 },
];

/// Idle connections, all at once.
const IDLE: usize = 1_000;
/// One after the other, through a handshake each.
const IDLE_WITHIN: Duration = Duration::from_secs(60);
