//! What the cluster knows before the engine does: a connection there waits, and never goes out in clear.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use signet_testkit::cluster::Gate;
use signet_testkit::need::Need;
use signet_testkit::process::stdout;
use signet_testkit::wait;

use crate::mesh::{self, Meshed, Pair};
use crate::shared::WITHIN;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    an_address_that_the_engine_does_not_know_yet_gets_no_plaintext,
);

/// On a cluster of its own: an engine is cut off from the API server, and kube-proxy beside it is not.
fn an_address_that_the_engine_does_not_know_yet_gets_no_plaintext() -> Result<()> {
    let mut mesh = Meshed::start()?;
    lets_nobody_out(&mut mesh)?;
    let gate = put_gate(&mut mesh)?;
    let pair = mesh.pair("late", true)?;
    pair.by_service()?;
    let wire = mesh.record()?;
    let nobody = Fetch::begin(&pair, &format!("http://{NOBODYS}/late"))?;
    gate.hold()?;
    let service = later_service(&mesh, &pair)?;
    get_once_released(&mesh, &pair, &gate, &service)?;
    gate.hold()?;
    let pod = later_pod(&mesh)?;
    get_once_released(&mesh, &pair, &gate, &pod)?;
    let packets = wire.stop()?;
    ensure!(!pair.is_seen(&packets), "it crossed the link in clear");
    ensure!(packets.tls_records() > 0, "no TLS on the link");
    ensure!(nobody.end().is_err(), "an address that no Service has was reached");
    mesh.signet.engine("n1")?.wait_for_log(&["connection complete", NOBODYS, "must be a service's"])?;
    has_counted(&mesh)?;
    reaches_nodes_at_their_bridges(&pair)
}

/// `mesh.outboundTrafficPolicy: REGISTRY_ONLY`: what is no Service and no workload is refused, and Services are not.
fn lets_nobody_out(mesh: &mut Meshed) -> Result<()> {
    set(mesh, "/mesh/outboundTrafficPolicy", json!("REGISTRY_ONLY"))?;
    let pair = mesh.pair("kept-in", true)?;
    pair.by_service()?;
    let ask = |url: &str| {
        pair.exec("client", &["curl", "--silent", "--insecure", "--fail", "--max-time", "10", url])
    };
    let through_its_service = ask("https://kubernetes.default.svc.cluster.local/version")?;
    ensure!(through_its_service.contains("gitVersion"), "the API server said {through_its_service:?}");
    let outside = ask("https://10.77.0.1:6443/version");
    ensure!(outside.is_err(), "an outside address was reached: {outside:?}");
    mesh.signet.engine("n1")?.wait_for_log(&["10.77.0.1:6443", "REGISTRY_ONLY"])?;
    set(mesh, "/mesh/outboundTrafficPolicy", json!("ALLOW_ANY"))
}

/// Changes a setting of n1's engine, and starts it again.
fn set(mesh: &mut Meshed, pointer: &str, value: serde_json::Value) -> Result<()> {
    let node = &mesh.cluster.nodes()[0];
    let engine = mesh.signet.engine_mut("n1")?;
    engine.set(pointer, value)?;
    engine.end(Signal::SIGTERM)?;
    engine.start(node)?;
    engine.wait_ready(node)
}

fn put_gate(mesh: &mut Meshed) -> Result<Gate> {
    let node = &mesh.cluster.nodes()[0];
    let engine = mesh.signet.engine_mut("n1")?;
    let gate = Gate::before(&mesh.cluster, node, engine)?;
    set(mesh, "/timeouts/discovery", json!("20s"))?;
    Ok(gate)
}

/// A Service that kube-proxy of n1 knows.
fn later_service(mesh: &Meshed, pair: &Pair<'_>) -> Result<String> {
    let service = mesh::service("late").replace("\"name\":\"server\"", "\"name\":\"later\"");
    mesh.kubectl().apply(&service)?;
    let service = mesh.kubectl().json(&["get", "--namespace", &pair.namespace, "service/later"])?;
    let address = service["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
    wait::until("kube-proxy knows the Service", WITHIN, || {
        let rules = stdout(&mesh.cluster.nodes()[0].exec(&["iptables-save", "-t", "nat"])?)?;
        let leads = |rule: &str| rule.contains(&format!("-d {address}/32")) && rule.contains("-j KUBE-SVC-");
        ensure!(rules.lines().any(leads), "no rule for {address}");
        Ok(())
    })?;
    Ok(format!("http://{address}/late"))
}

/// A pod of the mesh that nobody had heard of before.
fn later_pod(mesh: &Meshed) -> Result<String> {
    let server = mesh::server("late").replace("\"name\":\"server\"", "\"name\":\"later\"");
    mesh.kubectl().apply(&server)?;
    mesh.kubectl().wait_ready("late", "later", WITHIN)?;
    let pod = mesh.kubectl().json(&["get", "--namespace=late", "pod/later"])?;
    Ok(format!("http://{}:8080/late", pod["status"]["podIP"].as_str().context("an address")?))
}

/// The engine holds the connection while it hears nothing, and carries it once it does.
fn get_once_released(mesh: &Meshed, pair: &Pair<'_>, gate: &Gate, url: &str) -> Result<()> {
    let fetch = Fetch::begin(pair, url)?;
    let (host, _) = url.trim_start_matches("http://").split_once('/').context("a path")?;
    wait::until(&format!("the engine holds a connection to {host}"), WITHIN, || {
        let open = mesh.signet.engine("n1")?.signet(&["connections"])?;
        ensure!(open.to_string().contains(&format!("\"{host}")), "{open}");
        Ok(())
    })?;
    gate.release()?;
    let said = fetch.end()?;
    ensure!(said == pair.secret(), "it got {said:?}");
    Ok(())
}

fn has_counted(mesh: &Meshed) -> Result<()> {
    let ask = ["curl", "--silent", "--fail", "http://127.0.0.1:15020/metrics"];
    let metrics = stdout(&mesh.cluster.nodes()[0].exec(&ask)?)?;
    for (kind, result) in [("service", "known"), ("pod", "known"), ("service", "refused")] {
        let sample = format!("signet_awaited_destinations_total{{kind=\"{kind}\",result=\"{result}\"}} 1");
        ensure!(metrics.lines().any(|line| line == sample), "no {sample} in:\n{metrics}");
    }
    Ok(())
}

/// A bridge has the first address of its node's pods, and kubelet listens there.
fn reaches_nodes_at_their_bridges(pair: &Pair<'_>) -> Result<()> {
    for bridge in ["10.244.1.1", "10.244.2.1"] {
        let url = format!("https://{bridge}:10250/healthz");
        let ask =
            ["curl", "--silent", "--insecure", "--output", "/dev/null", "--write-out", "%{http_code}", &url];
        let code = pair.exec("client", &ask)?;
        ensure!(code == "401", "kubelet at the bridge's address {bridge} answered {code:?}");
    }
    Ok(())
}

/// A client that waits for its answer.
struct Fetch(Child);

impl Fetch {
    fn begin(pair: &Pair<'_>, url: &str) -> Result<Self> {
        let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "60", url];
        let mut command = pair.exec_command("client", &curl);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(command.spawn()?))
    }

    fn end(self) -> Result<String> {
        stdout(&self.0.wait_with_output()?)
    }
}

/// In the range of Services, far from what is given away first.
const NOBODYS: &str = "10.96.255.250";
