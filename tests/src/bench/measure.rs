//! What is measured in each round: loads, and the figures that come of each.

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
    /// Full handshakes at the server's end.
    Handshake { concurrency: usize },
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
            Self::Handshake { concurrency } => format!("handshakes_{concurrency}"),
        }
    }

    /// A contender has what it is about.
    pub(super) fn is_for(self, contender: &Contender<'_>) -> bool {
        !matches!(self, Self::Handshake { .. }) || contender.handshake.is_some()
    }

    /// Puts its load on a contender for a window of `length`. The first figure is the one to show on the way.
    ///
    /// # Errors
    /// The load failed, or an engine is gone.
    pub(super) fn take(self, contender: &Contender<'_>, length: Duration) -> Result<Vec<Figure>> {
        let mut figures = match self {
            Self::Stream { streams, direction } => {
                let arguments = [streams.to_string(), direction.to_string()];
                self.of_flow(&contender.load("stream", &arguments, length)?)
            }
            Self::Request { connections } => {
                let exchanges = contender.load("request", &[connections.to_string()], length)?;
                of_exchanges(&self.name(), REQUESTS, &exchanges)
            }
            Self::Connect { concurrency } => {
                let exchanges = contender.load("connect", &[concurrency.to_string()], length)?;
                of_exchanges(&self.name(), CONNECTIONS, &exchanges)
            }
            Self::Handshake { concurrency } => match (&contender.handshake, contender.engines.last()) {
                (Some(handshake), Some(server)) => {
                    of_exchanges(&self.name(), OTHERS, &handshake.load(concurrency, server, length)?)
                }
                _ => Vec::new(),
            },
        };
        if !contender.has_engines() {
            figures.retain(|figure| !figure.measure.ends_with(CPU));
        }
        Ok(figures)
    }

    fn of_flow(self, flow: &Flow) -> Vec<Figure> {
        let gigabytes = flow.bytes as f64 / 1e9;
        vec![
            Figure { measure: self.name(), unit: "Gbit/s", value: gigabytes * 8.0 / flow.seconds },
            Figure { measure: self.name() + CPU, unit: "s/GB", value: flow.cpu_seconds / gigabytes },
        ]
    }
}

/// Rate, latencies and cost of what `exchanges` counted.
pub(super) fn of_exchanges(name: &str, [rate, cost]: Units, exchanges: &Exchanges) -> Vec<Figure> {
    let count = exchanges.count as f64;
    let figure = |suffix: &str, unit, value| Figure { measure: format!("{name}{suffix}"), unit, value };
    vec![
        figure("", rate, count / exchanges.seconds),
        figure("_p50", "µs", exchanges.p50_us),
        figure("_p99", "µs", exchanges.p99_us),
        figure("_p999", "µs", exchanges.p999_us),
        figure(CPU, cost, exchanges.cpu_seconds / count * 1e4),
    ]
}

/// Of a rate, and of processor time for ten thousand.
type Units = [&'static str; 2];
const REQUESTS: Units = ["req/s", "s/10k req"];
const CONNECTIONS: Units = ["conn/s", "s/10k conn"];
/// Handshakes, SVIDs.
pub(super) const OTHERS: Units = ["1/s", "s/10k"];

/// Every load, in the order in which a round runs them.
pub(super) const MEASURES: [Measure; 10] = [
    Measure::Stream { streams: 1, direction: Direction::Upload },
    Measure::Stream { streams: 4, direction: Direction::Upload },
    Measure::Stream { streams: 1, direction: Direction::Download },
    Measure::Stream { streams: 4, direction: Direction::Download },
    Measure::Request { connections: 1 },
    Measure::Request { connections: 16 },
    Measure::Request { connections: 64 },
    Measure::Connect { concurrency: 1 },
    Measure::Connect { concurrency: 16 },
    Measure::Handshake { concurrency: 16 },
];

/// Ends the name of what the engines' processor time for it is.
const CPU: &str = "_cpu";
