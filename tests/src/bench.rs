//! What mTLS between two nodes costs: the same load directly and through Signet, on the same two pods.
//!
//! Client, server and both engines share this machine's cores and a link that is memory, so the figures tell one path from
//! the other and say nothing of a network. The direct run comes first, before there are engines: nothing is captured.

pub mod load;

use std::fmt::Write as _;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::need::Need;
use crate::pod::{Pod, PodSpec};
use crate::process::Process;
use crate::wait;

/// How to run it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Two seconds for each figure instead of ten.
    pub quick: bool,
    /// One JSON object instead of a table.
    pub json: bool,
}

/// One figure, both ways.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    what: &'static str,
    unit: &'static str,
    direct: f64,
    signet: f64,
}

/// One way's figures, in the order of [`TITLES`].
type Figures = [f64; TITLES.len()];

/// Measures and prints.
///
/// # Errors
/// Something is missing, or a load failed: then there is no figure.
pub fn run(options: Options) -> Result<()> {
    if let Some(missing) = NEEDS.iter().find_map(|need| need.unmet()) {
        bail!("{missing}");
    }
    let rows = measure(if options.quick { 2 } else { 10 })?;
    if options.json {
        println!("{:#}", json!({"cores": cores(), "kernel": kernel(), "rows": rows}));
    } else {
        print!("{}", table(&rows));
        println!("\n{} cores carry client, server and both engines, Linux {}", cores(), kernel());
    }
    Ok(())
}

fn measure(seconds: u64) -> Result<Vec<Row>> {
    let stage = Stage::set()?;
    eprintln!("directly ...");
    let direct = stage.figures(seconds)?;
    stage.start_engines()?;
    eprintln!("through Signet ...");
    let signet = stage.figures(seconds)?;
    let row = |((what, unit), (direct, signet))| Row { what, unit, direct, signet };
    Ok(TITLES.into_iter().zip(direct.into_iter().zip(signet)).map(row).collect())
}

/// Two nodes with a pod each. Fields end in this order: servers, pods, the mesh.
struct Stage {
    _servers: [Process; 2],
    client: Pod,
    server: Pod,
    mesh: Mesh,
    program: String,
}

impl Stage {
    fn set() -> Result<Self> {
        let program = crate::binaries::path("signet-bench")?;
        let program = program.to_str().context("a path in UTF-8")?.to_owned();
        let mesh = Mesh::without_engines("24h")?;
        let client = mesh.n1.pod(PodSpec::new("bench", "client"))?;
        let server = mesh.n2.pod(PodSpec::new("bench", "server"))?;
        let listen = format!("0.0.0.0:{LOAD_PORT}");
        let servers = [
            server.spawn("iperf3", &["iperf3", "--server"])?,
            server.spawn("load", &[&program, "serve", &listen])?,
        ];
        let stage = Self { _servers: servers, client, server, mesh, program };
        stage.wait_until_served()?;
        Ok(stage)
    }

    fn start_engines(&self) -> Result<()> {
        for node in self.mesh.nodes() {
            node.launch_engine(&self.mesh.ca, &json!({}))?;
        }
        self.mesh.nodes().into_iter().try_for_each(|node| node.wait_ready())?;
        self.mesh.settle(&[&self.client, &self.server])?;
        self.wait_until_served()
    }

    /// A first exchange of each kind, which also pays for handshakes that no figure should have.
    fn wait_until_served(&self) -> Result<()> {
        wait::until("the servers answer", crate::node::READY_WITHIN, || {
            self.requests(1, 1, false)?;
            self.throughput(1, 1).map(drop)
        })
    }

    fn figures(&self, seconds: u64) -> Result<Figures> {
        let alone = self.requests(seconds, 1, false)?;
        let many = self.requests(seconds, CLIENTS, false)?;
        let fresh = self.requests(seconds, CLIENTS, true)?;
        let (one, eight) = (self.throughput(seconds, 1)?, self.throughput(seconds, STREAMS)?);
        Ok([one, eight, many.rate, alone.p50, alone.p99, fresh.rate, fresh.p50])
    }

    /// Gbit/s that arrived.
    fn throughput(&self, seconds: u64, streams: usize) -> Result<f64> {
        let (seconds, streams) = (seconds.to_string(), streams.to_string());
        let argv =
            ["iperf3", "--client", self.server.ipv4(), "--json", "--time", &seconds, "--parallel", &streams];
        let report: Value = serde_json::from_str(&self.client.run(&argv)?).context("iperf3's report")?;
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
        bits.map(|bits| bits / 1e9)
            .with_context(|| format!("iperf3 tells no throughput: {}", report["error"]))
    }

    fn requests(&self, seconds: u64, clients: usize, reconnect: bool) -> Result<load::Answers> {
        let server = format!("{}:{LOAD_PORT}", self.server.ipv4());
        let (seconds, clients) = (seconds.to_string(), clients.to_string());
        let mut argv = vec![self.program.as_str(), "ask", &server, &seconds, &clients];
        argv.extend(reconnect.then_some("--reconnect"));
        serde_json::from_str(&self.client.run(&argv)?).context("the load's report")
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!("{:<48} {:>10} {:>10} {:>7}\n", "", "direct", "Signet", "ratio");
    for Row { what, unit, direct, signet } in rows {
        let title = format!("{what}, {unit}");
        let ratio = signet / direct;
        // A String takes whatever it is given.
        let _ = writeln!(text, "{title:<48} {direct:>10.2} {signet:>10.2} {ratio:>7.2}");
    }
    text
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

const NEEDS: [Need; 2] = [Need::Engine, Need::Program("iperf3")];
const LOAD_PORT: u16 = 7000;
const CLIENTS: usize = 16;
const STREAMS: usize = 8;

/// What is measured, and its unit.
const TITLES: [(&str, &str); 7] = [
    ("throughput, 1 stream", "Gbit/s"),
    ("throughput, 8 streams", "Gbit/s"),
    ("requests on 16 connections", "1/s"),
    ("request on 1 connection, median", "µs"),
    ("request on 1 connection, 99th percentile", "µs"),
    ("new connections with a request, 16 at once", "1/s"),
    ("new connection with a request, median", "µs"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_both_ways_and_their_ratio() {
        let rows = [Row { what: "throughput, 1 stream", unit: "Gbit/s", direct: 20.0, signet: 5.0 }];
        let text = table(&rows);
        assert!(text.lines().nth(1).unwrap().ends_with("20.00       5.00    0.25"), "{text}");
    }
}
