//! Pods that have a name, an address or a node in common with another one, and are told apart all the same.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::need::Need;
use signet_testkit::process::stdout;
use signet_testkit::wait;

use crate::mesh::{self, Meshed, Pair};
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    a_pod_that_returns_with_its_name_and_address_is_another_one,
    pods_on_the_nodes_network_are_told_apart_by_their_accounts,
);

/// A StatefulSet's, with another account the second time. Alone: it has the address that was free last given away next.
fn a_pod_that_returns_with_its_name_and_address_is_another_one() -> Result<()> {
    let mesh = mesh::alone()?;
    let pair = mesh.pair("returned", true)?;
    mesh.kubectl().apply(&shared::pod("returned", "neighbour", "n2", IMAGE, &["sleep", "3600"]))?;
    for account in ["first", "second"] {
        mesh.kubectl().run(&["create", "serviceaccount", account, "--namespace=returned"])?;
    }
    mesh.kubectl().apply(&stateful("first").to_string())?;
    for pod in ["neighbour", "same-0"] {
        mesh.kubectl().wait_ready("returned", pod, WITHIN)?;
        mesh.signet.wait_for_pod("returned", pod, true)?;
    }
    let wire = mesh.record()?;
    let first = Seen::of(&mesh)?;
    is_reached_as(&mesh, &pair, &first, "first")?;
    mesh.kubectl().apply(&stateful("second").to_string())?;
    give_away_next(&mesh, &first.address)?;
    mesh.kubectl().run(&["delete", "--namespace=returned", "--wait", "pod/same-0"])?;
    let second = wait::until("the pod is back", WITHIN, || {
        mesh.kubectl().wait_ready("returned", "same-0", WITHIN)?;
        let seen = Seen::of(&mesh)?;
        ensure!(seen.uid != first.uid, "it is the old one");
        Ok(seen)
    })?;
    ensure!(second.address == first.address, "it has another address: {}", second.address);
    is_reached_as(&mesh, &pair, &second, "second")?;
    has_the_key_alone(&mesh, &second, &first)?;
    let packets = wire.stop()?;
    ensure!(!pair.is_seen(&packets) && packets.tls_records() > 0, "not mTLS on the link");
    Ok(())
}

/// What a pod of the StatefulSet is known by.
struct Seen {
    uid: String,
    address: String,
}

impl Seen {
    fn of(mesh: &Meshed) -> Result<Self> {
        let pod = mesh.kubectl().json(&["get", "--namespace=returned", "pod/same-0"])?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let uid = text(&pod["metadata"]["uid"]).context("a uid")?;
        Ok(Self { uid, address: text(&pod["status"]["podIP"]).context("an address")? })
    }
}

/// From the other node by mTLS, from its own node by mTLS first and then past the engine: each time as who it is now.
fn is_reached_as(mesh: &Meshed, pair: &Pair<'_>, pod: &Seen, account: &str) -> Result<()> {
    let url = format!("http://{}:8080/returned", pod.address);
    pair.fetch(&url)?;
    let identity = format!("dst.identity=\"spiffe://cluster.local/ns/returned/sa/{account}\"");
    let complete = ["connection complete", "src.workload=\"client\"", &identity];
    mesh.signet.engine("n1")?.wait_for_log(&complete)?;
    wait::until("its neighbour goes past the engine", WITHIN, || {
        let curl = ["curl", "--silent", "--fail", "--max-time", "10", &url];
        let said = mesh.kubectl().exec("returned", "neighbour", &curl)?;
        ensure!(said == pair.secret(), "it got {said:?}");
        let direct = ["direction=\"direct\"", "src.workload=\"neighbour\"", &identity];
        let log = mesh.signet.engine("n2")?.log()?;
        ensure!(
            log.lines().any(|line| direct.iter().all(|part| line.contains(part))),
            "no line has {direct:?}"
        );
        Ok(())
    })
}

/// host-local goes on after the address that it gave away last.
fn give_away_next(mesh: &Meshed, address: &str) -> Result<()> {
    let (network, last) = address.rsplit_once('.').context("an address")?;
    let before = format!("{network}.{}", last.parse::<u8>()? - 1);
    let write = format!("printf {before} >/var/lib/cni/networks/pods/last_reserved_ip.0");
    stdout(&mesh.cluster.nodes()[1].exec(&["sh", "-c", &write])?).map(drop)
}

fn has_the_key_alone(mesh: &Meshed, now: &Seen, before: &Seen) -> Result<()> {
    wait::until("n2 has the new one's key alone", WITHIN, || {
        let keys = mesh.signet.engine("n2")?.signet(&["certificates"])?.to_string();
        ensure!(keys.contains(&now.uid) && !keys.contains(&before.uid), "{keys}");
        Ok(())
    })
}

fn stateful(account: &str) -> Value {
    let command = format!(
        "mkdir /www && printf {} >/www/returned && exec httpd -f -p 8080 -h /www",
        mesh::secret("returned")
    );
    let mut spec = spec("same", &command);
    spec["serviceAccountName"] = json!(account);
    // Without a moment of grace the object is gone, and the next pod made, before the address is free.
    spec["terminationGracePeriodSeconds"] = json!(1);
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": "n2"});
    spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "same", "namespace": "returned"},
        "spec": {
            "serviceName": "same", "replicas": 1, "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": {"app": "same"}},
            "template": {"metadata": {"labels": {"app": "same"}}, "spec": spec},
        },
    })
}

/// Of a pod that a controller makes.
fn spec(app: &str, command: &str) -> Value {
    let pod: Value =
        serde_json::from_str(&shared::pod("any", app, "any", IMAGE, &["sh", "-c", command])).expect("JSON");
    let mut spec = pod["spec"].clone();
    for field in ["restartPolicy", "nodeName"] {
        spec.as_object_mut().expect("an object").remove(field);
    }
    spec
}

/// A DaemonSet and a pod, both hostNetwork and on n1: as servers by the port, as clients by the cgroup.
fn pods_on_the_nodes_network_are_told_apart_by_their_accounts() -> Result<()> {
    let mesh = mesh::mesh()?;
    let pair = mesh.pair("accounts", true)?;
    for account in ["agent", "other"] {
        mesh.kubectl().run(&["create", "serviceaccount", account, "--namespace=accounts"])?;
    }
    mesh.kubectl().apply(&daemon_set().to_string())?;
    mesh.kubectl().apply(&host_pod().to_string())?;
    mesh.kubectl().run(&["rollout", "status", "--namespace=accounts", "daemonset/agent", "--timeout=60s"])?;
    mesh.kubectl().wait_ready("accounts", "other", WITHIN)?;
    mesh.signet.wait_for_pod("accounts", "other", true)?;
    let wire = mesh.record()?;
    let agent = pod_on(&mesh, "n1")?;
    serve_as_themselves(&mesh, &pair, &agent)?;
    ask_as_themselves(&mesh, &pair, &agent)?;
    let packets = wire.stop()?;
    ensure!(!pair.is_seen(&packets) && packets.tls_records() > 0, "not mTLS on the link");
    Ok(())
}

/// The client is on n1 too: its engine serves both ends.
fn serve_as_themselves(mesh: &Meshed, pair: &Pair<'_>, agent: &str) -> Result<()> {
    for (node, port, workload, account) in
        [(0, AGENTS, agent, "agent"), (0, OTHERS, "other", "other"), (1, AGENTS, "agent-", "agent")]
    {
        let node = &mesh.cluster.nodes()[node];
        pair.fetch(&format!("http://{}:{port}/accounts", node.ip()))?;
        let identity = format!("dst.identity=\"spiffe://cluster.local/ns/accounts/sa/{account}\"");
        let workload = format!("dst.workload=\"{workload}");
        let line = ["connection complete", "direction=\"inbound\"", &workload, &identity];
        mesh.signet.engine(node.name())?.wait_for_log(&line)?;
    }
    Ok(())
}

/// The server lets one account in, and not the other one of the same node.
fn ask_as_themselves(mesh: &Meshed, pair: &Pair<'_>, agent: &str) -> Result<()> {
    mesh.define("AuthorizationPolicy", "authorizationpolicies")?;
    let principals = ["cluster.local/ns/accounts/sa/agent"];
    let spec = json!({"action": "ALLOW", "rules": [{"from": [{"source": {"principals": principals}}]}]});
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "agents-only", "namespace": "accounts"}, "spec": spec,
    });
    mesh.kubectl().apply(&policy.to_string())?;
    let (url, server) = (pair.url(), mesh.signet.engine("n2")?);
    let ask = |pod: &str| {
        mesh.kubectl().exec("accounts", pod, &["curl", "--silent", "--fail", "--max-time", "10", &url])
    };
    wait::until("the other account is refused", WITHIN, || {
        ask("other").err().map(drop).context("it is let in")
    })?;
    let of = |account: &str| format!("src.identity=\"spiffe://cluster.local/ns/accounts/sa/{account}\"");
    server.wait_for_log(&[&of("other"), "error=", "agents-only"])?;
    let said = ask(agent)?;
    ensure!(said == pair.secret(), "the agent got {said:?}");
    server.wait_for_log(&["connection complete", &of("agent"), "dst.workload=\"server\""]).map(drop)
}

fn pod_on(mesh: &Meshed, node: &str) -> Result<String> {
    let on_node = format!("--field-selector=spec.nodeName={node}");
    let get = ["get", "pods", "--namespace=accounts", "--selector=app=agent", &on_node, "--output=name"];
    let name = mesh.kubectl().run(&get)?;
    Ok(name.trim().trim_start_matches("pod/").to_owned())
}

fn daemon_set() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": "accounts"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": on_the_node("agent", AGENTS)},
        },
    })
}

fn host_pod() -> Value {
    let mut spec = on_the_node("other", OTHERS);
    spec["nodeName"] = json!("n1");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "other", "namespace": "accounts", "labels": {"app": "other"}}, "spec": spec,
    })
}

fn on_the_node(account: &str, port: u16) -> Value {
    let command = format!(
        "mkdir /www && printf {} >/www/accounts && exec httpd -f -p {port} -h /www",
        mesh::secret("accounts")
    );
    let mut spec = spec(account, &command);
    spec["serviceAccountName"] = json!(account);
    spec["hostNetwork"] = json!(true);
    spec["containers"][0]["ports"] = json!([{"containerPort": port}]);
    spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": port}, "periodSeconds": 1});
    spec
}

const IMAGE: &str = "signet-workload";
/// On the nodes, which other tests' pods share.
const AGENTS: u16 = 18090;
const OTHERS: u16 = 18091;
