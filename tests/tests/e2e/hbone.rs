//! HBONE peers that are not Signet: strange ones by a bare client, a well-behaved one by Envoy, in both directions.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use signet_testkit::envoy::Envoy;
use signet_testkit::hbone::{Answer, connect};
use signet_testkit::mesh::Mesh;
use signet_testkit::need::Need;
use signet_testkit::pod::PodSpec;
use signet_testkit::svid::Svid;
use time::{Duration, OffsetDateTime};

use crate::connect::{Pair, allow};
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    a_peer_with_an_svid_gets_through_and_is_authorised_by_it,
    a_connect_to_anything_but_the_dialled_pod_is_a_400,
    whoever_has_no_acceptable_svid_gets_no_answer,
);

/// Their Envoys run on nodes without an engine.
pub(crate) const ENVOY_TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Tool("envoy")] =>
    envoy_reaches_a_signet_workload_as_an_hbone_client,
    signet_reaches_envoy_as_an_hbone_server,
);

fn a_peer_with_an_svid_gets_through_and_is_authorised_by_it() -> Result<()> {
    let mesh = shared::mesh()?;
    let peer = Peer::start(&mesh, "bare")?;
    let answer = peer.ask(Some(&peer.svid), &peer.pair.v4())?;
    ensure!(answer.status == 200, "{answer:?}");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(text.ends_with("hello") && text.contains("\"peer\""), "through the tunnel came {text:?}");
    mesh.apply("bare", &allow("bare", "server", "spiffe://cluster.local/ns/bare/sa/somebody-else"))?;
    let answer = peer.ask(Some(&peer.svid), &peer.pair.v4())?;
    ensure!(answer.status == 401, "{answer:?}");
    Ok(())
}

fn a_connect_to_anything_but_the_dialled_pod_is_a_400() -> Result<()> {
    let mesh = shared::mesh()?;
    let peer = Peer::start(&mesh, "authority")?;
    let engine_port = format!("{}:15008", peer.pair.server.ipv4());
    for authority in
        [&peer.other, "127.0.0.1:8080", &engine_port, "no-such-service.authority.svc.cluster.local:80"]
    {
        let answer = peer.ask(Some(&peer.svid), authority)?;
        ensure!(answer.status == 400, "{authority}: {answer:?}");
    }
    let answer = peer.ask(Some(&peer.svid), &format!("{}:9", peer.pair.server.ipv4()))?;
    ensure!(answer.status == 503, "a port without a listener: {answer:?}");
    let answer = peer.ask(Some(&peer.svid), &peer.pair.v4())?;
    ensure!(answer.status == 200, "after all of that: {answer:?}");
    Ok(())
}

fn whoever_has_no_acceptable_svid_gets_no_answer() -> Result<()> {
    let mesh = shared::mesh()?;
    let peer = Peer::start(&mesh, "impostor")?;
    let id = peer.pair.client.spiffe_id();
    let now = OffsetDateTime::now_utc();
    let ca = &mesh.ca;
    let impostors = [
        ("no certificate", None),
        ("another trust domain", Some(ca.forge(&["spiffe://elsewhere.test/ns/impostor/sa/client"])?)),
        ("two URI SANs", Some(ca.forge(&[&id, "spiffe://cluster.local/ns/impostor/sa/other"])?)),
        ("no URI SAN", Some(ca.forge(&[])?)),
        ("an https URI", Some(ca.forge(&["https://cluster.local/ns/impostor/sa/client"])?)),
        ("expired", Some(ca.forge_valid(&[&id], now - Duration::hours(2), now - Duration::hours(1))?)),
        ("not valid yet", Some(ca.forge_valid(&[&id], now + Duration::hours(1), now + Duration::hours(2))?)),
        ("a foreign root", Some(Svid::self_made(&id)?)),
    ];
    for (what, svid) in &impostors {
        let answer = peer.ask(svid.as_ref(), &peer.pair.v4());
        ensure!(answer.is_err(), "{what}: {answer:?}");
    }
    // The control: what the forge makes is good where nothing was bent.
    let answer = peer.ask(Some(&ca.forge(&[&id])?), &peer.pair.v4())?;
    ensure!(answer.status == 200, "{answer:?}");
    let failed =
        mesh.n2.metrics()?.sum("istio_tcp_connections_failed_total", &[("response_flags", "TLS_FAILURE")]);
    ensure!(failed >= impostors.len() as f64, "only {failed} of them are in the metrics");
    Ok(())
}

fn envoy_reaches_a_signet_workload_as_an_hbone_client() -> Result<()> {
    let mesh = shared::mesh()?;
    let server = mesh.n2.pod(PodSpec::new("envoy-client", "server"))?;
    let node = mesh.bed.node("envoy1")?;
    let client = node.pod(PodSpec::new("envoy-client", "envoy"))?;
    mesh.settle(&[&server, &client])?;
    mesh.apply("envoy-client", &allow("envoy-client", "server", &client.spiffe_id()))?;
    let _serving = server.serve(8080)?;
    let svid = mesh.ca.svid(node.name(), &client.spiffe_id())?;
    let _envoy = Envoy::client(&client, &svid, 9000, &server, 8080)?;
    let report = client.dial("127.0.0.1:9000", &[])?;
    let (_, greeting) = report.answered()?;
    ensure!(greeting.local.to_string() == format!("{}:8080", server.ipv4()), "{greeting:?}");
    ensure!(greeting.peer.ip().to_string() == client.ipv4(), "{greeting:?}");
    Ok(())
}

/// The pod is enrolled, so its peers use HBONE; its node runs no engine, so what answers on 15008 is Envoy.
fn signet_reaches_envoy_as_an_hbone_server() -> Result<()> {
    let mesh = shared::mesh()?;
    let client = mesh.n1.pod(PodSpec::new("envoy-server", "client"))?;
    let node = mesh.bed.node("envoy2")?;
    let server = node.pod(PodSpec::new("envoy-server", "envoy"))?;
    mesh.settle(&[&client, &server])?;
    let _serving = server.serve(8080)?;
    let svid = mesh.ca.svid(node.name(), &server.spiffe_id())?;
    let envoy = Envoy::server(&server, &svid, 8080)?;
    let report = client.dial(&format!("{}:8080", server.ipv4()), &[])?;
    report.answered()?;
    let id = format!("dst.identity=\"{}\"", server.spiffe_id());
    mesh.n1.wait_for_log(&[&id, "direction=\"outbound\""])?;
    drop(envoy);
    // Secure naming: the same address under another workload's SVID is not the workload.
    let impostor = mesh.ca.forge(&["spiffe://cluster.local/ns/envoy-server/sa/impostor"])?;
    let _envoy = Envoy::server(&server, &impostor, 8080)?;
    client.dial(&format!("{}:8080", server.ipv4()), &[])?.refused().context("an impostor on 15008")?;
    Ok(())
}

/// A bare client on the first node's host, which presents the SVIDs that it is given.
struct Peer {
    pair: Pair,
    svid: Svid,
    /// A pod on the same node as the server.
    other: String,
    from: std::path::PathBuf,
}

impl Peer {
    fn start(mesh: &Mesh, namespace: &str) -> Result<Self> {
        let pair = Pair::start(mesh, namespace)?;
        let svid = mesh.ca.svid("n1", &pair.client.spiffe_id())?;
        let other = mesh.n2.pod(PodSpec::new(namespace, "other"))?;
        let other = format!("{}:8080", other.ipv4());
        Ok(Self { pair, svid, other, from: mesh.n1.host().netns().path() })
    }

    fn ask(&self, svid: Option<&Svid>, authority: &str) -> Result<Answer> {
        let to: SocketAddr = format!("{}:15008", self.pair.server.ipv4()).parse()?;
        connect(&self.from, to, svid, authority, "hello")
    }
}
