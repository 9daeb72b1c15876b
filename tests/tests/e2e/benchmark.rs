//! The benchmark, run as a program for one short round: every row that must exist exists. No figure is looked at.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;
use signet_testkit::need::Need;
use signet_testkit::{binaries, process};

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests!(
    &[Need::Nodes, Need::Engine, Need::Tool("envoy"), Need::Program("haproxy")] =>
    the_benchmark_measures_everything_of_everybody,
);

fn the_benchmark_measures_everything_of_everybody() -> Result<()> {
    let output = tempfile::tempdir()?;
    let said = run(output.path())?;
    let rows: Vec<Value> = serde_json::from_str(&said)?;
    let names = |row: &Value| -> String {
        ["contender", "path", "measure"].map(|field| row[field].as_str().unwrap_or_default()).join(" ")
    };
    let found: BTreeSet<String> = rows.iter().map(names).collect();
    let missing: Vec<String> = wanted().into_iter().filter(|row| !found.contains(row)).collect();
    ensure!(missing.is_empty(), "no rows for {missing:#?}");
    ensure!(found.len() == rows.len(), "a row is there twice");
    rows.iter().try_for_each(has_its_shape)?;
    the_files_are_there(output.path(), rows.len())
}

fn run(output: &Path) -> Result<String> {
    let mut command = Command::new(binaries::path("signet-bench")?);
    command.args(["--rounds", "1", "--seconds", "0.1", "--idle", "10,30", "--json", "--output"]);
    process::stdout(&command.arg(output).output()?)
}

fn wanted() -> Vec<String> {
    let mut wanted = Vec::new();
    let mut want = |contenders: &[&str], path: &str, measures: &[String]| {
        for contender in contenders {
            wanted.extend(measures.iter().map(|measure| format!("{contender} {path} {measure}")));
        }
    };
    let (loads, costs) = (loads(), costs());
    want(&["direct"], "across", &loads);
    want(&["direct"], "same-node", &loads);
    want(&ENGINES_ACROSS, "across", &[&loads[..], &costs[..], &memory()[..]].concat());
    want(&ENGINES_ON_ONE_NODE, "same-node", &[&loads[..], &costs[..]].concat());
    want(&HANDSHAKES, "across", &rated("handshakes_16"));
    want(&["signet-ca"], "ca", &rated("svids_16"));
    want(&["signetd"], "in-process", &SCALE.map(str::to_owned));
    wanted
}

/// What everybody has who carries bytes.
fn loads() -> Vec<String> {
    let rates = ["requests_1", "requests_16", "requests_64", "connections_1", "connections_16"];
    let latencies =
        rates.iter().flat_map(|rate| ["", "_p50", "_p99", "_p999"].map(|part| format!("{rate}{part}")));
    THROUGHPUT.iter().map(|name| (*name).to_owned()).chain(latencies).collect()
}

fn costs() -> Vec<String> {
    let others = ["requests_1", "requests_16", "requests_64", "connections_1", "connections_16"];
    THROUGHPUT.iter().chain(&others).map(|load| format!("{load}_cpu")).collect()
}

fn memory() -> Vec<String> {
    let sizes = ["memory_fresh", "memory_10_idle", "memory_30_idle", "memory_after_loads"];
    let both = sizes.iter().flat_map(|size| [(*size).to_owned(), format!("{size}_anonymous")]);
    let each = ["10", "30"]
        .iter()
        .flat_map(|count| ["client", "server"].map(|end| format!("memory_per_{count}_idle_{end}")));
    both.chain(each).collect()
}

fn rated(what: &str) -> Vec<String> {
    ["", "_p50", "_p99", "_p999", "_cpu"].map(|part| format!("{what}{part}")).to_vec()
}

fn has_its_shape(row: &Value) -> Result<()> {
    let numbers = ["median", "min", "max"].iter().all(|field| row[field].is_number());
    let ratios = ["ratio_to_direct", "ratio_to_envoy"];
    let ratios =
        ratios.iter().all(|field| row.get(field).is_some_and(|ratio| ratio.is_null() || ratio.is_number()));
    ensure!(numbers && ratios && row["unit"].is_string(), "{row}");
    Ok(())
}

fn the_files_are_there(output: &Path, rows: usize) -> Result<()> {
    let read = |name: &str| fs::read_to_string(output.join(name));
    let kept: Vec<Value> = serde_json::from_str(&read("bench.json")?)?;
    ensure!(kept.len() == rows, "bench.json has {} rows, printed were {rows}", kept.len());
    let tables = read("bench.md")?;
    for part in ["cores", "**Targets**", "signet-hbone", "throughput.svg"] {
        ensure!(tables.contains(part), "no {part} in {tables}");
    }
    for chart in CHARTS {
        let svg = read(&format!("{chart}.svg"))?;
        ensure!(svg.starts_with("<svg") && svg.contains("<rect"), "{chart}.svg is {svg}");
    }
    Ok(())
}

const ENGINES_ACROSS: [&str; 5] = ["envoy-pair", "envoy-pair-64", "haproxy-pair", "signet", "signet-hbone"];
const ENGINES_ON_ONE_NODE: [&str; 2] = ["signet-same-node", "signet-same-node-mtls"];
const HANDSHAKES: [&str; 3] = ["envoy-pair", "haproxy-pair", "signet"];
const THROUGHPUT: [&str; 4] =
    ["throughput_1", "throughput_4", "throughput_1_reversed", "throughput_4_reversed"];
const SCALE: [&str; 8] = [
    "inventory_100000_memory",
    "lookup_address_p50",
    "lookup_address_p99",
    "lookup_vip_p50",
    "lookup_vip_p99",
    "policy_10000_p50",
    "policy_10000_p99",
    "policy_10000",
];
const CHARTS: [&str; 8] =
    ["throughput", "requests", "latency", "connections", "cpu", "memory", "same-node", "same-node-latency"];
