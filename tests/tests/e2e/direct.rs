//! Workloads of one node: the first connection goes through the engine, the next ones by themselves, and what is true of
//! the others is true of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::mesh::{Mesh, rows};
use signet_testkit::need::Need;
use signet_testkit::node::Node;
use signet_testkit::pod::{Enrolment, Pod, PodSpec};
use signet_testkit::probe::Report;
use signet_testkit::process::Process;
use signet_testkit::wait;

use crate::connect::allow;
use crate::paths::receive;
use crate::policy::peer_authentication;
use crate::services::service;
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    the_second_connection_goes_past_the_engine,
    every_kind_of_connect_goes_past_the_engine,
    a_direct_connection_is_in_metrics_log_and_views,
    who_is_denied_is_denied_past_the_engine_too,
    a_policy_change_ends_a_direct_download,
    a_change_that_concerns_nobody_leaves_direct_connections_alone,
    strict_lets_direct_connections_in_and_nobody_else,
    either_side_can_ask_for_mtls,
    host_network_clients_and_servers_are_direct_too,
    a_workload_that_leaves_the_mesh_loses_its_direct_connections,
    the_next_pod_with_an_address_inherits_no_permit,
    a_service_leads_past_the_engine_and_spreads_as_before,
    a_service_with_affinity_leads_to_one_endpoint_by_either_way,
);

pub(crate) const RESTART_TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    direct_connections_survive_the_engine_and_are_judged_by_the_next,
    without_an_engine_nothing_new_is_direct,
    a_node_that_wants_mtls_has_nothing_direct,
);

pub(crate) const BULK_TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("socat"), Need::Program("ss")] =>
    bulk_data_arrives_whole_past_the_engine,
);

fn the_second_connection_goes_past_the_engine() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "second")?;
    for to in [scene.v4(), scene.v6()] {
        ensure!(scene.path_of(&to)? == "hbone", "the first connection is the engine's to decide");
    }
    for to in [scene.v4(), scene.v6()] {
        let (mut held, view) = scene.hold(&to)?;
        ensure!(view["source_identity"] == scene.client.spiffe_id(), "{view}");
        ensure!(view["destination_identity"] == scene.server.spiffe_id(), "{view}");
        // The engine has no socket of it: the client's peer is the server itself.
        let sockets = scene.client.run(&["ss", "-Htn", "state", "established"])?;
        ensure!(sockets.contains(&to), "{sockets}");
        held.check_alive()?;
    }
    Ok(())
}

fn every_kind_of_connect_goes_past_the_engine() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-kinds")?;
    scene.learn(&scene.v4())?;
    scene.learn(&scene.v6())?;
    let (from, from_v6) = (format!("{}:0", scene.client.ipv4()), format!("[{}]:0", scene.client.ipv6()));
    let kinds = ["blocking", "non-blocking", "fast-open", "fast-open-connect", "io-uring", "mptcp"];
    let mut attempts: Vec<_> = kinds.map(|kind| (scene.v4(), vec!["--kind", kind])).into();
    attempts.extend(kinds.map(|kind| (scene.v6(), vec!["--kind", kind])));
    attempts.extend([
        (scene.v4(), vec!["--kind", "mapped"]),
        (scene.v4(), vec!["--from", &from]),
        (scene.v6(), vec!["--from", &from_v6]),
        (scene.v4(), vec!["--device", "eth0"]),
        (scene.v6(), vec!["--device", "eth0"]),
    ]);
    for (to, options) in attempts {
        let (report, path) = scene.dial(&to, &options)?;
        let (peer, greeting) = report.answered()?;
        ensure!(peer.to_string() == to, "{options:?}: the client's getpeername says {peer}");
        let own = [scene.client.ipv4(), scene.client.ipv6()];
        ensure!(own.contains(&greeting.peer.ip().to_string().as_str()), "the server saw {greeting:?}");
        ensure!(path == "direct", "{options:?} to {to} went by {path}");
    }
    Ok(())
}

fn a_direct_connection_is_in_metrics_log_and_views() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-views")?;
    scene.learn(&scene.v4())?;
    scene.client.dial(&scene.v4(), &["--text", "ten bytes!"])?.answered()?;
    let line = mesh.n1.wait_for_log(&[
        "src.namespace=\"direct-views\"",
        "direction=\"direct\"",
        "bytes_sent=10 ",
    ])?;
    for field in [
        format!("src.identity=\"{}\"", scene.client.spiffe_id()),
        format!("dst.identity=\"{}\"", scene.server.spiffe_id()),
        format!("dst.addr={}", scene.v4()),
        "src.workload=\"client\"".into(),
        "dst.workload=\"server\"".into(),
        "duration=".into(),
    ] {
        ensure!(line.contains(&field), "no {field} in {line}");
    }
    ensure!(!line.contains("error="), "{line}");
    let (mut before, mut kept) = (0.0, None);
    // A neighbour's change of policy takes all permits back for a moment.
    wait::until("a connection goes past the engine", PATIENCE, || {
        scene.learn(&scene.v4())?;
        before = scene.counter("istio_tcp_connections_opened_total", "source")?;
        let held = scene.client.hold(&scene.v4())?;
        kept = Some((held, scene.live("direct")?));
        Ok(())
    })?;
    let (held, view) = kept.context("it stays")?;
    ensure!(view["source_workload"] == "direct-views/client" && view["direction"] == "outbound", "{view}");
    wait::until("its bytes are seen while it lives", PATIENCE, || {
        let view = scene.connection("direct")?;
        ensure!(view["sent"].as_u64() > Some(3) && view["received"].as_u64() > Some(3), "{view}");
        Ok(())
    })?;
    for reporter in ["source", "destination"] {
        let opened = scene.counter("istio_tcp_connections_opened_total", reporter)?;
        ensure!(opened == before + 1.0, "{reporter}: opened {opened}, before {before}");
    }
    drop(held);
    wait::until("it is counted as closed", PATIENCE, || {
        for reporter in ["source", "destination"] {
            let opened = scene.counter("istio_tcp_connections_opened_total", reporter)?;
            let closed = scene.counter("istio_tcp_connections_closed_total", reporter)?;
            ensure!(
                opened == before + 1.0 && closed == opened,
                "{reporter}: opened {opened}, closed {closed}"
            );
        }
        Ok(())
    })?;
    ensure!(scene.counter("istio_tcp_sent_bytes_total", "source")? > 10.0);
    Ok(())
}

fn who_is_denied_is_denied_past_the_engine_too() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-denied")?;
    let other = mesh.n1.pod(PodSpec::new("direct-denied", "other"))?;
    mesh.settle(&[&other])?;
    mesh.apply("direct-denied", &allow("direct-denied", "server", &scene.client.spiffe_id()))?;
    scene.learn(&scene.v4())?;
    for _ in 0..3 {
        other.dial(&scene.v4(), &[])?.refused()?;
        scene.client.dial(&scene.v4(), &[])?.answered()?;
    }
    Ok(())
}

fn a_policy_change_ends_a_direct_download() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-flip")?;
    let (mut held, _) = scene.hold(&scene.v4())?;
    mesh.apply("direct-flip", &policy("direct-flip", "direct-flip-deny", "action: DENY, rules: [{}]"))?;
    held.wait_for_line(&["ended"], PATIENCE)?;
    held.wait(PATIENCE)?;
    mesh.n1.wait_for_log(&[
        "direction=\"direct\"",
        "direct-flip/direct-flip-deny",
        "closed, since the policy",
    ])?;
    scene.client.dial(&scene.v4(), &[])?.refused()?;
    mesh.bed.manifests().remove("direct-flip")?;
    scene.learn(&scene.v4())
}

fn a_change_that_concerns_nobody_leaves_direct_connections_alone() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-calm")?;
    let (mut held, _) = scene.hold(&scene.v4())?;
    let through_engine = scene.lines("outbound")?;
    mesh.apply("direct-calm", &policy("direct-calm", "direct-calm-allow", "action: ALLOW, rules: [{}]"))?;
    scene.learn(&scene.v4())?;
    held.check_alive()?;
    ensure!(!held.log()?.contains("ended"), "the connection broke");
    let since = scene.lines("outbound")? - through_engine;
    ensure!(since <= 2, "{since} connections went through the engine after the change");
    Ok(())
}

fn strict_lets_direct_connections_in_and_nobody_else() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-strict")?;
    let outside = mesh.n1.pod(PodSpec::new("direct-strict", "outside").enrolment(Enrolment::OptOut))?;
    mesh.settle(&[&outside])?;
    mesh.apply("direct-strict", &strict("direct-strict"))?;
    scene.learn(&scene.v4())?;
    scene.learn(&scene.v4())?;
    outside.dial(&scene.v4(), &[])?.refused()?;
    Ok(())
}

fn either_side_can_ask_for_mtls() -> Result<()> {
    let mesh = shared::mesh()?;
    for (namespace, asks) in [("mtls-client", "client"), ("mtls-server", "server")] {
        let spec = |name: &str| {
            let spec = PodSpec::new(namespace, name);
            if name == asks { spec.label("signet.dev/same-node", "mtls") } else { spec }
        };
        let scene = Scene::of(&mesh, spec("client"), spec("server"))?;
        for _ in 0..5 {
            ensure!(scene.path_of(&scene.v4())? == "hbone", "{asks} has asked for mTLS");
        }
    }
    // Both may, until one of them says otherwise, while it runs.
    let mut scene = Scene::start(&mesh, "mtls-later")?;
    let (held, _) = scene.hold(&scene.v4())?;
    scene.server.label("signet.dev/same-node", "mtls")?;
    held.wait_for_line(&["ended"], PATIENCE)?;
    ensure!(scene.path_of(&scene.v4())? == "hbone");
    Ok(())
}

fn host_network_clients_and_servers_are_direct_too() -> Result<()> {
    let mesh = shared::mesh()?;
    let pod = |name: &str| PodSpec::new("direct-host", name);
    for (client, server, port) in [
        (pod("client").host_network(), pod("server"), 8080),
        (pod("client"), pod("server").host_network(), 18081),
        (pod("client").host_network(), pod("server").host_network(), 18082),
    ] {
        let what = format!("{client:?} to {server:?}");
        let (client, server) = (mesh.n1.pod(client)?, mesh.n1.pod(server)?);
        mesh.settle(&[&client, &server])?;
        let serving = server.serve(port)?;
        let scene = Scene { mesh: &mesh, client, server, port, _serving: serving };
        let (held, view) = scene.hold(&scene.v4()).with_context(|| what.clone())?;
        ensure!(
            view["source"].as_str().is_some_and(|source| source.starts_with(scene.client.ipv4())),
            "{what}: {view}"
        );
        drop(held);
    }
    Ok(())
}

fn a_workload_that_leaves_the_mesh_loses_its_direct_connections() -> Result<()> {
    let mesh = shared::mesh()?;
    let mut scene = Scene::start(&mesh, "direct-leaves")?;
    let (held, _) = scene.hold(&scene.v4())?;
    scene.server.enrol(Enrolment::OptOut)?;
    held.wait_for_line(&["ended"], PATIENCE)?;
    mesh.settle(&[&scene.server])?;
    scene.server.enrol(Enrolment::Ambient)?;
    mesh.settle(&[&scene.server])?;
    scene.learn(&scene.v4())
}

fn the_next_pod_with_an_address_inherits_no_permit() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-heir")?;
    let client = scene.client.spiffe_id();
    mesh.apply("direct-heir", &policy("direct-heir", "direct-heir", &only("heir-friend")))?;
    mesh.bed.manifests().remove("direct-heir")?;
    scene.learn(&scene.v4())?;
    let (to, Scene { client: pod, server, _serving, .. }) = (scene.v4(), scene);
    let addresses = server.addresses().clone();
    // Its namespace goes, its address comes back in another one, before anybody has told the engine.
    let manifests = mesh.bed.manifests();
    drop(_serving);
    drop(server);
    manifests.put("direct-heir", &policy("direct-heir", "direct-heir", &only("heir-friend")))?;
    let heir = mesh.n1.pod(PodSpec::new("direct-heir", "server").addresses(&addresses))?;
    let serving = heir.serve(8080)?;
    let (before, mut answers) = (mesh.n1.engine_log()?.len(), 0);
    for _ in 0..20 {
        answers += u64::from(pod.dial(&to, &[])?.answered().is_ok());
    }
    // Until the engine is told of the heir, its address is outside of the mesh, which is no permit's doing.
    wait::until("every answer came by the engine, from outside of the mesh", PATIENCE, || {
        let log = mesh.n1.engine_log()?;
        let is_outside = |line: &&str| {
            line.contains("direction=\"outbound\"")
                && !line.contains("dst.workload")
                && !line.contains("error=")
        };
        let lines = log[before..].lines().filter(|line| line.contains(&format!("dst.addr={to} ")));
        let outside = lines.filter(is_outside).count() as u64;
        ensure!(outside == answers, "{client} got {answers} answers, {outside} of them so");
        Ok(())
    })?;
    mesh.settle(&[&heir])?;
    let report = pod.dial(&to, &[])?;
    report.refused().context("the engine knows the heir, and the policy forbids it")?;
    drop(serving);
    Ok(())
}

fn a_service_leads_past_the_engine_and_spreads_as_before() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-vip")?;
    let far = mesh.n2.pod(PodSpec::new("direct-vip", "far"))?;
    mesh.settle(&[&far])?;
    let _serving = far.serve(8080)?;
    let endpoints = [(&scene.server, true, ""), (&far, true, "")];
    mesh.bed.manifests().put("direct-vip", &service("direct-vip", ["10.96.0.41", "fd96::41"], &endpoints))?;
    for vip in ["10.96.0.41:80", "[fd96::41]:80"] {
        let mut reached = std::collections::BTreeMap::new();
        scene.learn(vip)?;
        for _ in 0..40 {
            let report = scene.client.dial(vip, &[])?;
            let (peer, greeting) = report.answered()?;
            ensure!(peer.to_string() == vip, "the client's getpeername says {peer}");
            *reached.entry(greeting.local.to_string()).or_insert(0) += 1;
        }
        // 20 each; below 6 is once in a million runs.
        ensure!(reached.len() == 2 && reached.values().all(|count| *count >= 6), "{vip} led to {reached:?}");
    }
    let service = "dst.service=\"web.direct-vip.svc.cluster.local\"";
    mesh.n1.wait_for_log(&["direction=\"direct\"", service]).map(drop)
}

fn a_service_with_affinity_leads_to_one_endpoint_by_either_way() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-affinity")?;
    let more = ["second", "third"].map(|name| mesh.n1.pod(PodSpec::new("direct-affinity", name)));
    let [second, third] = more;
    let (second, third) = (second?, third?);
    mesh.settle(&[&second, &third])?;
    let _serving = [second.serve(8080)?, third.serve(8080)?];
    let endpoints = [(&scene.server, true, ""), (&second, true, ""), (&third, true, "")];
    let yaml = service("direct-affinity", ["10.96.0.42", "fd96::42"], &endpoints);
    let yaml = yaml.replacen("\"spec\":{", "\"spec\":{\"sessionAffinity\":\"ClientIP\",", 1);
    mesh.bed.manifests().put("direct-affinity", &yaml)?;
    let vip = "10.96.0.42:80";
    let mut reached = std::collections::BTreeSet::new();
    // The first by the engine, the last by the kernel.
    for round in 0.. {
        let client = scene.client.dial(vip, &[]);
        if let Ok((_, greeting)) = client?.answered() {
            reached.insert(greeting.local.to_string());
        }
        if round >= 10 && scene.lines("direct")? >= 5 {
            break;
        }
        ensure!(round < 100, "no connection to {vip} was direct");
    }
    ensure!(reached.len() == 1, "{reached:?}");
    Ok(())
}

fn direct_connections_survive_the_engine_and_are_judged_by_the_next() -> Result<()> {
    let mesh = Mesh::start()?;
    let scene = Scene::start(&mesh, "direct-restart")?;
    let strict = peer_authentication("direct-restart", "mtls: {mode: STRICT}");
    mesh.apply("direct-strict", &strict)?;
    let (mut held, _) = scene.hold(&scene.v4())?;
    for end in [Node::stop_engine as fn(&Node) -> Result<()>, Node::kill_engine] {
        end(&mesh.n1)?;
        mesh.n1.launch_again()?;
        mesh.n1.wait_ready()?;
        mesh.settle(&[&scene.client, &scene.server])?;
        held.check_alive()?;
        ensure!(!held.log()?.contains("ended"), "the connection broke");
        let view = scene.connection("direct")?;
        ensure!(view["destination_identity"] == scene.server.spiffe_id(), "{view}");
        ensure!(scene.path_of(&scene.v4())? == "hbone", "a restarted engine decides anew");
        // Nor does it take what it finds for connections from before the mesh, which STRICT would end.
        let earlier = mesh.n1.metrics()?.sum("signet_earlier_connections_total", &[]);
        ensure!(earlier == 0.0, "{earlier} are taken for connections from before");
    }
    mesh.n1.kill_engine()?;
    let deny = policy("direct-restart", "direct-restart-deny", "action: DENY, rules: [{}]");
    mesh.bed.manifests().put("direct-restart", &deny)?;
    mesh.n1.launch_again()?;
    held.wait_for_line(&["ended"], PATIENCE)?;
    mesh.n1.wait_for_log(&["direction=\"direct\"", "direct-restart/direct-restart-deny"]).map(drop)
}

fn without_an_engine_nothing_new_is_direct() -> Result<()> {
    let mesh = Mesh::start_with("24h", &json!({"capture": {"engineTimeout": "1s"}}))?;
    let scene = Scene::start(&mesh, "direct-alone")?;
    let (mut held, _) = scene.hold(&scene.v4())?;
    mesh.n1.kill_engine()?;
    wait::until("new connections are refused", PATIENCE, || {
        scene.client.dial(&scene.v4(), &[])?.refused().map(drop)
    })?;
    held.check_alive()?;
    ensure!(!held.log()?.contains("ended"), "the connection broke with the engine");
    Ok(())
}

fn a_node_that_wants_mtls_has_nothing_direct() -> Result<()> {
    let mesh = Mesh::start_with("24h", &json!({"mesh": {"sameNode": "mtls"}}))?;
    let scene = Scene::start(&mesh, "all-mtls")?;
    for _ in 0..5 {
        ensure!(scene.path_of(&scene.v4())? == "hbone");
    }
    let spec = |name: &str| PodSpec::new("some-direct", name).label("signet.dev/same-node", "direct");
    let scene = Scene::of(&mesh, spec("client"), spec("server"))?;
    scene.learn(&scene.v4()).context("both pods say otherwise")
}

fn bulk_data_arrives_whole_past_the_engine() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "direct-bulk")?;
    let (sent, received) =
        (scene.client.directory()?.join("sent"), scene.server.directory()?.join("received"));
    let expected = signet_testkit::nginx::write_noise(&sent, 1024)?;
    let to = format!("{}:9001", scene.server.ipv4());
    for direction in ["outbound", "direct"] {
        let mut receiver = receive(&scene.server, 9001, &received)?;
        // The sender half-closes; the receiver writes what it got and ends.
        scene.client.run(&["socat", "-u", &format!("OPEN:{}", sent.display()), &format!("TCP:{to}")])?;
        receiver.wait(Duration::from_secs(60))?;
        ensure!(signet_testkit::nginx::sha256(&received)? == expected, "1 GiB arrived damaged ({direction})");
        wait::until(&format!("the log has it as {direction}"), PATIENCE, || {
            ensure!(scene.lines(direction)? == 1, "it has not");
            Ok(())
        })?;
    }
    scene.learn(&scene.v4())?;
    for _ in 0..300 {
        scene.client.dial(&scene.v4(), &["--text", "short"])?.answered()?;
    }
    let line =
        mesh.n1.wait_for_log(&["src.namespace=\"direct-bulk\"", "direct\"", "bytes_sent=1073741824 "])?;
    ensure!(line.contains("bytes_recv=0 "), "{line}");
    Ok(())
}

/// A client and a server on the first node, in a namespace of their own.
struct Scene<'m> {
    mesh: &'m Mesh,
    client: Pod,
    server: Pod,
    port: u16,
    _serving: Process,
}

impl<'m> Scene<'m> {
    fn start(mesh: &'m Mesh, namespace: &str) -> Result<Self> {
        Self::of(mesh, PodSpec::new(namespace, "client"), PodSpec::new(namespace, "server"))
    }

    fn of(mesh: &'m Mesh, client: PodSpec, server: PodSpec) -> Result<Self> {
        let (client, server) = (mesh.n1.pod(client)?, mesh.n1.pod(server)?);
        mesh.settle(&[&client, &server])?;
        let serving = server.serve(8080)?;
        Ok(Self { mesh, client, server, port: 8080, _serving: serving })
    }

    fn v4(&self) -> String {
        format!("{}:{}", self.server.ipv4(), self.port)
    }

    fn v6(&self) -> String {
        format!("[{}]:{}", self.server.ipv6(), self.port)
    }

    /// Connects until the kernel knows that it may.
    fn learn(&self, to: &str) -> Result<()> {
        wait::until(&format!("a connection to {to} is direct"), PATIENCE, || {
            let path = self.path_of(to)?;
            ensure!(path == "direct", "it goes by {path}");
            Ok(())
        })
    }

    /// A connection that stays, past the engine, and what is shown of it. A neighbour's change of policy takes all permits
    /// back for a moment, so it may take more than one attempt.
    fn hold(&self, to: &str) -> Result<(Process, Value)> {
        let mut kept = None;
        wait::until(&format!("a connection to {to} stays past the engine"), PATIENCE, || {
            self.learn(to)?;
            let held = self.client.hold(to)?;
            kept = Some((held, self.live("direct")?));
            Ok(())
        })?;
        kept.context("it stays")
    }

    /// Which way a new connection takes.
    fn path_of(&self, to: &str) -> Result<&'static str> {
        Ok(self.dial(to, &[])?.1)
    }

    /// A new connection, and which way it took, by the access log.
    fn dial(&self, to: &str, options: &[&str]) -> Result<(Report, &'static str)> {
        let [direct, engine] = [self.lines("direct")?, self.lines("outbound")?];
        let report = self.client.dial(to, options)?;
        report.answered().with_context(|| format!("{options:?} to {to}"))?;
        let mut path = "none";
        wait::until("the access log has the connection", PATIENCE, || {
            path = if self.lines("direct")? > direct { "direct" } else { "hbone" };
            ensure!(path == "direct" || self.lines("outbound")? > engine, "it has not");
            Ok(())
        })?;
        Ok((report, path))
    }

    /// How many connections of this scene's client the log has, of those that took that way.
    fn lines(&self, direction: &str) -> Result<usize> {
        let client =
            format!("src.workload=\"{}\" src.namespace=\"{}\"", self.client.name(), self.client.namespace());
        let direction = format!("direction=\"{direction}\"");
        let log = self.mesh.n1.engine_log()?;
        Ok(log.lines().filter(|line| line.contains(&client) && line.contains(&direction)).count())
    }

    fn counter(&self, name: &str, reporter: &str) -> Result<f64> {
        let labels = self.labels(reporter, "same_node");
        let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Ok(self.mesh.n1.metrics()?.sum(name, &labels))
    }

    fn labels(&self, reporter: &str, security: &str) -> Vec<(&'static str, String)> {
        vec![
            ("reporter", reporter.to_owned()),
            ("source_workload_namespace", self.client.namespace().to_owned()),
            ("source_principal", self.client.spiffe_id()),
            ("destination_principal", self.server.spiffe_id()),
            ("connection_security_policy", security.to_owned()),
        ]
    }

    /// The live connection of this scene's client that takes that path.
    fn connection(&self, path: &str) -> Result<Value> {
        let mut found = Value::Null;
        wait::until(&format!("signet connections shows one by {path}"), PATIENCE, || {
            found = self.live(path)?;
            Ok(())
        })?;
        Ok(found)
    }

    /// The same, as it is now.
    fn live(&self, path: &str) -> Result<Value> {
        let source = format!("{}/{}", self.client.namespace(), self.client.name());
        let view = self.mesh.n1.signet(&["connections"])?;
        let row = rows(&view).find(|row| row["source_workload"] == *source && row["path"] == path);
        row.cloned().with_context(|| format!("signet connections shows {view}"))
    }
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{selector: {{matchLabels: {{app: server}}}}, {spec}}}\n"
    )
}

fn only(account: &str) -> String {
    format!(
        "action: ALLOW, rules: [{{from: [{{source: {{principals: [cluster.local/ns/direct-heir/sa/{account}]}}}}]}}]"
    )
}

fn strict(namespace: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: {namespace}, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    )
}

/// A generous bound for a busy machine; what is promised is that it happens at all.
const PATIENCE: Duration = Duration::from_secs(15);
