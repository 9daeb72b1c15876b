//! The native tunnel: who speaks it with whom, and that it carries what HBONE carries, as well.
//!
//! Two nodes with the shipped configuration speak it, so most of what the other files promise is promised of it too: policy,
//! rotation, restarts, every kind of connect. Here is what is its own.

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

pub(crate) const BULK_TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("socat"), Need::Program("curl"), Need::Program("nginx")] =>
    a_gibibyte_arrives_whole_in_both_directions,
    a_slow_reader_costs_bounded_memory,
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

/// Killed with tunnels at rest and one in use.
fn a_server_engine_that_was_killed_is_met_again_after_its_restart() -> Result<()> {
    let mesh = Mesh::start()?;
    let pair = Pair::start(&mesh, "killed-server")?;
    for _ in 0..3 {
        pair.client.dial(&pair.v4(), &[])?.answered()?;
    }
    let running = pair.client.hold(&pair.v4())?;
    mesh.n2.kill_engine()?;
    running.wait_for_line(&["ended: ConnectionReset"], Duration::from_secs(10))?;
    pair.client.dial(&pair.v4(), &[])?.refused()?;
    mesh.n2.launch_again()?;
    mesh.n2.wait_ready()?;
    mesh.settle(&[&pair.server])?;
    wait::until("the server answers again", Duration::from_secs(15), || {
        pair.client.dial(&pair.v4(), &[])?.answered().map(drop)
    })?;
    let _open = pair.client.hold(&pair.v4())?;
    ensure!(paths(&mesh.n1)? == ["native"], "{:?}", paths(&mesh.n1)?);
    Ok(())
}

fn a_gibibyte_arrives_whole_in_both_directions() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "gibibyte")?;
    for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
        let (sent, received) = (from.directory()?.join("sent"), to.directory()?.join("received"));
        let expected = nginx::write_noise(&sent, 1024)?;
        let into = format!("OPEN:{},creat,trunc", received.display());
        let mut receiver =
            to.spawn("socat", &["socat", "-u", "-b131072", "TCP-LISTEN:9002,reuseaddr", &into])?;
        wait::until("socat listens", Duration::from_secs(10), || {
            let listening = to.run(&["ss", "-Hltn", "sport = :9002"])?;
            ensure!(!listening.is_empty(), "it does not");
            Ok(())
        })?;
        let target = format!("TCP:{}:9002", to.ipv4());
        from.run(&["socat", "-u", "-b131072", &format!("OPEN:{}", sent.display()), &target])?;
        receiver.wait(Duration::from_secs(120))?;
        ensure!(nginx::sha256(&received)? == expected, "1 GiB from {} arrived damaged", from.name());
        std::fs::remove_file(&sent)?;
        std::fs::remove_file(&received)?;
    }
    Ok(())
}

/// Ten downloads whose readers take a small part of what the server would send.
fn a_slow_reader_costs_bounded_memory() -> Result<()> {
    let mesh = Mesh::start()?;
    let pair = Pair::start(&mesh, "slow")?;
    let web = Nginx::start(&pair.server, "page\n")?;
    web.put_noise("noise", 64)?;
    let url = format!("http://{}/noise", pair.server.ipv4());
    pair.client.run(&["curl", "-sS", "-o", "/dev/null", &url])?;
    let before = [anonymous_mib(&mesh.n1)?, anonymous_mib(&mesh.n2)?];
    let slow = ["curl", "-sS", "--limit-rate", "1M", "-o", "/dev/null", &url];
    let readers: Vec<_> = (0..10).map(|_| pair.client.spawn("curl", &slow)).collect::<Result<_>>()?;
    wait::until("all of them read", Duration::from_secs(20), || {
        ensure!(paths(&mesh.n1)?.len() == 10, "{:?}", paths(&mesh.n1)?);
        let view = mesh.n1.signet(&["connections"])?;
        let moving = rows(&view).filter(|row| row["received"].as_u64() > Some(2 << 20)).count();
        ensure!(moving == 10, "{moving} do");
        Ok(())
    })?;
    for (node, before) in mesh.nodes().into_iter().zip(before) {
        let now = anonymous_mib(node)?;
        // Two blocks of 132 KiB for each direction that waits, and as much again for the allocator.
        ensure!(now - before < 12.0, "{} grew from {before} to {now} MiB", node.name());
    }
    drop(readers);
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
fn paths(node: &Node) -> Result<Vec<String>> {
    let view = node.signet(&["connections"])?;
    Ok(rows(&view).map(|row| row["path"].as_str().unwrap_or("undecided").to_owned()).collect())
}

fn anonymous_mib(node: &Node) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.engine_pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: spoken, namespace: spoken}
spec: {mtls: {mode: STRICT}}
";
