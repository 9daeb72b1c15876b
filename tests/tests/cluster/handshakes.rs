//! A pod that goes while a peer is in the middle of its handshake: whichever side stalls, the connection ends with the pod,
//! in log and metrics, nothing of it stays or was in clear, and the next pod of that name works.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::{Cluster, release};
use signet_testkit::need::Need;
use signet_testkit::process::{Process, stdout};
use signet_testkit::wait;

use crate::mesh::{self, Meshed, Pair};
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    a_pod_that_goes_during_a_handshake_leaves_nothing_and_comes_back,
);

/// Alone: it looks for what the engines hold, and others' pods come and go.
fn a_pod_that_goes_during_a_handshake_leaves_nothing_and_comes_back() -> Result<()> {
    let mesh = mesh::alone()?;
    let pair = mesh.pair("handshakes", true)?;
    pair.by_address()?;
    let wire = mesh.record()?;
    client_goes(&mesh, &pair)?;
    server_goes(&mesh, &pair)?;
    let packets = wire.stop()?;
    let pair = mesh.known_pair("handshakes")?;
    ensure!(!pair.is_seen(&packets), "a pod spoke in clear");
    pair.by_address()
}

/// Its server, a machine outside of the cluster, reads the ClientHello and says nothing.
fn client_goes(mesh: &Meshed, pair: &Pair<'_>) -> Result<()> {
    let server = Silent::enrol(mesh)?;
    let pod = Pod::find(mesh, "client", "n1")?;
    let log = tempfile::NamedTempFile::new()?;
    let url = format!("http://{STALLING}:8080/handshakes");
    let fetch = ["curl", "--silent", "--max-time", "600", &url];
    let _client = Process::start(pair.exec_command("client", &fetch), log.path())?;
    let mut connection = server.accept()?;
    let first = said(&mut connection)?;
    ensure!(first.starts_with(&[TLS_HANDSHAKE]), "it does not begin with TLS: {first:?}");
    pod.go(mesh)?;
    let rest = [first, until_the_end(&mut connection)?].concat();
    ensure!(!String::from_utf8_lossy(&rest).contains("GET /"), "the request came in clear: {rest:?}");
    pod.has_left_nothing(mesh)?;
    ends_in_log_and_metrics(mesh, "n1", &["direction=\"outbound\"", "src.workload=\"client\"", STALLING])?;
    mesh.kubectl().apply(&shared::pod("handshakes", "client", "n1", IMAGE, &["sleep", "3600"]))?;
    comes_back(mesh, "client")?;
    pair.by_address()
}

/// Its client begins a ClientHello, and does not go on.
fn server_goes(mesh: &Meshed, pair: &Pair<'_>) -> Result<()> {
    let pod = Pod::find(mesh, "server", "n2")?;
    let address: SocketAddr = format!("{}:15008", pair.address).parse()?;
    let mut connection = mesh.cluster.outside_netns().enter(|| TcpStream::connect(address))??;
    connection.write_all(&[TLS_HANDSHAKE, 3, 1, 2, 0])?;
    let from = connection.local_addr()?.to_string();
    wait::until("the engine is in the handshake", WITHIN, || {
        let open = mesh.signet.engine("n2")?.signet(&["connections"])?;
        ensure!(open.to_string().contains(&format!("\"{from}\"")), "{open}");
        Ok(())
    })?;
    pod.go(mesh)?;
    let answer = until_the_end(&mut connection)?;
    ensure!(answer.is_empty(), "a ClientHello that is not whole was answered: {answer:?}");
    pod.has_left_nothing(mesh)?;
    ends_in_log_and_metrics(mesh, "n2", &["direction=\"inbound\"", "dst.workload=\"server\"", &from])?;
    mesh.kubectl().apply(&mesh::server("handshakes"))?;
    comes_back(mesh, "server")
}

fn comes_back(mesh: &Meshed, pod: &str) -> Result<()> {
    mesh.kubectl().wait_ready("handshakes", pod, WITHIN)?;
    mesh.signet.wait_for_pod("handshakes", pod, true)
}

/// One line that says why, and one more connection that failed.
fn ends_in_log_and_metrics(mesh: &Meshed, node: &str, parts: &[&str]) -> Result<()> {
    let closed = ["connection complete", "error=\"closed by the node engine: the workload has left"];
    mesh.signet.engine(node)?.wait_for_log(&[&closed, parts].concat())?;
    let index = mesh.cluster.nodes().iter().position(|one| one.name() == node).context("a node")?;
    let ask = ["curl", "--silent", "--fail", "http://127.0.0.1:15020/metrics"];
    let metrics = stdout(&mesh.cluster.nodes()[index].exec(&ask)?)?;
    let parts = ["istio_tcp_connections_failed_total{", "\"handshakes\"", "response_flags=\"-\""];
    let counted = metrics.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    ensure!(counted, "it is not counted: {metrics}");
    Ok(())
}

/// A pod, and the network namespace that it is in.
struct Pod {
    name: &'static str,
    node: &'static str,
    uid: String,
    netns: String,
}

impl Pod {
    fn find(mesh: &Meshed, name: &'static str, node: &'static str) -> Result<Self> {
        let kubectl = mesh.kubectl();
        let pod = kubectl.json(&["get", "--namespace=handshakes", "pod", name])?;
        let uid = pod["metadata"]["uid"].as_str().context("a uid")?.to_owned();
        let netns = kubectl.exec("handshakes", name, &["readlink", "/proc/self/ns/net"])?;
        let pod = Self { name, node, uid, netns };
        ensure!(
            pod.holds(&mesh.cluster)?,
            "its engine does not hold {}: the test looks at the wrong thing",
            pod.netns
        );
        Ok(pod)
    }

    fn go(&self, mesh: &Meshed) -> Result<()> {
        let delete = ["delete", "--namespace=handshakes", "--wait", "pod", self.name];
        mesh.kubectl().run(&delete).map(drop)
    }

    fn has_left_nothing(&self, mesh: &Meshed) -> Result<()> {
        wait::until(&format!("nothing of {} is left", self.name), WITHIN, || {
            let engine = mesh.signet.engine(self.node)?;
            for command in ["workloads", "certificates", "connections"] {
                let views = engine.signet(&[command])?;
                let its = |view: &&Value| {
                    let view = view.to_string();
                    view.contains(&self.uid) || view.contains(&format!("handshakes/{}\"", self.name))
                };
                let left = views.as_array().into_iter().flatten().find(its);
                ensure!(left.is_none(), "among the {command}: {left:?}");
            }
            ensure!(!self.holds(&mesh.cluster)?, "its network namespace is held");
            Ok(())
        })
    }

    /// Whether an engine of the cluster has a descriptor of its network namespace.
    fn holds(&self, cluster: &Cluster) -> Result<bool> {
        for process in std::fs::read_dir("/proc")?.flatten() {
            // Other processes end while they are looked at.
            let command = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            if !command.contains("signetd") || !command.contains(cluster.name()) {
                continue;
            }
            let descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            let mut leads = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
            if leads.any(|lead| lead.to_str() == Some(&self.netns)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A workload of the mesh outside of the cluster that accepts HBONE's connections, and nothing more.
struct Silent(TcpListener);

impl Silent {
    fn enrol(mesh: &Meshed) -> Result<Self> {
        let kubectl = mesh.kubectl();
        kubectl.apply(&std::fs::read_to_string(release::chart("crds/workloadentries.yaml"))?)?;
        let kind = "customresourcedefinition/workloadentries.networking.istio.io";
        kubectl.wait("default", kind, "condition=Established", WITHIN)?;
        let netns = mesh.cluster.outside_netns();
        netns.ip(&format!("addr replace {STALLING}/32 dev lo"))?;
        let listener = netns.enter(|| TcpListener::bind((STALLING, 15008)))??;
        listener.set_nonblocking(true)?;
        let entry = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {"name": "silent", "namespace": "handshakes"}, "spec": {"address": STALLING},
        });
        kubectl.apply(&entry.to_string())?;
        mesh.signet.engine("n1")?.wait_for_workload("handshakes", "silent", "is known", |_| true)?;
        Ok(Self(listener))
    }

    fn accept(&self) -> Result<TcpStream> {
        let (stream, _) = wait::until("the engine connects", WITHIN, || Ok(self.0.accept()?))?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

/// What comes first.
fn said(connection: &mut TcpStream) -> Result<Vec<u8>> {
    connection.set_read_timeout(Some(WITHIN))?;
    let mut bytes = vec![0; 4096];
    let length = connection.read(&mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// What comes before the connection ends.
fn until_the_end(connection: &mut TcpStream) -> Result<Vec<u8>> {
    connection.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut bytes = Vec::new();
    wait::until("the connection ends", WITHIN, || match connection.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => bail!(error),
        _ => Ok(()),
    })?;
    Ok(bytes)
}

const IMAGE: &str = "signet-workload";
/// On the link of the nodes, and nobody else's.
const STALLING: &str = "10.77.0.99";
/// RFC 8446 §5.1, `ContentType`.
const TLS_HANDSHAKE: u8 = 22;
