//! What TCP promises to an application, on every path that its bytes can take: the native tunnel, HBONE, and past the engine.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use signet_testkit::memory::Memory;
use signet_testkit::mesh::{Mesh, rows};
use signet_testkit::need::Need;
use signet_testkit::nginx::{self, Nginx};
use signet_testkit::node::Node;
use signet_testkit::pod::{Pod, PodSpec};
use signet_testkit::process::Process;
use signet_testkit::wait;

use crate::Test;
use crate::native::paths;

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    a_reset_reaches_the_other_end_on_every_path,
    three_hundred_short_connections_are_answered_over_hbone,
);

pub(crate) const BULK_TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("socat"), Need::Program("curl"), Need::Program("nginx")] =>
    a_gibibyte_arrives_whole_in_both_directions,
    a_slow_reader_costs_bounded_memory_on_every_path,
);

fn a_reset_reaches_the_other_end_on_every_path() -> Result<()> {
    PATHS.into_iter().try_for_each(|path| {
        let route = Route::start(path)?;
        let (echoing, _resetting) = (route.server.serve(8080)?, route.server.serve_resets(8081)?);
        let (echo, reset) = (route.to(8080), route.to(8081));
        route.learn(&echo, || route.client.dial(&echo, &[])?.answered().map(drop))?;
        route.learn(&reset, || route.client.dial(&reset, &[])?.refused().map(drop))?;
        route.client.abort(&echo)?;
        echoing.wait_for_line(&["broken: ConnectionReset"], PATIENCE).context("the server is told")?;
        let report = route.client.dial(&reset, &[])?;
        let error = report.refused()?;
        ensure!(error == "ConnectionReset", "{path}: the client saw {error}");
        // Neither has broken more than itself.
        route.client.dial(&echo, &[])?.answered().map(drop).context(path)
    })
}

fn three_hundred_short_connections_are_answered_over_hbone() -> Result<()> {
    let route = Route::start("hbone")?;
    let _echoing = route.server.serve(8080)?;
    for number in 0..300 {
        let report = route.client.dial(&route.to(8080), &["--text", &format!("echo {number}")])?;
        report.answered().with_context(|| format!("connection {number}"))?;
    }
    Ok(())
}

/// Past the engine is in `direct.rs`.
fn a_gibibyte_arrives_whole_in_both_directions() -> Result<()> {
    ["native", "hbone"].into_iter().try_for_each(|path| {
        let route = Route::start(path)?;
        copy_a_gibibyte(&route.client, &route.server).context(path)?;
        copy_a_gibibyte(&route.server, &route.client).context(path)
    })
}

fn copy_a_gibibyte(from: &Pod, to: &Pod) -> Result<()> {
    let (sent, received) = (from.directory()?.join("sent"), to.directory()?.join("received"));
    let expected = nginx::write_noise(&sent, 1024)?;
    let mut receiver = receive(to, 9002, &received)?;
    let target = format!("TCP:{}:9002", to.ipv4());
    from.run(&["socat", "-u", "-b131072", &format!("OPEN:{}", sent.display()), &target])?;
    receiver.wait(Duration::from_secs(180))?;
    ensure!(nginx::sha256(&received)? == expected, "1 GiB from {} arrived damaged", from.name());
    fs::remove_file(&sent)?;
    Ok(fs::remove_file(&received)?)
}

/// One connection to the port goes into the file; it listens when this returns.
pub(crate) fn receive(pod: &Pod, port: u16, file: &Path) -> Result<Process> {
    let into = format!("OPEN:{},creat,trunc", file.display());
    let listen = format!("TCP-LISTEN:{port},reuseaddr");
    let receiver = pod.spawn("socat", &["socat", "-u", "-b131072", &listen, &into])?;
    wait::until("socat listens", PATIENCE, || {
        let listening = pod.run(&["ss", "-Hltn", &format!("sport = :{port}")])?;
        ensure!(!listening.is_empty(), "it does not");
        Ok(())
    })?;
    Ok(receiver)
}

/// Ten downloads whose readers take a small part of what the server would send.
fn a_slow_reader_costs_bounded_memory_on_every_path() -> Result<()> {
    PATHS.into_iter().try_for_each(|path| slow_readers(path).context(path))
}

fn slow_readers(path: &'static str) -> Result<()> {
    let route = Route::start(path)?;
    let web = Nginx::start(&route.server, "page\n")?;
    web.put_noise("noise", 64)?;
    let url = format!("http://{}/noise", route.server.ipv4());
    let fetch = || route.client.run(&["curl", "-sS", "-o", "/dev/null", &url]).map(drop);
    fetch()?;
    route.learn(&route.to(80), fetch)?;
    let before = route.anonymous_mib()?;
    let slow = ["curl", "-sS", "--limit-rate", "1M", "-o", "/dev/null", &url];
    let readers: Vec<_> = (0..10).map(|_| route.client.spawn("curl", &slow)).collect::<Result<_>>()?;
    wait::until("all of them read", Duration::from_secs(20), || {
        let ways = paths(&route.mesh.n1)?;
        ensure!(ways.len() == 10 && ways.iter().all(|way| way == path), "{ways:?}");
        let view = route.mesh.n1.signet(&["connections"])?;
        let moving = rows(&view).filter(|row| row["received"].as_u64() > Some(2 << 20)).count();
        ensure!(moving == 10, "{moving} do");
        Ok(())
    })?;
    for (before, now) in before.into_iter().zip(route.anonymous_mib()?) {
        ensure!(now - before < bound(path), "a node grew from {before} to {now} MiB");
    }
    drop(readers);
    Ok(())
}

/// MiB for ten readers.
fn bound(path: &str) -> f64 {
    match path {
        // The window of an HTTP/2 connection is 16 MiB, and what is sent and not acknowledged is kept beside it.
        "hbone" => 32.0,
        // Two blocks of 132 KiB for each direction that waits, and as much again for the allocator.
        _ => 12.0,
    }
}

/// A client and a server between whom bytes take one path, on a mesh of their own.
struct Route {
    client: Pod,
    server: Pod,
    path: &'static str,
    mesh: Mesh,
}

impl Route {
    fn start(path: &'static str) -> Result<Self> {
        let tunnel = if path == "hbone" { "hbone" } else { "auto" };
        let mesh = Mesh::start_with("24h", &json!({"mesh": {"tunnel": tunnel}}))?;
        let to = if path == "direct" { &mesh.n1 } else { &mesh.n2 };
        let (client, server) =
            (mesh.n1.pod(PodSpec::new(path, "client"))?, to.pod(PodSpec::new(path, "server"))?);
        mesh.settle(&[&client, &server])?;
        Ok(Self { client, server, path, mesh })
    }

    fn to(&self, port: u16) -> String {
        format!("{}:{port}", self.server.ipv4())
    }

    /// Between nodes every connection takes the path. Past the engine only those do that follow a first one.
    fn learn(&self, to: &str, connect: impl Fn() -> Result<()>) -> Result<()> {
        if self.path != "direct" {
            return Ok(());
        }
        wait::until(&format!("a connection to {to} is direct"), PATIENCE, || {
            connect()?;
            let log = self.mesh.n1.engine_log()?;
            let is_direct = |line: &str| {
                line.contains("direction=\"direct\"") && line.contains(&format!("dst.addr={to} "))
            };
            ensure!(log.lines().any(is_direct), "none was");
            Ok(())
        })
    }

    fn anonymous_mib(&self) -> Result<Vec<f64>> {
        let of = |node: &Node| Ok(Memory::of(node.engine_pid()?)?.anonymous as f64 / 1024.0);
        self.mesh.nodes().into_iter().map(of).collect()
    }
}

const PATHS: [&str; 3] = ["native", "hbone", "direct"];
/// A generous bound for a busy machine; what is promised is that it happens at all.
const PATIENCE: Duration = Duration::from_secs(15);
