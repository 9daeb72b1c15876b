//! Connections that were open before their workload was in the mesh: told of, and ended where policy lets no clear text in.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use signet_testkit::mesh::{Mesh, rows};
use signet_testkit::need::Need;
use signet_testkit::node::Node;
use signet_testkit::pod::{Enrolment, Pod, PodSpec};
use signet_testkit::process::Process;
use signet_testkit::wait;

use crate::policy::peer_authentication;
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    permissive_tells_of_what_was_open_before_and_strict_ends_it,
    engines_that_come_last_end_what_strict_forbids_and_nothing_else,
);

fn permissive_tells_of_what_was_open_before_and_strict_ends_it() -> Result<()> {
    let mesh = shared::mesh()?;
    let mut scene = Scene::start(&mesh, "earlier")?;
    let [mut strict, mut strict_v6, mut permissive, mut outside] = scene.hold_all()?;
    scene.enrol()?;
    for (node, direction) in [(&mesh.n1, "outbound"), (&mesh.n2, "inbound")] {
        wait::until(&format!("what was open before is listed {direction}"), PATIENCE, || {
            let seen = earlier(node, "earlier")?;
            // Of what goes out of the mesh nothing is said.
            ensure!(seen.len() == 3 && seen.iter().all(|row| row["direction"] == direction), "{seen:?}");
            let ends = |row: &Value| {
                row["source_workload"] == "earlier/client" && row["destination_workload"] == "earlier/server"
            };
            ensure!(seen.iter().all(ends), "{seen:?}");
            ensure!(seen.iter().all(|row| row["source_identity"].is_null()), "{seen:?}");
            ensure!(seen.iter().all(|row| row["sent"].as_u64() > Some(3)), "{seen:?}");
            Ok(())
        })?;
        node.wait_for_log(&["from before the workload was captured", "earlier", direction, "count=3"])?;
    }
    for held in [&mut strict, &mut strict_v6, &mut permissive, &mut outside] {
        lives(held)?;
    }
    let spec = "selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: PERMISSIVE}}";
    mesh.apply("earlier", &peer_authentication("earlier", spec))?;
    for held in [&mut strict, &mut strict_v6] {
        held.wait_for_line(&["ended"], PATIENCE)?;
    }
    for node in mesh.nodes() {
        wait::until("the permissive port's is left", PATIENCE, || {
            let seen = earlier(node, "earlier")?;
            ensure!(seen.len() == 1 && seen[0]["destination"] == scene.to(9090), "{seen:?}");
            Ok(())
        })?;
    }
    lives(&mut permissive)?;
    lives(&mut outside)?;
    // Either end may have been first, and the other has nothing left to end then.
    let closed = mesh.nodes().map(|node| counted(node, "closed"));
    let closed: f64 = closed.into_iter().sum::<Result<f64>>()?;
    ensure!(closed >= 2.0, "{closed} are counted as closed");
    scene.client.dial(&scene.to(8080), &[])?.answered().context("a new one")?;
    let name = format!("dst.identity=\"{}\"", scene.server.spiffe_id());
    mesh.n1.wait_for_log(&["src.namespace=\"earlier\"", &name]).map(drop)
}

/// A machine that boots starts its engine last. And one that is started again takes nothing of its predecessor's for such.
fn engines_that_come_last_end_what_strict_forbids_and_nothing_else() -> Result<()> {
    let mesh = Mesh::without_engines("24h")?;
    let mut strict = Scene::start(&mesh, "strict-first")?;
    let mut permissive = Scene::start(&mesh, "permissive")?;
    let [mut first, mut v6, mut other_port, mut outside] = strict.hold_all()?;
    let mut let_be = permissive.hold_all()?;
    let host = mesh.n2.pod(PodSpec::new("strict-first", "host").host_network())?;
    let _serving = host.serve(7001)?;
    let mut to_host = strict.outside.hold(&format!("{}:7001", host.ipv4()))?;
    let policy = peer_authentication("strict-first", "mtls: {mode: STRICT}");
    mesh.bed.manifests().put("strict-first", &policy)?;
    strict.publish()?;
    permissive.publish()?;
    for node in mesh.nodes() {
        node.start_engine(&mesh.ca, &serde_json::json!({}))?;
    }
    for held in [&mut first, &mut v6, &mut other_port, &mut to_host] {
        held.wait_for_line(&["ended"], PATIENCE)?;
    }
    lives(&mut outside)?;
    mesh.settle(&[&strict.client, &strict.server, &host])?;
    strict.client.dial(&strict.to(8080), &[])?.answered()?;
    let relayed = strict.client.hold(&strict.to(8080))?;
    wait::until("what policy lets be is listed", PATIENCE, || {
        let seen = earlier(&mesh.n1, "")?;
        ensure!(seen.len() == 3 && earlier(&mesh.n1, "permissive")?.len() == 3, "{seen:?}");
        Ok(())
    })?;
    mesh.n2.kill_engine()?;
    relayed.wait_for_line(&["ended"], PATIENCE)?;
    mesh.n2.launch_again()?;
    mesh.n2.wait_ready()?;
    mesh.settle(&[&strict.server])?;
    wait::until("it is listed again", PATIENCE, || {
        let seen = earlier(&mesh.n2, "")?;
        ensure!(seen.len() == 3 && earlier(&mesh.n2, "permissive")?.len() == 3, "{seen:?}");
        Ok(())
    })?;
    ensure!(counted(&mesh.n2, "closed")? == 0.0, "what the engine had carried was taken for such");
    let_be.iter_mut().chain([&mut outside]).try_for_each(lives)
}

/// A client on the first node, a server on the second, neither in the mesh yet; and a server that stays outside.
struct Scene<'m> {
    mesh: &'m Mesh,
    client: Pod,
    server: Pod,
    outside: Pod,
    _serving: [Process; 3],
}

impl<'m> Scene<'m> {
    fn start(mesh: &'m Mesh, namespace: &str) -> Result<Self> {
        let spec = |name| PodSpec::new(namespace, name).enrolment(Enrolment::OptOut);
        let (client, server) = (mesh.n1.pod(spec("client"))?, mesh.n2.pod(spec("server"))?);
        let outside = mesh.n2.pod(spec("outside"))?;
        let serving = [server.serve(8080)?, server.serve(9090)?, outside.serve(8080)?];
        Ok(Self { mesh, client, server, outside, _serving: serving })
    }

    fn to(&self, port: u16) -> String {
        format!("{}:{port}", self.server.ipv4())
    }

    /// Connections of the client: to port 8080 by IPv4 and IPv6, to 9090, and out of the mesh.
    fn hold_all(&self) -> Result<[Process; 4]> {
        let hold = |to: String| {
            wait::until(&format!("a connection to {to}"), PATIENCE, || {
                self.client.dial(&to, &[])?.answered().map(drop)
            })?;
            self.client.hold(&to)
        };
        let (v6, outside) =
            (format!("[{}]:8080", self.server.ipv6()), format!("{}:8080", self.outside.ipv4()));
        Ok([hold(self.to(8080))?, hold(v6)?, hold(self.to(9090))?, hold(outside)?])
    }

    /// Says that client and server are in the mesh.
    fn publish(&mut self) -> Result<()> {
        [&mut self.client, &mut self.server].into_iter().try_for_each(|pod| pod.enrol(Enrolment::Ambient))
    }

    /// The same, and waits until both are captured.
    fn enrol(&mut self) -> Result<()> {
        self.publish()?;
        self.mesh.settle(&[&self.client, &self.server])
    }
}

/// What a node lists of these connections, of a namespace's workloads or all.
fn earlier(node: &Node, namespace: &str) -> Result<Vec<Value>> {
    let view = node.signet(&["connections"])?;
    let is_of = |row: &&Value| {
        row["path"] == "earlier"
            && row["destination_workload"].as_str().is_some_and(|name| name.starts_with(namespace))
    };
    Ok(rows(&view).filter(is_of).cloned().collect())
}

fn counted(node: &Node, result: &str) -> Result<f64> {
    Ok(node.metrics()?.sum("signet_earlier_connections_total", &[("result", result)]))
}

fn lives(held: &mut Process) -> Result<()> {
    held.check_alive()?;
    let log = held.log()?;
    ensure!(!log.contains("ended"), "the connection broke: {log}");
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(20);
