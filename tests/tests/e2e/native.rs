//! The native tunnel: who speaks it with whom, and that it carries what HBONE carries, as well.
//!
//! Two nodes with the shipped configuration speak it, so most of what the other files promise is promised of it too: policy,
//! rotation, restarts, every kind of connect. Here is what is its own.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use signet_testkit::envoy::Envoy;
use signet_testkit::mesh::{Mesh, rows};
use signet_testkit::need::Need;
use signet_testkit::nginx::{self, Nginx};
use signet_testkit::node::Node;
use signet_testkit::pod::PodSpec;
use signet_testkit::wait;

use crate::connect::Pair;
use crate::services::service;
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    two_signets_speak_native_and_one_without_it_hbone,
    three_hundred_short_connections_need_few_handshakes,
    a_crashed_application_is_passed_over_for_another_endpoint,
    a_server_engine_that_was_killed_is_met_again_after_its_restart,
);

pub(crate) const BULK_TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("curl"), Need::Program("nginx")] =>
    a_server_engine_that_stops_lets_a_running_download_finish,
);

pub(crate) const ENVOY_TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Tool("envoy")] =>
    signet_and_envoy_speak_hbone,
);

fn two_signets_speak_native_and_one_without_it_hbone() -> Result<()> {
    for (tunnels, path) in
        [(["auto", "auto"], "native"), (["auto", "hbone"], "hbone"), (["hbone", "auto"], "hbone")]
    {
        let mesh = Mesh::without_engines("24h")?;
        for (node, tunnel) in mesh.nodes().into_iter().zip(tunnels) {
            node.launch_engine(&mesh.ca, &json!({"mesh": {"tunnel": tunnel}}))?;
        }
        mesh.nodes().into_iter().try_for_each(Node::wait_ready)?;
        let pair = Pair::start(&mesh, "spoken")?;
        mesh.apply("strict", STRICT)?;
        let _open = pair.client.hold(&pair.v4())?;
        for node in mesh.nodes() {
            ensure!(paths(node)? == [path], "{tunnels:?}: {} has {:?}", node.name(), paths(node)?);
        }
        pair.client.dial(&pair.v6(), &[])?.answered().with_context(|| format!("{tunnels:?}"))?;
    }
    Ok(())
}

fn signet_and_envoy_speak_hbone() -> Result<()> {
    let mesh = Mesh::start()?;
    let client = mesh.n1.pod(PodSpec::new("spoken", "client"))?;
    let node = mesh.bed.node("envoy3")?;
    let server = node.pod(PodSpec::new("spoken", "envoy"))?;
    mesh.settle(&[&client, &server])?;
    let _serving = server.serve(8080)?;
    let svid = mesh.ca.svid(node.name(), &server.spiffe_id())?;
    let _envoy = Envoy::server(&server, &svid, 8080)?;
    let to = format!("{}:8080", server.ipv4());
    let _open = client.hold(&to)?;
    client.dial(&to, &[])?.answered()?;
    ensure!(paths(&mesh.n1)? == ["hbone"], "{:?}", paths(&mesh.n1)?);
    Ok(())
}

/// Each of them is answered, and finds a tunnel that an earlier one has left.
fn three_hundred_short_connections_need_few_handshakes() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "short")?;
    for number in 0..300 {
        let report = pair.client.dial(&pair.v4(), &["--text", &format!("echo {number}")])?;
        report.answered().with_context(|| format!("connection {number}"))?;
    }
    let established = pair.server.run(&["ss", "-Htn", "state", "established", "sport = :15008"])?;
    ensure!((1..=8).contains(&established.lines().count()), "300 connections left {established}");
    Ok(())
}

fn a_crashed_application_is_passed_over_for_another_endpoint() -> Result<()> {
    let mesh = shared::mesh()?;
    let client = mesh.n1.pod(PodSpec::new("crashed", "client"))?;
    let [dead, alive] = ["dead", "alive"].map(|name| mesh.n2.pod(PodSpec::new("crashed", name)));
    let (dead, alive) = (dead?, alive?);
    let _serving = alive.serve(8080)?;
    // The nearer zone is asked first.
    let endpoints = [(&dead, true, "zone-n1"), (&alive, true, "zone-n2")];
    mesh.bed.manifests().put("crashed-service", &service("crashed", ["10.96.0.9", "fd96::9"], &endpoints))?;
    mesh.settle(&[&client, &dead, &alive])?;
    for _ in 0..5 {
        let report = client.dial("10.96.0.9:80", &["--text", "who is there?"])?;
        let (_, greeting) = report.answered()?;
        ensure!(greeting.local.ip().to_string() == alive.ipv4(), "{greeting:?}");
    }
    mesh.n2.wait_for_log(&[
        "direction=\"inbound\"",
        &format!("{}:8080", dead.ipv4()),
        "nothing listens there",
    ])?;
    Ok(())
}

/// Killed with tunnels at rest and one in use. Who comes meanwhile waits for it.
fn a_server_engine_that_was_killed_is_met_again_after_its_restart() -> Result<()> {
    let mesh = Mesh::start()?;
    let pair = Pair::start(&mesh, "killed-server")?;
    for _ in 0..3 {
        pair.client.dial(&pair.v4(), &[])?.answered()?;
    }
    let running = pair.client.hold(&pair.v4())?;
    mesh.n2.kill_engine()?;
    running.wait_for_line(&["ended: ConnectionReset"], Duration::from_secs(10))?;
    let (waited, restarted) = thread::scope(|scope| {
        let waiting = scope.spawn(|| pair.client.dial(&pair.v4(), &[]));
        let restarted = wait::until("a client waits", Duration::from_secs(10), || {
            ensure!(paths(&mesh.n1)?.len() == 1);
            Ok(())
        })
        .and_then(|()| mesh.n2.launch_again());
        (waiting.join().expect("the client's thread does not panic"), restarted)
    });
    restarted?;
    waited?.answered().context("who came while the engine was gone")?;
    mesh.n2.wait_ready()?;
    let _open = pair.client.hold(&pair.v4())?;
    ensure!(paths(&mesh.n1)? == ["native"], "{:?}", paths(&mesh.n1)?);
    Ok(())
}

fn a_server_engine_that_stops_lets_a_running_download_finish() -> Result<()> {
    let mesh = Mesh::start()?;
    let pair = Pair::start(&mesh, "leaving")?;
    let web = Nginx::start(&pair.server, "page\n")?;
    let expected = web.put_noise("noise", 8)?;
    // One tunnel will be at rest.
    pair.client.dial(&pair.v4(), &[])?.answered()?;
    let file = pair.client.directory()?.join("noise");
    let (path, url) = (file.to_str().context("UTF-8")?, format!("http://{}/noise", pair.server.ipv4()));
    let mut transfer = pair.client.spawn("curl", &["curl", "-sS", "--limit-rate", "4M", "-o", path, &url])?;
    wait::until("the transfer runs", Duration::from_secs(10), || {
        ensure!(std::fs::metadata(&file)?.len() > 0, "nothing has arrived");
        Ok(())
    })?;
    mesh.n2.stop_engine()?;
    let status = transfer.wait(Duration::from_secs(20))?;
    ensure!(status.success() && nginx::sha256(&file)? == expected, "curl ended with {status}");
    pair.client.dial(&pair.v4(), &[])?.refused()?;
    Ok(())
}

/// How each of a node's connections travels.
pub(crate) fn paths(node: &Node) -> Result<Vec<String>> {
    let view = node.signet(&["connections"])?;
    Ok(rows(&view).map(|row| row["path"].as_str().unwrap_or("undecided").to_owned()).collect())
}

const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: spoken, namespace: spoken}
spec: {mtls: {mode: STRICT}}
";
