//! What is told of direct connections, with a kernel that says what the test wants.

use super::*;
use crate::proxy::connections::{Connections, Path};
use crate::proxy::testing;
use crate::telemetry;

/// A kernel with these flows.
#[derive(Default)]
struct FakeFlows(Mutex<Vec<(DirectFlow, DirectBytes)>>);

impl LiveFlows for FakeFlows {
    fn live(&self) -> Vec<DirectFlow> {
        self.0.lock().iter().map(|(flow, _)| *flow).collect()
    }
    fn bytes(&self, flows: &[DirectFlow]) -> HashMap<u64, DirectBytes> {
        let all = self.0.lock();
        let wanted = all.iter().filter(|(flow, _)| flows.contains(flow));
        wanted.map(|(flow, bytes)| (flow.socket, *bytes)).collect()
    }
}

struct Scene {
    direct: Arc<Direct>,
    kernel: Arc<FakeFlows>,
    registry: Registry,
    told: Arc<Mutex<Vec<(String, String)>>>,
}

impl Scene {
    fn new() -> Self {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry, Arc::new(Connections::new())));
        let (kernel, told) = (Arc::new(FakeFlows::default()), Arc::new(Mutex::new(Vec::new())));
        let listener = Arc::clone(&told);
        let report: Report = Box::new(move |client, server, _| {
            listener.lock().push((client.to_string(), server.to_string()));
        });
        let flows = Arc::clone(&kernel) as Arc<dyn LiveFlows>;
        let state = Arc::new(State::new("istio-system"));
        let direct = Direct::new(state, metrics, flows, report, &mut registry);
        direct.put(CLIENT, testing::workload("client"));
        direct.put(SERVER, testing::workload("server"));
        Self { direct, kernel, registry, told }
    }

    /// A live flow that has carried so much.
    fn carry(&self, flow: DirectFlow, sent: u64, received: u64) {
        let mut flows = self.kernel.0.lock();
        flows.retain(|(live, _)| live.socket != flow.socket);
        flows.push((flow, DirectBytes { sent, received }));
    }

    /// It ends.
    fn end(&self, flow: DirectFlow, sent: u64, received: u64) {
        self.kernel.0.lock().retain(|(live, _)| live.socket != flow.socket);
        let (bytes, duration) = (DirectBytes { sent, received }, std::time::Duration::from_secs(1));
        self.direct.ended(&[DirectEnd { flow, bytes, duration }]);
    }

    /// The sum of a family's samples with that text among their labels.
    fn sum(&self, family: &str, labels: &str) -> u64 {
        let text = telemetry::encode(&self.registry);
        let samples = text.lines().filter(|line| line.starts_with(family) && line.contains(labels));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

fn flow(socket: u64) -> DirectFlow {
    DirectFlow {
        client: CLIENT,
        server: SERVER,
        source: SocketAddr::new("10.0.0.1".parse().unwrap(), 40_000 + socket as u16),
        destination: "10.0.0.2:80".parse().unwrap(),
        asked: crate::addr::OriginalDst::new("10.0.0.2:80".parse().unwrap()),
        netns: crate::addr::NetnsCookie(1),
        socket,
        age: std::time::Duration::from_secs(5),
        established: true,
    }
}

#[test]
fn a_flow_is_counted_once_by_both_sides_whether_or_not_a_scrape_has_seen_it_live() {
    let scene = Scene::new();
    scene.carry(flow(1), 10, 20);
    assert_eq!(scene.sum("istio_tcp_connections_opened_total", "same_node"), 2);
    assert_eq!(scene.sum("istio_tcp_sockets_open", "source"), 1);
    scene.carry(flow(1), 100, 200);
    assert_eq!(scene.sum("istio_tcp_received_bytes_total", "reporter=\"source\""), 100);
    scene.end(flow(1), 1000, 2000);
    scene.end(flow(2), 1, 2);
    for family in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
        assert_eq!(scene.sum(family, "reporter=\"source\""), 2, "{family}");
        assert_eq!(scene.sum(family, "reporter=\"destination\""), 2, "{family}");
    }
    assert_eq!(scene.sum("istio_tcp_received_bytes_total", "reporter=\"source\""), 1001);
    assert_eq!(scene.sum("istio_tcp_sent_bytes_total", "reporter=\"destination\""), 2002);
    assert_eq!(scene.sum("istio_tcp_sockets_open", "source"), 0);
}

#[test]
fn no_counter_goes_back_when_the_kernel_says_less() {
    let scene = Scene::new();
    scene.carry(flow(1), 100, 0);
    assert_eq!(scene.sum("istio_tcp_received_bytes_total", "source"), 200);
    scene.carry(flow(1), 0, 0);
    assert_eq!(scene.sum("istio_tcp_received_bytes_total", "source"), 200);
    scene.end(flow(1), 150, 0);
    assert_eq!(scene.sum("istio_tcp_received_bytes_total", "source"), 300);
}

#[test]
fn a_flow_that_was_not_answered_has_failed() {
    let scene = Scene::new();
    scene.end(DirectFlow { established: false, ..flow(1) }, 0, 0);
    assert_eq!(scene.sum("istio_tcp_connections_failed_total", "CONNECT"), 2);
    assert_eq!(scene.sum("istio_tcp_connections_opened_total", ""), 0);
}

#[test]
fn a_flow_that_was_revoked_says_so() {
    let scene = Scene::new();
    scene.carry(flow(1), 1, 1);
    scene.direct.revoked(&flow(1), Some(Denial::Denied("ns/deny".into())));
    scene.end(flow(1), 1, 1);
    assert_eq!(scene.sum("istio_tcp_connections_closed_total", "response_flags=\"DENY\""), 2);
    assert_eq!(scene.sum("signet_direct_revoked_total", ""), 1);
}

#[test]
fn a_live_flow_is_shown_with_both_identities_and_its_bytes() {
    let scene = Scene::new();
    scene.carry(flow(1), 10, 20);
    let [view] = &scene.direct.views()[..] else { panic!("not one connection") };
    assert_eq!(view.path, Some(Path::Direct));
    assert_eq!(view.source_identity, Some(testing::workload("client").identity.clone()));
    assert_eq!(view.destination_identity, Some(testing::workload("server").identity.clone()));
    assert_eq!((view.sent, view.received), (10, 20));
}

#[test]
fn the_last_records_of_a_workload_that_has_left_still_name_it() {
    let scene = Scene::new();
    scene.direct.depart(CLIENT);
    scene.direct.depart(SERVER);
    scene.direct.policy_changed();
    scene.end(flow(1), 1, 1);
    assert_eq!(scene.sum("istio_tcp_connections_closed_total", "ns/ns/sa/client"), 2);
}

#[test]
fn only_connections_to_workloads_of_this_node_are_told_of() {
    let scene = Scene::new();
    let uid = |name: &str| testing::workload(name).uid.clone();
    let to = flow(1).destination;
    scene.direct.served(&uid("client"), &uid("server"), to);
    scene.direct.served(&uid("client"), &uid("elsewhere"), to);
    scene.direct.depart(SERVER);
    scene.direct.served(&uid("client"), &uid("server"), to);
    assert_eq!(*scene.told.lock(), [("uid-client".to_owned(), "uid-server".to_owned())]);
}

const CLIENT: CgroupId = CgroupId(1);
const SERVER: CgroupId = CgroupId(2);
