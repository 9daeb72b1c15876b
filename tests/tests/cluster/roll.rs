//! The DaemonSet rolled to another image under 500 connections: 250 within a node, which the kernel carries, and 250
//! between nodes, which the engines carry.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use signet_testkit::cluster::Wire;
use signet_testkit::need::Need;
use signet_testkit::probe::Crowd;
use signet_testkit::process::stdout;
use signet_testkit::wait;

use crate::days::{self, Installed};
use crate::footprint::Size;
use crate::shared::{VERSION, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(
    &[Need::Cluster, Need::Engine, Need::Program("tcpdump")] =>
    a_roll_under_500_connections_keeps_the_direct_ones_and_leaves_none_hanging,
);

fn a_roll_under_500_connections_keeps_the_direct_ones_and_leaves_none_hanging() -> Result<()> {
    let day = days::alone()?;
    let before = day.footprints()?;
    day.namespace(NAMESPACE)?;
    let address = day.pod(NAMESPACE, "server", "n2", &["signet-probe", "serve", PORT])?;
    let to = format!("{address}:{PORT}");
    start_near(&day, &to)?;
    start_far(&day, &to)?;
    wait_for(&day, "near", |crowd| crowd.open == EACH)?;
    wait_for(&day, "far", |crowd| crowd.open == EACH)?;
    wait_for_direct(&day)?;
    let wire = Wire::record(&day.cluster, day.node("n2")?)?;
    roll(&day)?;
    let far = wait_for(&day, "far", |crowd| crowd.open == EACH && crowd.lost >= EACH)?;
    ensure!(far.stuck == 0, "relayed connections were left hanging: {far:?}");
    let near = wait_for(&day, "near", |crowd| crowd.open == EACH)?;
    ensure!(near == Crowd { open: EACH, lost: 0, stuck: 0 }, "direct connections were lost: {near:?}");
    wait_for_direct(&day)?;
    let packets = wire.stop()?;
    ensure!(!packets.contain(SECRET.as_bytes()), "it crossed the link in clear");
    ensure!(packets.tls_records() > 0, "no TLS on the link");
    day.kubectl().run(&["delete", "namespace", NAMESPACE, "--wait"])?;
    for (before, node) in before.iter().zip(day.cluster.nodes()) {
        before.wait_for_return(&day.signet, node, Size::ANY)?;
    }
    Ok(())
}

/// The first connection goes by the engine and earns the permit for those that follow.
fn start_near(day: &Installed, to: &str) -> Result<()> {
    let ask = format!(
        "until [ -e /tmp/permitted ]; do signet-probe dial {to}; sleep 0.2; done; exec {}",
        crowd(to)
    );
    day.pod(NAMESPACE, "near", "n2", &["sh", "-c", &ask])?;
    wait::until("the kernel permits what goes on within the node", WITHIN, || {
        let ask = ["curl", "--silent", "--fail", "http://127.0.0.1:15020/metrics"];
        let metrics = stdout(&day.node("n2")?.exec(&ask)?)?;
        let direct = metrics.lines().find_map(|line| line.strip_prefix(PERMITTED)?.strip_prefix(' '));
        ensure!(direct.is_some_and(|count| count != "0"), "{direct:?}");
        Ok(())
    })?;
    day.kubectl().exec(NAMESPACE, "near", &["touch", "/tmp/permitted"]).map(drop)
}

fn start_far(day: &Installed, to: &str) -> Result<()> {
    day.pod(NAMESPACE, "far", "n1", &["sh", "-c", &format!("exec {}", crowd(to))]).map(drop)
}

fn crowd(to: &str) -> String {
    format!("signet-probe crowd {to} {EACH} --text {SECRET}")
}

/// As a crowd has told last.
fn wait_for(day: &Installed, pod: &str, fits: impl Fn(&Crowd) -> bool) -> Result<Crowd> {
    wait::until(&format!("the crowd of {pod}"), WITHIN, || {
        let log = day.kubectl().logs(NAMESPACE, pod)?;
        let last = log.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        let crowd: Crowd = last.with_context(|| log.clone())?;
        ensure!(fits(&crowd), "{crowd:?}");
        Ok(crowd)
    })
}

/// The engine of n2 has every connection of `near` in its view, as one that the kernel carries.
fn wait_for_direct(day: &Installed) -> Result<()> {
    wait::until("the engine lists the direct connections", WITHIN, || {
        let all = day.signet.signet("n2", &["connections"])?;
        let client = format!("{NAMESPACE}/near");
        let is_direct =
            |view: &&Value| view["path"] == "direct" && view["source_workload"] == client.as_str();
        let direct = all.as_array().into_iter().flatten().filter(is_direct).count();
        ensure!(direct == EACH, "{direct} of {EACH}");
        Ok(())
    })
}

/// The same programs by another name are another image to the DaemonSet.
fn roll(day: &Installed) -> Result<()> {
    for node in day.cluster.nodes() {
        for image in ["signetd", "signet-ca"] {
            let (from, to) = (format!("localhost/{image}:{VERSION}"), format!("localhost/{image}:{NEXT}"));
            stdout(&node.exec(&["ctr", "--namespace=k8s.io", "images", "tag", "--force", &from, &to])?)?;
        }
    }
    day.signet.upgrade(&[&format!("image.tag={NEXT}")])?;
    day.wait_rolled()
}

const NAMESPACE: &str = "rolled";
const PORT: &str = "9000";
const EACH: usize = 250;
const NEXT: &str = "next";
const SECRET: &str = "what-goes-to-and-fro-between-two-pods";
const PERMITTED: &str = "signet_capture_verdicts_total{verdict=\"direct\",reason=\"permitted\"}";
