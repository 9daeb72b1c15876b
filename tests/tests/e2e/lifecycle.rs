//! Workloads come, change and go: what is not ready is denied, and what is gone leaves nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use signet_testkit::capture::Capture;
use signet_testkit::mesh::{Mesh, rows};
use signet_testkit::need::Need;
use signet_testkit::node::Node;
use signet_testkit::pod::{Enrolment, Pod, PodSpec};
use signet_testkit::process::stdout;
use signet_testkit::wait;

use crate::connect::{Pair, allow};
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("tcpdump")] =>
    a_running_pod_is_enrolled_and_unenrolled,
    a_pod_whose_manifest_comes_late_is_denied_until_then,
    a_successor_on_the_same_address_gets_its_own_identity,
    host_network_workloads_keep_their_own_identities,
    a_namespaces_label_enrols_its_pods,
);

pub(crate) const FOOTPRINT_TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("bpftool")] =>
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
    let mut running = client.hold(&to)?;
    client.enrol(Enrolment::OptOut)?;
    mesh.settle(&[&client])?;
    running
        .wait_for_line(&["ended"], Duration::from_secs(10))
        .context("a connection outlived its identity")?;
    running.wait(Duration::from_secs(5))?;
    client.dial(&to, &[])?.refused().context("outside the mesh again")?;
    let left = client.run(&["ss", "-Hltn"])?;
    ensure!(!left.contains(":1500"), "the engine still listens in a pod that left: {left}");
    ensure!(client.run(&["ip", "rule"])?.lines().count() == 3, "an ip rule is left");
    Ok(())
}

fn a_namespaces_label_enrols_its_pods() -> Result<()> {
    let mesh = shared::mesh()?;
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: labelled, labels: {istio.io/dataplane-mode: ambient}}\n";
    mesh.bed.manifests().put("namespace-labelled", namespace)?;
    let client = mesh.n1.pod(PodSpec::new("labelled", "client").enrolment(Enrolment::Inherit))?;
    let server = mesh.n2.pod(PodSpec::new("labelled", "server").enrolment(Enrolment::Inherit))?;
    let outside = mesh.n1.pod(PodSpec::new("labelled", "outside").enrolment(Enrolment::OptOut))?;
    mesh.settle(&[&outside])?;
    for (node, pod) in [(&mesh.n1, &client), (&mesh.n2, &server)] {
        wait::until("it is captured", Duration::from_secs(10), || {
            let view = node.signet(&["workloads"])?;
            let row = rows(&view).find(|row| row["uid"].as_str().is_some_and(|uid| uid.ends_with(pod.uid())));
            ensure!(row.is_some_and(|row| row["state"] == "captured"), "{row:?}");
            Ok(())
        })?;
    }
    let _serving = server.serve(8080)?;
    mesh.apply("labelled", &allow("labelled", "server", &client.spiffe_id()))?;
    let to = format!("{}:8080", server.ipv4());
    client.dial(&to, &[])?.answered()?;
    outside.dial(&to, &[])?.refused()?;
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
    let _neighbour = warm_up(&mesh, "gone", &server)?;
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
    let _neighbour = warm_up(&mesh, "churn", &server)?;
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

/// Has one pod of the first node come, talk and go, and returns another that stays: what the node needs once for all its
/// pods is there from then on.
fn warm_up(mesh: &Mesh, namespace: &str, server: &Pod) -> Result<Pod> {
    let first = mesh.n1.pod(PodSpec::new(namespace, "first"))?;
    let neighbour = mesh.n1.pod(PodSpec::new(namespace, "neighbour"))?;
    mesh.settle(&[&first, &neighbour])?;
    first.dial(&format!("{}:8080", server.ipv4()), &[])?.answered()?;
    let uid = first.uid().to_owned();
    drop(first);
    wait::until("the first pod is gone", Duration::from_secs(20), || {
        let view = mesh.n1.signet(&["workloads"])?;
        let listed = rows(&view).any(|row| row["uid"].as_str().is_some_and(|text| text.ends_with(&uid)));
        ensure!(
            !listed && mesh.n1.pins().iter().filter(|pin| pin.contains("netns-")).count() == 1,
            "it is not"
        );
        Ok(())
    })?;
    Ok(neighbour)
}

/// What one node holds for its engine, by the kernel's own account and by the engine's: things, and how many of each.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Footprint(BTreeMap<String, usize>);

impl Footprint {
    fn of(node: &Node) -> Result<Self> {
        wait::until("every SVID is there", Duration::from_secs(10), || {
            let view = node.signet(&["certificates"])?;
            ensure!(rows(&view).all(|row| row["status"] == "valid"), "{view}");
            Ok(())
        })?;
        let mut held: BTreeMap<_, _> = node.pins().into_iter().map(|pin| (format!("pin {pin}"), 1)).collect();
        held.extend(map_entries(node)?);
        held.extend(descriptors(node.engine_pid()?)?);
        for view in ["certificates", "connections"] {
            held.insert(view.to_owned(), rows(&node.signet(&[view])?).count());
        }
        Ok(Self(held))
    }

    /// Waits until the node is back to it.
    fn wait_for(&self, node: &Node) -> Result<()> {
        wait::until("nothing is left", Duration::from_secs(20), || {
            let now = Self::of(node)?;
            let only_in = |a: &Self, b: &Self| {
                a.0.iter()
                    .filter(|(k, v)| b.0.get(*k) != Some(v))
                    .map(|(k, v)| format!("{k}: {v}"))
                    .collect::<Vec<_>>()
            };
            ensure!(now == *self, "before: {:?}, now: {:?}", only_in(self, &now), only_in(&now, self));
            Ok(())
        })
    }
}

/// The hash maps; arrays are always full.
fn map_entries(node: &Node) -> Result<BTreeMap<String, usize>> {
    let count = |name: &&str| -> Result<(String, usize)> {
        let pin = node.pins().into_iter().find(|pin| pin.ends_with(*name));
        let path = node.pin_directory().join(pin.with_context(|| format!("{name} is not pinned"))?);
        let path = path.to_str().context("a path in UTF-8")?;
        let text = run(&["bpftool", "-j", "map", "dump", "pinned", path])?;
        let entries: serde_json::Value = serde_json::from_str(&text).context("bpftool prints JSON")?;
        Ok((format!("map {name}"), entries.as_array().map_or(0, Vec::len)))
    };
    ["/WORKLOADS", "/FLOWS", "/PORTS"].iter().map(count).collect()
}

/// Sockets, namespaces, maps, links: kinds, and how many of each. Network namespaces count once, however many threads hold
/// their own one to return to.
fn descriptors(pid: u32) -> Result<BTreeMap<String, usize>> {
    let targets = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let mut targets: Vec<String> = targets
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    targets.sort();
    targets.dedup_by(|a, b| a == b && a.starts_with("net:"));
    let mut kinds = BTreeMap::new();
    for target in targets {
        let kind = target.split(['[', ' ']).next().unwrap_or_default();
        *kinds.entry(format!("descriptor {kind}")).or_default() += 1;
    }
    Ok(kinds)
}

fn run(argv: &[&str]) -> Result<String> {
    stdout(&std::process::Command::new(argv[0]).args(&argv[1..]).output()?)
}

/// So many pods live at a time.
const BATCH: usize = 25;
