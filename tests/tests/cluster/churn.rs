//! 500 pod objects a minute for two minutes, or faster: 1,000 that the API server alone knows, on a node without kubelet, each
//! made, given an address and deleted; and beside them real pods on both nodes, as many as their kubelets manage, whose one
//! act is to connect. Nothing of them may stay.
//!
//! The first half shows what so many take once (heaps grow to their highest mark), the second that it is once. Then tunnels of
//! pods that went without a word must have been given up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use signet_testkit::http::Metrics;
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::days::{self, Installed};
use crate::footprint::{Footprint, Size};
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(
    &[Need::Cluster, Need::Engine] =>
    a_thousand_pods_that_come_and_go_within_two_minutes_leave_nothing,
);

fn a_thousand_pods_that_come_and_go_within_two_minutes_leave_nothing() -> Result<()> {
    let day = days::alone()?;
    let before = day.footprints()?;
    let identities = identities(&day)?;
    day.namespace(NAMESPACE)?;
    let server = day.pod(NAMESPACE, "server", "n2", &["signet-probe", "serve", PORT])?;
    let with_server = day.footprints()?;
    // Without the object, its pods are collected as nobody's.
    let nowhere = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NOWHERE}});
    day.kubectl().apply(&nowhere.to_string())?;
    half(&day, &server, 0)?;
    let first = day.footprints()?;
    half(&day, &server, 1)?;
    let second = returned(&day, &first, SECOND)?;
    println!("churn: before {before:?}, after 500 {first:?}, after 1,000 {second:?}");
    day.kubectl().run(&["delete", "node", NOWHERE])?;
    returned(&day, &with_server, FIRST)?;
    day.kubectl().run(&["delete", "namespace", NAMESPACE, "--wait"])?;
    returned(&day, &before, FIRST)?;
    wait::until("the CA knows the identities that it knew", WITHIN, || {
        let now = self::identities(&day)?;
        ensure!(now == identities, "{now:?}, before {identities:?}");
        Ok(())
    })
}

/// 500 objects, and real pods for as long as those take.
fn half(day: &Installed, server: &str, half: usize) -> Result<()> {
    let over = AtomicBool::new(false);
    let started = Instant::now();
    let (made, real) = thread::scope(|scope| {
        let real = scope.spawn(|| real_pods(day, server, half, &over));
        let made = (0..BATCHES).try_for_each(|batch| objects(day, half * BATCHES + batch));
        over.store(true, Ordering::Relaxed);
        (made, real.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
    });
    made?;
    let (took, count) = (started.elapsed().as_secs_f64(), BATCHES * IN_A_BATCH);
    println!("churn: {count} objects and {} real pods in {took:.0} s", real?);
    Ok(())
}

/// One batch of objects: made, given addresses, deleted.
fn objects(day: &Installed, batch: usize) -> Result<()> {
    let numbers = || (0..IN_A_BATCH).map(|number| batch * IN_A_BATCH + number);
    let list = |items: Vec<Value>| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    day.kubectl().apply(&list(numbers().map(|number| object(number, batch)).collect()))?;
    day.kubectl().apply_status(&list(numbers().map(status).collect()))?;
    let selector = format!("batch={batch}");
    let at_once = ["--grace-period=0", "--force", "--wait=false", "--selector", &selector];
    day.kubectl().run(&[&["delete", "pods", "--namespace", NAMESPACE][..], &at_once].concat()).map(drop)
}

/// Bound to a node without a kubelet: no kubelet gives it a status, and ours stands.
fn object(number: usize, batch: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name(number), "namespace": NAMESPACE, "labels": {"batch": batch.to_string()}},
        "spec": {"nodeName": NOWHERE, "containers": [{"name": "c", "image": "none"}]},
    })
}

fn status(number: usize) -> Value {
    let address = format!("10.245.{}.{}", number / 250, 1 + number % 250);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name(number), "namespace": NAMESPACE},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

fn name(number: usize) -> String {
    format!("object-{number}")
}

/// Pods on both nodes that connect and end, batch after batch until `over`; how many.
fn real_pods(day: &Installed, server: &str, half: usize, over: &AtomicBool) -> Result<usize> {
    let dial = format!("signet-probe dial {server}:{PORT} | grep -q answered");
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let names: Vec<_> =
            (0..REAL_AT_A_TIME).map(|number| format!("real-{half}-{}", count + number)).collect();
        let pods: Vec<Value> = names
            .iter()
            .zip(["n1", "n2"].iter().cycle())
            .map(|(name, node)| shared::pod(NAMESPACE, name, node, days::IMAGE, &["sh", "-c", &dial]))
            .map(|pod| serde_json::from_str(&pod))
            .collect::<Result<_, _>>()?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
        day.kubectl().apply(&list.to_string())?;
        for name in &names {
            let object = format!("pod/{name}");
            day.kubectl().wait(NAMESPACE, &object, "jsonpath={.status.phase}=Succeeded", WITHIN)?;
        }
        let delete = ["delete", "pods", "--namespace", NAMESPACE, "--wait"];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        day.kubectl().run(&[&delete[..], &names].concat())?;
        count += REAL_AT_A_TIME;
    }
    Ok(count)
}

fn returned(day: &Installed, to: &[Footprint], more: Size) -> Result<Vec<Footprint>> {
    let nodes = to.iter().zip(day.cluster.nodes());
    nodes.map(|(before, node)| before.wait_for_return(&day.signet, node, more)).collect()
}

/// Workloads and identities, as each replica of the CA knows them.
fn identities(day: &Installed) -> Result<Vec<(u64, u64)>> {
    let select = "--selector=app.kubernetes.io/name=signet-ca";
    let names =
        ["get", "pods", "--namespace=signet-system", select, "--output=jsonpath={.items[*].metadata.name}"];
    let names = day.kubectl().run(&names)?;
    let ask = |name: &str| {
        let path = format!("/api/v1/namespaces/signet-system/pods/{name}:15014/proxy/metrics");
        let metrics = Metrics::parse(&day.kubectl().run(&["get", "--raw", &path])?);
        let count = |name: &str| metrics.sum(name, &[]) as u64;
        Ok((count("signet_ca_workloads"), count("signet_ca_identities")))
    };
    let counts: Vec<_> = names.split_whitespace().map(ask).collect::<Result<_>>()?;
    let first = counts.first().context("no replica of the CA")?;
    ensure!(first.0 > 0, "the CA knows nobody: {counts:?}");
    Ok(counts)
}

const NAMESPACE: &str = "churn";
const NOWHERE: &str = "nowhere";
const PORT: &str = "9000";
/// In each half.
const BATCHES: usize = 10;
const IN_A_BATCH: usize = 50;
const REAL_AT_A_TIME: usize = 8;
/// Heaps grow to what the most pods at a time need, and idle connections come and go.
const FIRST: Size = Size { tasks: 4, descriptors: 8, anonymous: 12 * 1024 };
/// Heaps grow in steps of a MiB. A leak of 8 KiB for each pod object would be 4 MiB, and with the real pods' more than this.
const SECOND: Size = Size { tasks: 2, descriptors: 4, anonymous: 4 * 1024 };
