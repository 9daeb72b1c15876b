//! What a kubelet does with a pod that talks to nobody in clear: probes, exec, logs, port-forward.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::need::Need;
use signet_testkit::process::{Process, stdout};
use signet_testkit::wait;

use crate::mesh::{self, Meshed};
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    a_strict_pod_is_probed_and_nobody_else_on_its_node_gets_in,
);

fn a_strict_pod_is_probed_and_nobody_else_on_its_node_gets_in() -> Result<()> {
    let mesh = mesh::mesh()?;
    mesh.namespace("probed", true)?;
    mesh.strict("probed")?;
    mesh.kubectl().apply(&probed().to_string())?;
    add_impostor(&mesh)?;
    mesh.kubectl().wait_ready("probed", "server", WITHIN)?;
    mesh.signet.wait_for_pod("probed", "server", true)?;
    let pod = mesh.kubectl().json(&["get", "--namespace=probed", "pod/server"])?;
    let address = pod["status"]["podIP"].as_str().context("an address")?;
    stays_ready(&mesh)?;
    let in_clear = ask_by_grpc("127.0.0.1");
    let said = mesh.kubectl().exec("probed", "server", &["sh", "-c", &in_clear])?;
    ensure!(said.contains(SERVING), "inside of the pod its health is {said:?}");
    nobody_else_gets_in(
        &mesh,
        &format!("curl --silent --show-error --fail --max-time 5 http://{address}:8080/"),
    )?;
    nobody_else_gets_in(&mesh, &ask_by_grpc(address))?;
    exec_logs_and_port_forward(&mesh)?;
    stays_ready(&mesh)
}

/// One probe of each kind that failed once would show.
fn stays_ready(mesh: &Meshed) -> Result<()> {
    let probes = || probes_seen(mesh);
    let before = probes()?;
    wait::until("the kubelet has probed again and again", WITHIN, || {
        let now = probes()?;
        ensure!(now >= before + PROBES, "{now} after {before}");
        Ok(())
    })?;
    let pod = mesh.kubectl().json(&["get", "--namespace=probed", "pod/server"])?;
    let containers = pod["status"]["containerStatuses"].as_array().context("containers")?;
    for container in containers {
        ensure!(container["ready"] == true && container["restartCount"] == 0, "{container}");
    }
    Ok(())
}

/// SYNs that n1's kernel has let through for its kubelet.
fn probes_seen(mesh: &Meshed) -> Result<u64> {
    let ask = ["curl", "--silent", "--fail", "http://127.0.0.1:15020/metrics"];
    let metrics = stdout(&mesh.cluster.nodes()[0].exec(&ask)?)?;
    let name = "signet_capture_verdicts_total{verdict=\"bypass\",reason=\"probe_syn\"} ";
    let sample = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(sample.context("no count of probes")?.parse()?)
}

/// The kubelet's own question, by curl: an empty `HealthCheckRequest` behind the five bytes of gRPC.
fn ask_by_grpc(address: &str) -> String {
    let headers = "--header 'content-type: application/grpc' --header 'te: trailers'";
    format!(
        "printf '\\0\\0\\0\\0\\0' | curl --silent --show-error --fail --max-time 5 --http2-prior-knowledge {headers} \
         --data-binary @- http://{address}:{HEALTH}/grpc.health.v1.Health/Check"
    )
}

/// Root on the node, and a pod that has the node's network and the kubelet's name.
fn nobody_else_gets_in(mesh: &Meshed, ask: &str) -> Result<()> {
    let ask = ["sh", "-c", ask];
    for node in mesh.cluster.nodes() {
        let said = stdout(&node.exec(&ask)?);
        ensure!(said.is_err(), "a process of {} that is not its kubelet got in: {said:?}", node.name());
    }
    let said = mesh.kubectl().exec("impostor", "kubelet", &ask);
    ensure!(said.is_err(), "a pod in the node's network got in: {said:?}");
    Ok(())
}

fn add_impostor(mesh: &Meshed) -> Result<()> {
    mesh.kubectl().create_namespace("impostor")?;
    let mut pod: Value =
        serde_json::from_str(&shared::pod("impostor", "kubelet", "n1", IMAGE, &["sleep", "3600"]))?;
    pod["spec"]["hostNetwork"] = json!(true);
    mesh.kubectl().apply(&pod.to_string())?;
    mesh.kubectl().wait_ready("impostor", "kubelet", WITHIN)
}

fn exec_logs_and_port_forward(mesh: &Meshed) -> Result<()> {
    let kubectl = mesh.kubectl();
    let said = kubectl.exec("probed", "server", &["echo", "hello"])?;
    ensure!(said == "hello", "exec said {said:?}");
    let log = kubectl.logs("probed", "server")?;
    ensure!(log.contains("response:200"), "the log has no probe: {log}");
    let log = tempfile::NamedTempFile::new()?;
    let mut command = kubectl.command(&["port-forward", "--namespace=probed", "pod/server", ":8080"]);
    command.stderr(Stdio::null());
    let forward = Process::start(command, log.path())?;
    let line = forward.wait_for_line(&["Forwarding from 127.0.0.1:"], WITHIN)?;
    let port = line.split([':', ' ']).find_map(|word| word.parse::<u16>().ok()).context("a port")?;
    let url = format!("http://127.0.0.1:{port}/");
    let curl =
        std::process::Command::new("curl").args(["--silent", "--fail", "--max-time", "10", &url]).output()?;
    let said = stdout(&curl)?;
    ensure!(said == "probed", "port-forward led to {said:?}");
    Ok(())
}

/// A server with a page; beside it a container that is asked by a command, and one that is asked by gRPC.
fn probed() -> Value {
    let serve = "mkdir /www && printf probed >/www/index.html && exec httpd -f -vv -p 8080 -h /www";
    let probe = |what: &str, how: Value| json!({what: how, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20});
    let mut pod: Value =
        serde_json::from_str(&shared::pod("probed", "server", "n1", IMAGE, &["sh", "-c", serve]))
            .expect("JSON");
    let containers = pod["spec"]["containers"].as_array_mut().expect("a list");
    let mut asked = containers[0].clone();
    asked["name"] = json!("asked");
    asked["command"] = json!(["sleep", "3600"]);
    asked["readinessProbe"] = probe("exec", json!({"command": ["true"]}));
    containers[0]["startupProbe"] =
        json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60});
    containers[0]["readinessProbe"] = probe("httpGet", json!({"port": 8080}));
    containers[0]["livenessProbe"] = probe("tcpSocket", json!({"port": 8080}));
    let mut healthy = containers[0].clone();
    healthy["name"] = json!("healthy");
    healthy["command"] = json!(["signet-probe", "health", HEALTH.to_string()]);
    let by_grpc = json!({"grpc": {"port": HEALTH}, "periodSeconds": 1, "failureThreshold": 60});
    healthy["startupProbe"] = by_grpc;
    healthy["readinessProbe"] = probe("grpc", json!({"port": HEALTH}));
    healthy["livenessProbe"] = probe("grpc", json!({"port": HEALTH}));
    containers.extend([asked, healthy]);
    pod
}

const IMAGE: &str = "signet-workload";
/// Four of the probes go over the network, each about once a second.
const PROBES: u64 = 16;
/// The port of the gRPC server.
const HEALTH: u16 = 9090;
/// `HealthCheckResponse.status` is `SERVING`, in protobuf.
const SERVING: &str = "\u{8}\u{1}";
