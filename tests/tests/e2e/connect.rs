//! Every way an application opens a connection ends in mTLS on the wire, and looks to both ends as if it had not.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use signet_testkit::capture::Capture;
use signet_testkit::mesh::Mesh;
use signet_testkit::need::Need;
use signet_testkit::pod::{Enrolment, Pod, PodSpec};
use signet_testkit::probe::Report;
use signet_testkit::process::{Place, Process, stdout};

use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("tcpdump")] =>
    every_kind_of_connect_crosses_the_link_as_mtls,
    a_socket_that_is_bound_first_is_captured_too,
    a_pod_without_ipv6_or_without_ipv4_peers_is_served,
    connections_between_pods_of_one_node_carry_their_identities,
    a_connection_to_itself_stays_in_the_pod,
    the_engines_own_ports_refuse_whoever_was_not_captured,
    a_child_cgroup_keeps_the_identity_of_its_pod,
    a_privileged_process_cannot_route_around_the_capture,
    a_server_outside_the_mesh_is_reached_in_clear,
    udp_passes_and_is_counted,
    udp_is_refused_where_the_node_says_so,
);

fn every_kind_of_connect_crosses_the_link_as_mtls() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "kinds")?;
    let capture = Capture::start(mesh.n1.host(), "eth0", "kinds")?;
    for kind in ["blocking", "non-blocking", "fast-open", "fast-open-connect", "io-uring", "mptcp", "mapped"]
    {
        let report = pair.client.dial(&pair.v4(), &["--kind", kind, "--text", MARKER])?;
        pair.check(&report, pair.client.ipv4(), &pair.v4()).with_context(|| kind.to_owned())?;
    }
    for kind in ["blocking", "non-blocking", "fast-open", "io-uring", "mptcp"] {
        let report = pair.client.dial(&pair.v6(), &["--kind", kind, "--text", MARKER])?;
        pair.check(&report, pair.client.ipv6(), &pair.v6()).with_context(|| format!("{kind}, IPv6"))?;
    }
    let packets = capture.stop()?;
    ensure!(!packets.contain(MARKER.as_bytes()), "the payload crossed the link in clear");
    ensure!(packets.tls_records() > 0, "no TLS on the link");
    Ok(())
}

fn a_socket_that_is_bound_first_is_captured_too() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "bound")?;
    let capture = Capture::start(mesh.n1.host(), "eth0", "bound")?;
    let from = format!("{}:0", pair.client.ipv4());
    let from_v6 = format!("[{}]:0", pair.client.ipv6());
    for (to, ip, option) in [
        (pair.v4(), pair.client.ipv4(), ["--from", &from]),
        (pair.v6(), pair.client.ipv6(), ["--from", &from_v6]),
        (pair.v4(), pair.client.ipv4(), ["--device", "eth0"]),
        (pair.v6(), pair.client.ipv6(), ["--device", "eth0"]),
    ] {
        let report = pair.client.dial(&to, &[&option[..], &["--text", MARKER]].concat())?;
        pair.check(&report, ip, &to).with_context(|| format!("{option:?} to {to}"))?;
    }
    ensure!(!capture.stop()?.contain(MARKER.as_bytes()), "the payload crossed the link in clear");
    Ok(())
}

fn a_pod_without_ipv6_or_without_ipv4_peers_is_served() -> Result<()> {
    let mesh = shared::mesh()?;
    let client = mesh.n1.pod(PodSpec::new("single", "client"))?;
    let server = mesh.n2.pod_without_manifest(PodSpec::new("single", "server"))?;
    let netns = server.netns().context("a pod of its own")?;
    netns.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))??;
    server.publish()?;
    mesh.settle(&[&client, &server])?;
    let _running = server.serve(8080)?;
    client.dial(&format!("{}:8080", server.ipv4()), &[])?.answered()?;
    client.dial(&format!("[{}]:8080", server.ipv6()), &[])?.refused()?;
    Ok(())
}

fn connections_between_pods_of_one_node_carry_their_identities() -> Result<()> {
    let mesh = shared::mesh()?;
    let client = mesh.n1.pod(PodSpec::new("same-node", "client"))?;
    let server = mesh.n1.pod(PodSpec::new("same-node", "server"))?;
    let stranger = mesh.n1.pod(PodSpec::new("same-node", "stranger"))?;
    mesh.settle(&[&client, &server, &stranger])?;
    mesh.apply("same-node", &allow("same-node", "server", &client.spiffe_id()))?;
    let _running = server.serve(8080)?;
    for (to, ip) in [
        (format!("{}:8080", server.ipv4()), client.ipv4()),
        (format!("[{}]:8080", server.ipv6()), client.ipv6()),
    ] {
        let report = client.dial(&to, &[])?;
        let (_, greeting) = report.answered()?;
        ensure!(greeting.peer.ip().to_string() == ip, "the server saw {greeting:?}");
        stranger.dial(&to, &[])?.refused()?;
    }
    Ok(())
}

fn a_connection_to_itself_stays_in_the_pod() -> Result<()> {
    let mesh = shared::mesh()?;
    let pod = mesh.n1.pod(PodSpec::new("itself", "pod"))?;
    mesh.settle(&[&pod])?;
    // Nobody is allowed in, not even itself: what is answered did not pass the engine.
    mesh.apply("itself", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: itself, namespace: itself}\nspec: {}\n")?;
    let _running = pod.serve(8080)?;
    for to in [format!("{}:8080", pod.ipv4()), format!("[{}]:8080", pod.ipv6())] {
        let report = pod.dial(&to, &[])?;
        let (_, greeting) = report.answered().with_context(|| to.clone())?;
        ensure!(greeting.local.to_string() == to, "{greeting:?}");
    }
    for to in ["127.0.0.1:8080", "[::1]:8080"] {
        pod.dial(to, &[])?.answered().with_context(|| to.to_owned())?;
    }
    Ok(())
}

fn the_engines_own_ports_refuse_whoever_was_not_captured() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "ports")?;
    for to in ["127.0.0.1:15001", "[::1]:15001", "127.0.0.1:15006"] {
        let report = pair.client.dial(to, &["--text", ""])?;
        report.refused().with_context(|| to.to_owned())?;
    }
    for port in [15001, 15006] {
        let report = pair.client.dial(&format!("{}:{port}", pair.server.ipv4()), &[])?;
        report.refused().with_context(|| format!("port {port} of the server"))?;
    }
    Ok(())
}

fn a_child_cgroup_keeps_the_identity_of_its_pod() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "child")?;
    mesh.apply("child", &allow("child", "server", &pair.client.spiffe_id()))?;
    let cgroup = pair.client.cgroup().child("init.scope/mine")?;
    let place = Place { cgroup: cgroup.path().to_owned(), ..pair.client.place().clone() };
    let probe = signet_testkit::binaries::path("signet-probe")?;
    let text = stdout(&place.exec(&[probe.to_str().context("UTF-8")?, "dial", &pair.v4()])?)?;
    let report: Report = serde_json::from_str(&text)?;
    pair.check(&report, pair.client.ipv4(), &pair.v4())
}

fn a_privileged_process_cannot_route_around_the_capture() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "netadmin")?;
    // What a container with CAP_NET_ADMIN can do to iptables, it can do to the rules the engine made.
    pair.client.run(&[
        "sh",
        "-c",
        "ip rule del fwmark 0x513 2>/dev/null; ip -6 rule del fwmark 0x513 2>/dev/null; \
        ! command -v iptables || iptables -t nat -F; ! command -v nft || nft flush ruleset; true",
    ])?;
    let capture = Capture::start(mesh.n1.host(), "eth0", "netadmin")?;
    let report = pair.client.dial(&pair.v4(), &["--text", MARKER])?;
    pair.check(&report, pair.client.ipv4(), &pair.v4())?;
    ensure!(!capture.stop()?.contain(MARKER.as_bytes()), "the payload crossed the link in clear");
    Ok(())
}

/// Outside the mesh there is nobody to speak mTLS with: both families pass in clear, under the client's address.
fn a_server_outside_the_mesh_is_reached_in_clear() -> Result<()> {
    let mesh = shared::mesh()?;
    let client = mesh.n1.pod(PodSpec::new("outside", "client"))?;
    let server = mesh.n2.pod(PodSpec::new("outside", "server").enrolment(Enrolment::OptOut))?;
    mesh.settle(&[&client, &server])?;
    let _running = server.serve(8080)?;
    for (to, ip) in [
        (format!("{}:8080", server.ipv4()), client.ipv4()),
        (format!("[{}]:8080", server.ipv6()), client.ipv6()),
    ] {
        let report = client.dial(&to, &[])?;
        let (peer, greeting) = report.answered()?;
        ensure!(peer.to_string() == to, "the client's getpeername says {peer}");
        ensure!(greeting.peer.ip().to_string() == ip, "the server saw {greeting:?}");
    }
    client.dial(&format!("{}:8081", server.ipv4()), &[])?.refused()?;
    Ok(())
}

fn udp_passes_and_is_counted() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "udp")?;
    let before = udp_sockets(&mesh, "pass")?;
    pair.client.dial(&pair.v4(), &["--kind", "udp"])?.answered()?;
    let after = udp_sockets(&mesh, "pass")?;
    ensure!(after > before, "unprotected traffic was not counted: {before} before, {after} after");
    Ok(())
}

fn udp_is_refused_where_the_node_says_so() -> Result<()> {
    let mesh = Mesh::start_with("24h", &json!({"capture": {"unprotected": "deny"}}))?;
    let pair = Pair::start(&mesh, "no-udp")?;
    pair.client.dial(&pair.v4(), &["--kind", "udp"])?.refused()?;
    ensure!(udp_sockets(&mesh, "deny")? > 0.0, "what was refused was not counted");
    pair.client.dial(&pair.v4(), &[])?.answered().context("TCP is protected, and goes on")?;
    Ok(())
}

fn udp_sockets(mesh: &Mesh, action: &str) -> Result<f64> {
    let labels = [("protocol", "udp"), ("action", action)];
    Ok(mesh.n1.metrics()?.sum("signet_unprotected_sockets_total", &labels))
}

/// A client on the first node and a serving pod on the second, in a namespace of their own.
pub(crate) struct Pair {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    serving: Process,
}

impl Pair {
    pub(crate) fn start(mesh: &Mesh, namespace: &str) -> Result<Self> {
        let client = mesh.n1.pod(PodSpec::new(namespace, "client"))?;
        let server = mesh.n2.pod(PodSpec::new(namespace, "server"))?;
        mesh.settle(&[&client, &server])?;
        let serving = server.serve(8080)?;
        Ok(Self { client, server, serving })
    }

    /// The server, by IPv4.
    pub(crate) fn v4(&self) -> String {
        format!("{}:8080", self.server.ipv4())
    }

    /// The server, by IPv6.
    pub(crate) fn v6(&self) -> String {
        format!("[{}]:8080", self.server.ipv6())
    }

    /// Client, server, and the process that serves.
    pub(crate) fn into_parts(self) -> (Pod, Pod, Process) {
        (self.client, self.server, self.serving)
    }

    /// Both ends saw each other, as if nothing were between them.
    fn check(&self, report: &Report, client_ip: &str, to: &str) -> Result<()> {
        let Report::Answered { peer, greeting, echo } = report else { bail!("no answer: {report:?}") };
        ensure!(peer.to_string() == to, "the client's getpeername says {peer}");
        ensure!(greeting.peer.ip().to_string() == client_ip, "the server saw {greeting:?}");
        ensure!(greeting.local.to_string() == to, "the server saw {greeting:?}");
        ensure!(!echo.is_empty(), "nothing came back");
        Ok(())
    }
}

/// An ALLOW for one principal on the workload `app`.
pub(crate) fn allow(namespace: &str, app: &str, spiffe_id: &str) -> String {
    let principal = spiffe_id.trim_start_matches("spiffe://");
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {namespace}-{app}, namespace: {namespace}}}\n\
         spec: {{selector: {{matchLabels: {{app: {app}}}}}, action: ALLOW, rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]}}\n"
    )
}

const MARKER: &str = "the-payload-that-must-not-be-seen";
