//! What is told, listed and ended of connections from before, with a kernel that says what the test wants.

use std::time::Duration;

use super::*;
use crate::drain::Drain;
use crate::policy::{MtlsMode, PeerAuthentication};
use crate::proxy::testing;
use crate::state::Event;
use crate::telemetry;

/// A kernel with these sockets.
#[derive(Clone, Default)]
struct FakeSockets(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    open: Vec<EarlierSocket>,
    looks: usize,
    broken: Option<io::ErrorKind>,
}

impl Sockets for FakeSockets {
    fn find(&self, netns: NetnsCookie, owners: &[Owner]) -> io::Result<Vec<EarlierSocket>> {
        assert_eq!(netns, NETNS);
        let mut world = self.0.lock();
        world.looks += 1;
        if let Some(broken) = world.broken {
            return Err(broken.into());
        }
        let asked = |socket: &&EarlierSocket| owners.iter().any(|owner| owner.cgroup == socket.owner);
        Ok(world.open.iter().filter(asked).copied().collect())
    }

    fn end(&self, _: NetnsCookie, sockets: &[EarlierSocket]) -> io::Result<()> {
        self.0.lock().open.retain(|open| !sockets.contains(open));
        Ok(())
    }
}

struct Scene {
    earlier: Arc<Earlier>,
    kernel: FakeSockets,
    state: Arc<State>,
    registry: Registry,
}

impl Scene {
    /// `web` is captured here; `peer` is in the mesh too, on another node, and `stranger` is not.
    fn new() -> Self {
        let (state, kernel) = (Arc::new(State::new("istio-system")), FakeSockets::default());
        for (name, address, enrolled) in
            [("web", WEB, true), ("peer", PEER, true), ("stranger", STRANGER, false)]
        {
            state.apply(&Event::Workload(workload(name, address, enrolled)));
        }
        let mut registry = Registry::default();
        let earlier = Earlier::new(Arc::clone(&state), Box::new(kernel.clone()), &mut registry);
        earlier.put(NETNS, CGROUP, workload("web", WEB, true));
        Self { earlier, kernel, state, registry }
    }

    fn open(&self, cookie: u64, role: Role, local: &str, remote: &str) -> EarlierSocket {
        let socket =
            EarlierSocket::between(cookie, CGROUP, role, local.parse().unwrap(), remote.parse().unwrap());
        self.kernel.0.lock().open.push(socket);
        socket
    }

    fn look(&self) {
        self.earlier.look(Instant::now());
    }

    /// STRICT for the workloads with that label.
    fn strict(&self, app: &str) {
        self.state.apply(&Event::PeerAuthentication(Box::new(PeerAuthentication {
            namespace: "ns".into(),
            name: "strict".into(),
            selector: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            mode: MtlsMode::Strict,
            ports: BTreeMap::from([(9090, MtlsMode::Permissive)]),
            created: 0,
            warnings: Vec::new(),
        })));
    }

    fn is_open(&self, socket: EarlierSocket) -> bool {
        self.kernel.0.lock().open.contains(&socket)
    }

    fn count(&self, sample: &str) -> Option<String> {
        let text = telemetry::encode(&self.registry);
        text.lines().find_map(|line| line.strip_prefix(sample)).map(|count| count.trim().to_owned())
    }

    fn total(&self, direction: &str, result: &str) -> Option<String> {
        self.count(&format!(
            "signet_earlier_connections_total{{direction=\"{direction}\",result=\"{result}\"}}"
        ))
    }
}

fn workload(name: &str, address: &str, enrolled: bool) -> Arc<Workload> {
    let addresses = [address.parse().unwrap()].into();
    Arc::new(Workload { addresses, enrolled, ..(*testing::workload(name)).clone() })
}

#[tokio::test(start_paused = true)]
async fn what_policy_lets_be_is_told_of_once_and_listed_while_it_is_open() {
    let scene = Scene::new();
    let socket = scene.open(1, Role::Server, "10.0.0.1:80", "10.9.9.9:4000");
    scene.look();
    tokio::time::advance(Duration::from_secs(2)).await;
    scene.look();
    assert_eq!(scene.kernel.0.lock().looks, 2);
    assert_eq!(scene.total("inbound", "left").as_deref(), Some("1"));
    assert_eq!(scene.count("signet_earlier_connections_open{direction=\"inbound\"}").as_deref(), Some("1"));
    let [view] = &scene.earlier.views()[..] else { panic!("not one is listed") };
    assert_eq!((view.path, view.direction), (Some(Path::Earlier), Direction::Inbound));
    assert_eq!(view.destination_workload.as_deref(), Some("ns/web"));
    assert!(scene.is_open(socket));
    scene.kernel.0.lock().open.clear();
    assert!(scene.earlier.views().is_empty());
    assert_eq!(scene.count("signet_earlier_connections_open{direction=\"inbound\"}").as_deref(), Some("0"));
}

#[tokio::test(start_paused = true)]
async fn what_a_later_policy_forbids_is_ended_and_its_neighbour_is_not() {
    let scene = Scene::new();
    let strict = scene.open(1, Role::Server, "10.0.0.1:80", "10.9.9.9:4000");
    let permissive = scene.open(2, Role::Server, "10.0.0.1:9090", "10.9.9.9:4001");
    scene.look();
    scene.strict("web");
    scene.earlier.subjects.lock().outdate(Instant::now());
    tokio::time::advance(Duration::from_secs(1)).await;
    scene.look();
    assert!(!scene.is_open(strict) && scene.is_open(permissive));
    assert_eq!(scene.total("inbound", "closed").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_client_is_judged_by_its_servers_policy() {
    let scene = Scene::new();
    scene.strict("peer");
    let to_peer = scene.open(1, Role::Client, "10.0.0.1:4000", "10.0.0.2:80");
    let to_stranger = scene.open(2, Role::Client, "10.0.0.1:4001", "10.0.0.3:80");
    let to_nobody = scene.open(3, Role::Client, "10.0.0.1:4002", "192.0.2.1:80");
    let own = scene.open(4, Role::Server, "10.0.0.1:80", "10.0.0.2:4003");
    scene.look();
    assert!(!scene.is_open(to_peer));
    assert!(scene.is_open(to_stranger) && scene.is_open(to_nobody) && scene.is_open(own));
    assert_eq!(scene.total("outbound", "closed").as_deref(), Some("1"));
    // What goes out of the mesh is neither counted nor listed.
    assert_eq!(scene.total("outbound", "left"), None);
    assert_eq!(scene.earlier.views().len(), 1);
}

#[tokio::test]
async fn a_direct_connections_left_over_end_is_none() {
    let scene = Scene::new();
    scene.earlier.put(NETNS, CgroupId(2), workload("neighbour", NEIGHBOUR, true));
    let (local, remote) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.4:4000".parse().unwrap());
    let mut socket = EarlierSocket::between(1, CGROUP, Role::Server, local, remote);
    socket.is_half_closed = true;
    scene.kernel.0.lock().open.push(socket);
    scene.look();
    assert_eq!(scene.total("inbound", "left"), None);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_looked_at_is_looked_at_again() {
    let scene = Scene::new();
    scene.strict("web");
    let socket = scene.open(1, Role::Server, "10.0.0.1:80", "10.9.9.9:4000");
    scene.kernel.0.lock().broken = Some(io::ErrorKind::TimedOut);
    scene.look();
    assert!(scene.is_open(socket));
    scene.kernel.0.lock().broken = None;
    let next = scene.earlier.subjects.lock().next().expect("another look");
    tokio::time::sleep_until(next).await;
    scene.look();
    assert!(!scene.is_open(socket));
}

#[tokio::test(start_paused = true)]
async fn who_has_left_is_not_looked_at() {
    let scene = Scene::new();
    scene.open(1, Role::Server, "10.0.0.1:80", "10.9.9.9:4000");
    scene.look();
    scene.earlier.remove(CGROUP);
    assert!(scene.earlier.subjects.lock().next().is_none());
    assert!(scene.earlier.views().is_empty());
}

/// A look goes on without the lock.
#[test]
fn of_who_leaves_during_a_look_nothing_is_remembered() {
    let scene = Scene::new();
    let socket = scene.open(1, Role::Server, "10.0.0.1:80", "10.9.9.9:4000");
    let mut subjects = scene.earlier.subjects.lock();
    let (looked_at, left) = ([(CGROUP, workload("web", WEB, true))], [socket].into_iter());
    subjects.note(&looked_at, left.clone());
    assert!(subjects.since(socket.cookie()).is_some());
    subjects.remove(CGROUP);
    subjects.note(&looked_at, left);
    assert!(subjects.since(socket.cookie()).is_none());
}

/// By the task itself: a workload that comes, and a policy that changes.
#[tokio::test(start_paused = true)]
async fn it_looks_by_itself() {
    let scene = Scene::new();
    let socket = scene.open(1, Role::Server, "10.0.0.1:80", "10.9.9.9:4000");
    let (epoch, policy_epoch) = watch::channel(0);
    let (drain, stops) = Drain::new();
    let running = tokio::spawn(Arc::clone(&scene.earlier).run(policy_epoch, stops));
    testing::until("it is listed", || !scene.earlier.views().is_empty()).await;
    scene.strict("web");
    epoch.send_replace(1);
    testing::until("it is ended", || !scene.is_open(socket)).await;
    assert!(drain.drain(Duration::from_secs(5)).await, "it goes on");
    running.await.unwrap();
}

const NETNS: NetnsCookie = NetnsCookie(7);
const CGROUP: CgroupId = CgroupId(1);
const WEB: &str = "10.0.0.1";
const PEER: &str = "10.0.0.2";
const STRANGER: &str = "10.0.0.3";
const NEIGHBOUR: &str = "10.0.0.4";
