//! Workloads come, change and go: what is not ready is denied, and what is gone leaves nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use signet_testkit::capture::Capture;
use signet_testkit::mesh::{Mesh, rows};
use signet_testkit::need::Need;
use signet_testkit::node::Node;
use signet_testkit::pod::{Enrolment, Pod, PodSpec};
use signet_testkit::wait;

use crate::connect::{Pair, allow};
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("tcpdump")] =>
    a_running_pod_is_enrolled_and_unenrolled,
    a_pod_whose_manifest_comes_late_is_denied_until_then,
    a_successor_on_the_same_address_gets_its_own_identity,
    host_network_workloads_keep_their_own_identities,
    a_deleted_pod_leaves_nothing,
    pods_that_come_and_go_leave_nothing,
);

fn a_running_pod_is_enrolled_and_unenrolled() -> Result<()> {
    let mesh = shared::mesh()?;
    let mut client = mesh.n1.pod(PodSpec::new("turncoat", "client").enrolment(Enrolment::OptOut))?;
    let server = mesh.n2.pod(PodSpec::new("turncoat", "server"))?;
    mesh.settle(&[&client, &server])?;
    mesh.apply("turncoat", &allow("turncoat", "server", &client.spiffe_id()))?;
    let _serving = server.serve(8080)?;
    let to = format!("{}:8080", server.ipv4());
    client.dial(&to, &[])?.refused().context("outside the mesh")?;
    client.enrol(Enrolment::Ambient)?;
    mesh.settle(&[&client])?;
    client.dial(&to, &[])?.answered().context("enrolled")?;
    client.enrol(Enrolment::OptOut)?;
    mesh.settle(&[&client])?;
    client.dial(&to, &[])?.refused().context("outside the mesh again")?;
    let left = client.run(&["ss", "-Hltn"])?;
    ensure!(!left.contains(":1500"), "the engine still listens in a pod that left: {left}");
    ensure!(client.run(&["ip", "rule"])?.lines().count() == 3, "an ip rule is left");
    Ok(())
}

/// The API server is slower than the container runtime: nothing goes out in clear meanwhile.
fn a_pod_whose_manifest_comes_late_is_denied_until_then() -> Result<()> {
    let mesh = shared::mesh()?;
    let server = mesh.n2.pod(PodSpec::new("late", "server"))?;
    mesh.settle(&[&server])?;
    let _serving = server.serve(8080)?;
    let to = format!("{}:8080", server.ipv4());
    let client = mesh.n1.pod_without_manifest(PodSpec::new("late", "client"))?;
    let capture = Capture::start(mesh.n1.host(), "eth0", "late")?;
    client.dial(&to, &["--text", "too-early-to-be-protected"])?.refused()?;
    client.publish()?;
    mesh.settle(&[&client])?;
    client.dial(&to, &["--text", "too-early-to-be-protected"])?.answered()?;
    ensure!(!capture.stop()?.contain(b"too-early-to-be-protected"), "it crossed the link in clear");
    Ok(())
}

fn a_successor_on_the_same_address_gets_its_own_identity() -> Result<()> {
    let mesh = shared::mesh()?;
    let (client, server, serving) = Pair::start(&mesh, "successor")?.into_parts();
    mesh.apply("successor", &allow("successor", "server", &client.spiffe_id()))?;
    let to = format!("{}:8080", server.ipv4());
    client.dial(&to, &[])?.answered()?;
    let (addresses, uid) = (client.addresses().clone(), client.uid().to_owned());
    drop(client);
    let heir = mesh.n1.pod(PodSpec::new("successor", "heir").addresses(&addresses))?;
    mesh.settle(&[&heir])?;
    ensure!(heir.uid() != uid, "a new pod has a new uid");
    heir.dial(&to, &[])?.refused().context("the heir has its predecessor's address, and not its rights")?;
    // The other way round: a server that returns on the same address is met by nobody's old tunnel.
    let addresses = server.addresses().clone();
    drop((serving, server));
    let server = mesh.n2.pod(PodSpec::new("successor", "other-server").addresses(&addresses))?;
    let _serving = server.serve(8080)?;
    mesh.settle(&[&server])?;
    heir.dial(&to, &[])?.answered()?;
    mesh.n1.wait_for_log(&["dst.identity=\"spiffe://cluster.local/ns/successor/sa/other-server\""])?;
    Ok(())
}

fn host_network_workloads_keep_their_own_identities() -> Result<()> {
    let mesh = shared::mesh()?;
    let server = mesh.n2.pod(PodSpec::new("hostnet", "server"))?;
    let [first, second] =
        ["first", "second"].map(|name| mesh.n1.pod(PodSpec::new("hostnet", name).host_network()));
    let (first, second) = (first?, second?);
    mesh.settle(&[&server, &first, &second])?;
    mesh.apply("hostnet", &allow("hostnet", "server", &first.spiffe_id()))?;
    let _serving = server.serve(8080)?;
    let to = format!("{}:8080", server.ipv4());
    first.dial(&to, &[])?.answered()?;
    second.dial(&to, &[])?.refused()?;
    // Inbound: both serve, each is met under its own name.
    let _both = [first.serve(7001)?, second.serve(7002)?];
    for (pod, port) in [(&first, 7001), (&second, 7002)] {
        server.dial(&format!("{}:{port}", pod.ipv4()), &[])?.answered()?;
        let name = format!("dst.identity=\"{}\"", pod.spiffe_id());
        mesh.n2.wait_for_log(&[&name, "direction=\"outbound\""])?;
    }
    Ok(())
}

fn a_deleted_pod_leaves_nothing() -> Result<()> {
    let mesh = Mesh::start()?;
    let server = mesh.n2.pod(PodSpec::new("gone", "server"))?;
    mesh.settle(&[&server])?;
    let _serving = server.serve(8080)?;
    let before = Footprint::of(&mesh.n1)?;
    let client = mesh.n1.pod(PodSpec::new("gone", "client"))?;
    mesh.settle(&[&client])?;
    let _running = client.hold(&format!("{}:8080", server.ipv4()))?;
    let during = Footprint::of(&mesh.n1)?;
    ensure!(during != before, "an enrolled pod that talks must show: {before:?}");
    drop(client);
    before.wait_for(&mesh.n1)
}

/// 50 pods; `SIGNET_TEST_CHURN` sets another number, as 1000.
fn pods_that_come_and_go_leave_nothing() -> Result<()> {
    let count: usize = match std::env::var("SIGNET_TEST_CHURN") {
        Ok(text) => text.parse().context("SIGNET_TEST_CHURN is no number")?,
        Err(_) => 50,
    };
    let mesh = Mesh::start()?;
    let server = mesh.n2.pod(PodSpec::new("churn", "server"))?;
    mesh.settle(&[&server])?;
    let _serving = server.serve(8080)?;
    let to = format!("{}:8080", server.ipv4());
    let before = Footprint::of(&mesh.n1)?;
    let names: Vec<String> = (0..count).map(|i| format!("pod-{i}")).collect();
    for batch in names.chunks(BATCH) {
        let pods = batch
            .iter()
            .map(|name| mesh.n1.pod(PodSpec::new("churn", name)))
            .collect::<Result<Vec<Pod>>>()?;
        mesh.settle(&pods.iter().collect::<Vec<_>>())?;
        pods[0].dial(&to, &[])?.answered()?;
    }
    before.wait_for(&mesh.n1)?;
    let log = mesh.n1.engine_log()?;
    ensure!(!log.contains("panicked"), "the engine panicked");
    Ok(())
}

/// What one node's engine holds: pins, map entries, keys, connections, open files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Footprint {
    pins: BTreeSet<String>,
    map_entries: Vec<(String, u64)>,
    certificates: usize,
    connections: usize,
}

impl Footprint {
    fn of(node: &Node) -> Result<Self> {
        let metrics = node.metrics()?;
        let entries = metrics.0.iter().filter(|sample| sample.name == "signet_bpf_map_entries");
        // The heartbeat and counters are maps too: of constant size, so they do no harm here.
        let mut map_entries: Vec<_> = entries
            .map(|sample| (sample.labels.values().cloned().collect::<String>(), sample.value as u64))
            .collect();
        map_entries.sort();
        ensure!(!map_entries.is_empty(), "the engine tells nothing of its maps");
        Ok(Self {
            pins: node.pins(),
            map_entries,
            certificates: rows(&node.signet(&["certificates"])?).count(),
            connections: rows(&node.signet(&["connections"])?).count(),
        })
    }

    /// Waits until the node is back to it.
    fn wait_for(&self, node: &Node) -> Result<()> {
        wait::until("nothing is left", Duration::from_secs(20), || {
            let now = Self::of(node)?;
            ensure!(now == *self, "before: {self:?}\nnow: {now:?}");
            Ok(())
        })
    }
}

/// So many pods live at a time.
const BATCH: usize = 25;
