//! Bad days of an engine: killed under load, without its API server, with its place in the watch compacted away, with a
//! clock that is not the CA's.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use signet_testkit::cluster::Wire;
use signet_testkit::need::Need;
use signet_testkit::process::{Process, stdout};
use signet_testkit::wait;

use crate::mesh::{Meshed, Pair};
use crate::shared::WITHIN;
use crate::skew;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(
    &[Need::Cluster, Need::Engine, Need::Program("faketime")] =>
    an_engine_survives_its_bad_days,
);

/// On a cluster of its own.
fn an_engine_survives_its_bad_days() -> Result<()> {
    let mut mesh = Meshed::start()?;
    mesh.pair(NAMESPACE, true)?.by_service()?;
    is_killed_under_load(&mut mesh)?;
    is_killed_under_its_clients_load(&mut mesh)?;
    let wire = mesh.record()?;
    loses_its_api_server_and_its_place(&mesh)?;
    let packets = wire.stop()?;
    ensure!(!mesh.known_pair(NAMESPACE)?.is_seen(&packets), "it crossed the link in clear");
    ensure!(packets.tls_records() > 0, "no TLS on the link");
    skew::a_clock_that_is_off_is_said_and_heals(&mut mesh, NAMESPACE)
}

/// What is lost is refused, and what comes after its return is carried: also while clients never pause.
fn is_killed_under_load(mesh: &mut Meshed) -> Result<()> {
    let log = tempfile::NamedTempFile::new()?;
    let mut running = load(&mesh.known_pair(NAMESPACE)?, log.path())?;
    let Meshed { signet, cluster } = mesh;
    let [near, far] = cluster.nodes() else { bail!("a cluster has two nodes") };
    let wire = Wire::record(cluster, far)?;
    let engine = signet.engine_mut("n1")?;
    engine.end(Signal::SIGKILL)?;
    running.wait_for_line(&["lost"], WITHIN)?;
    engine.start(near)?;
    engine.wait_ready(near)?;
    let packets = wire.stop()?;
    let pair = mesh.known_pair(NAMESPACE)?;
    ensure!(!pair.is_seen(&packets), "it crossed the link in clear");
    pair.by_service()?;
    let told = end(&pair, &mut running)?;
    ensure!(told.ends_with("ok"), "the last request was lost: {told}");
    Ok(())
}

/// The server's: what was under way is lost, and what comes meanwhile waits for its return, from outside of the mesh too.
fn is_killed_under_its_clients_load(mesh: &mut Meshed) -> Result<()> {
    let [log, outside_log] = [tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?];
    let mut running = load(&mesh.known_pair(NAMESPACE)?, log.path())?;
    let mut outside = load_from_node(mesh, outside_log.path())?;
    let Meshed { signet, cluster } = &mut *mesh;
    let [_, far] = cluster.nodes() else { bail!("a cluster has two nodes") };
    signet.engine_mut("n2")?.end(Signal::SIGKILL)?;
    signet.engine_mut("n2")?.start(far)?;
    signet.engine("n2")?.wait_ready(far)?;
    let pair = mesh.known_pair(NAMESPACE)?;
    pair.by_service()?;
    let told = end(&pair, &mut running)?;
    outside.signal(Signal::SIGTERM)?;
    outside.wait(WITHIN)?;
    for (from, told) in [("inside", told), ("outside", outside.log()?)] {
        let lost = told.lines().filter(|line| *line == "lost").count();
        ensure!(lost <= 1, "{lost} requests from {from} were lost: {told}");
    }
    let waited = metric(mesh, "signet_awaited_engines_total{result=\"back\"}")?;
    ensure!(waited > 0, "nobody has waited");
    Ok(())
}

/// The client asks all the time, each time over a connection of its own.
fn load(pair: &Pair<'_>, log: &Path) -> Result<Process> {
    let ask = ask(pair);
    let load = format!("rm -f /tmp/enough; while [ ! -e /tmp/enough ]; do {ask}; done");
    let running = Process::start(pair.exec_command("client", &["sh", "-c", &load]), log)?;
    running.wait_for_line(&["ok"], WITHIN)?;
    Ok(running)
}

/// The same by a process of the client's node, which is not in the mesh, until it gets SIGTERM.
fn load_from_node(mesh: &Meshed, log: &Path) -> Result<Process> {
    let load = format!("trap 'exit 0' TERM; while :; do {}; done", ask(&mesh.known_pair(NAMESPACE)?));
    let running = Process::start(mesh.cluster.nodes()[0].command(&["sh", "-c", &load])?, log)?;
    running.wait_for_line(&["ok"], WITHIN)?;
    Ok(running)
}

fn ask(pair: &Pair<'_>) -> String {
    let url = pair.url();
    format!("curl --silent --max-time 10 --output /dev/null {url} && echo ok || echo lost")
}

/// Ends it; how each request went.
fn end(pair: &Pair<'_>, running: &mut Process) -> Result<String> {
    pair.exec("client", &["touch", "/tmp/enough"])?;
    running.wait(WITHIN)?;
    Ok(running.log()?.trim_end().to_owned())
}

/// Half a minute without an API server, whose etcd forgets meanwhile what the engine would go on from.
fn loses_its_api_server_and_its_place(mesh: &Meshed) -> Result<()> {
    let pair = mesh.known_pair(NAMESPACE)?;
    let client = pair.container("client")?;
    let lists = metric(mesh, "signet_source_lists_total{kind=\"Pod\"}")?;
    let api_server = mesh.cluster.component("kube-apiserver")?;
    api_server.stop()?;
    wait::until("half a minute of silence", OUTAGE * 3, || {
        let status = mesh.signet.engine("n1")?.signet(&["status"])?.to_string();
        let silence = status
            .split("for ")
            .filter_map(|rest| rest.split_once(" s not heard")?.0.parse::<u64>().ok())
            .max();
        ensure!(silence.is_some_and(|seconds| seconds >= OUTAGE.as_secs()), "{status}");
        Ok(())
    })?;
    pair.fetch_without_api_server(&client)?;
    compact(mesh)?;
    api_server.start()?;
    mesh.cluster.wait_for_api_server()?;
    wait::until("the pods are listed anew", WITHIN, || {
        let now = metric(mesh, "signet_source_lists_total{kind=\"Pod\"}")?;
        ensure!(now > lists, "{now} lists");
        Ok(())
    })?;
    mesh.kubectl().run(&["delete", "--namespace", NAMESPACE, "pod/server"])?;
    mesh.kubectl().apply(&crate::mesh::server(NAMESPACE))?;
    mesh.kubectl().wait_ready(NAMESPACE, "server", WITHIN)?;
    mesh.signet.wait_for_pod(NAMESPACE, "server", true)?;
    pair.by_service()
}

/// etcd forgets every revision but its last.
fn compact(mesh: &Meshed) -> Result<()> {
    let ask = |path: &str, body: &Value| -> Result<Value> {
        let (url, body) = (format!("http://127.0.0.1:2379/v3/kv/{path}"), body.to_string());
        let curl = mesh.cluster.outside(&["curl", "--silent", "--fail", "--data", &body, &url])?.output()?;
        Ok(serde_json::from_str(&stdout(&curl)?)?)
    };
    let revision = ask("range", &json!({"key": "Zm9v"}))?["header"]["revision"].clone();
    ask("compaction", &json!({"revision": revision, "physical": true})).map(drop)
}

/// A sample of n1's engine.
fn metric(mesh: &Meshed, name: &str) -> Result<u64> {
    let ask = ["curl", "--silent", "--fail", "http://127.0.0.1:15020/metrics"];
    let metrics = stdout(&mesh.cluster.nodes()[0].exec(&ask)?)?;
    let sample = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let sample = sample.with_context(|| format!("no {name} in:\n{metrics}"))?;
    Ok(sample.parse::<f64>()? as u64)
}

const NAMESPACE: &str = "bad-days";
const OUTAGE: Duration = Duration::from_secs(30);
