//! What the proxies' tests share: workloads, and a mesh of pods on loopback that speak real mTLS to each other.
//!
//! Each pod has an address of its own in 127.0.0.0/8, in the network namespace the tests run in; the kernel's records
//! are a table that tests fill. Everything else is the real thing.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use signet_identity::testing::TestCa;
use signet_identity::{SpiffeId, X509Svid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::awaited::Awaited;
use super::connections::{ConnectionView, Connections};
use super::direct::{self, Direct, LiveFlows};
use super::hbone::Pool;
use super::metrics::Metrics;
use super::native;
use super::{Context, LocalWorkload, OriginLookup, Running, Sandbox, start};
use crate::addr::WorkloadUid;
use crate::addr::{CgroupId, HBONE_PORT, INBOUND_PLAINTEXT_PORT, NetnsCookie, OUTBOUND_PORT, OriginalDst};
use crate::config::{OutboundTrafficPolicy, SameNode, Timeouts, Tunnel};
use crate::drain::Drain;
use crate::kernel::{DirectBytes, DirectFlow, Origin};
use crate::net::{Listeners, Netns};
use crate::state::{Addresses, Event, Ports, State, Template, Workload};
use crate::svid::{Authority, FetchError, Store, Tracked};
use crate::telemetry::{self, Registry};
use crate::workers::Workers;

/// A workload `ns/<name>` with identity `spiffe://cluster.local/ns/ns/sa/<name>` and no address.
pub(crate) fn workload(name: &str) -> Arc<Workload> {
    let text = |text: &str| Arc::<str>::from(text);
    Arc::new(Workload {
        uid: WorkloadUid::new(format!("uid-{name}")),
        name: text(name),
        template: Arc::new(Template {
            namespace: text("ns"),
            service_account: text(name),
            identity: SpiffeId::parse(&format!("spiffe://cluster.local/ns/ns/sa/{name}")).unwrap(),
            cluster: text("Kubernetes"),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ports: Ports::new(),
            workload_name: Some(text(name)),
            workload_type: "deployment",
            canonical_name: Some(text(name)),
            canonical_revision: text("v1"),
        }),
        node: text("n1"),
        zone: text("z1"),
        addresses: Addresses::new(),
        host_network: false,
        enrolled: true,
        same_node: SameNode::Direct,
        cgroup: None,
    })
}

/// One node engine with its own view of the mesh, and its pods.
pub(crate) struct Node {
    pub(crate) context: Arc<Context>,
    epoch: watch::Sender<u64>,
    told: watch::Sender<()>,
    origins: Arc<Table>,
    svids: Store,
    pub(crate) registry: Registry,
    pub(crate) drain: Drain,
}

/// A kernel without direct flows.
struct NoFlows;

impl LiveFlows for NoFlows {
    fn live(&self) -> Vec<DirectFlow> {
        Vec::new()
    }
    fn bytes(&self, _: &[DirectFlow]) -> HashMap<u64, DirectBytes> {
        HashMap::new()
    }
}

/// One sandbox of a node: listeners, SVIDs, accept loops.
pub(crate) struct Pod {
    pub(crate) ip: IpAddr,
    /// The pod, or the first of those that share the node's namespace.
    pub(crate) workload: Arc<Workload>,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) running: Running,
    _svids: Vec<Tracked>,
}

impl Node {
    /// A node whose SVIDs are signed by `ca`.
    pub(crate) fn new(ca: &Arc<TestCa>, timeouts: Timeouts) -> Self {
        Self::speaking(ca, timeouts, Tunnel::Hbone)
    }

    /// The same, with this `mesh.tunnel`.
    pub(crate) fn speaking(ca: &Arc<TestCa>, timeouts: Timeouts, tunnel: Tunnel) -> Self {
        Self::with_workers(ca, timeouts, tunnel, Workers::here())
    }

    /// The same, on these workers.
    pub(crate) fn with_workers(
        ca: &Arc<TestCa>,
        timeouts: Timeouts,
        tunnel: Tunnel,
        workers: Workers,
    ) -> Self {
        let mut registry = telemetry::registry("signetd", "test", std::iter::empty());
        registry.register_collector(Box::new(workers.clone()));
        let connections = Arc::new(Connections::new());
        let metrics = Arc::new(Metrics::new(&mut registry, Arc::clone(&connections)));
        let svids = Store::new(TestAuthority(Arc::clone(ca)), &mut registry);
        let state = Arc::new(State::new("istio-system"));
        let origins = Arc::new(Table::default());
        let (epoch, policy_epoch) = watch::channel(state.epoch());
        let (told, discovered) = watch::channel(());
        let (drain, watch) = Drain::new();
        let nobody: Arc<dyn LiveFlows> = Arc::new(NoFlows);
        let unheard: direct::Report = Box::new(|_, _, _| ());
        let direct = Direct::new(Arc::clone(&state), Arc::clone(&metrics), nobody, unheard, &mut registry);
        let context = Context {
            state,
            direct,
            origins: Arc::clone(&origins) as Arc<dyn OriginLookup>,
            pool: Pool::new(),
            native: native::Pool::new(),
            tunnel,
            outside: OutboundTrafficPolicy::AllowAny,
            metrics,
            connections,
            told: Default::default(),
            timeouts,
            zone: "z1".into(),
            policy_epoch,
            discovered,
            awaited: Awaited::new(&mut registry),
            drain: watch,
            workers,
        };
        Self { context: Arc::new(context), epoch, told, origins, svids, registry, drain }
    }

    /// As `reconcile` does it.
    pub(crate) fn apply(&self, event: &Event) {
        if self.context.state.apply(event) {
            self.epoch.send_replace(self.context.state.epoch());
        }
        self.told.send_replace(());
    }

    /// Starts a pod on an address of its own. All nodes must be told of it.
    pub(crate) async fn pod(&self, name: &str) -> Pod {
        self.sandbox(false, &[name]).await
    }

    /// Starts workloads that share one address, the node's. Their cgroups are their places in `names`.
    pub(crate) async fn host(&self, names: &[&str]) -> Pod {
        self.sandbox(true, names).await
    }

    async fn sandbox(&self, host: bool, names: &[&str]) -> Pod {
        let ip = unused_address();
        let shared = |name: &&str| {
            let workload = (*workload(name)).clone();
            Arc::new(Workload { addresses: [ip].into(), host_network: host, ..workload })
        };
        let workloads: Vec<_> = names.iter().map(shared).collect();
        let track = |w: &Arc<Workload>| self.svids.track(w.uid.clone(), w.identity.clone());
        let svids: Vec<_> = workloads.iter().map(track).collect();
        let local = |(w, svid): (&Arc<Workload>, &Tracked)| {
            Arc::new(LocalWorkload::new(Arc::clone(w), svid.credentials(), self.context.tunnel))
        };
        let tenants = (0..).map(CgroupId).zip(workloads.iter().zip(&svids).map(local)).collect();
        let netns = Netns::current().unwrap();
        let sandbox = Sandbox {
            netns,
            cookie: NetnsCookie(1),
            host,
            workloads: RwLock::new(tenants),
            in_clear: Default::default(),
            dialled: Default::default(),
        };
        let sandbox = Arc::new(sandbox);
        let running = self.serve(ip, &sandbox);
        Pod { ip, workload: Arc::clone(&workloads[0]), sandbox, running, _svids: svids }
    }

    /// Listens for a sandbox, whose earlier listeners are closed.
    pub(crate) fn serve(&self, ip: IpAddr, sandbox: &Arc<Sandbox>) -> Running {
        let listen = |port| {
            let listener = std::net::TcpListener::bind((ip, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let listeners = Listeners {
            outbound_v4: listen(OUTBOUND_PORT),
            outbound_v6: None,
            plaintext: listen(INBOUND_PLAINTEXT_PORT),
            hbone: listen(HBONE_PORT),
        };
        start(Arc::clone(&self.context), Arc::clone(sandbox), listeners)
    }

    /// A socket of `cgroup` listens on `port`.
    pub(crate) fn owns_port(&self, cgroup: CgroupId, port: u16) {
        self.origins.ports.lock().insert(port, cgroup);
    }

    /// An application in `pod` connects to `to`, and the kernel redirects it.
    pub(crate) async fn connect(&self, pod: &Pod, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((pod.ip, 0).into()).unwrap();
        let client = socket.local_addr().unwrap();
        let origin = Origin { cgroup: CGROUP, destination: OriginalDst::new(to), choice: None };
        self.origins.flows.lock().insert(client, origin);
        socket.connect((pod.ip, OUTBOUND_PORT).into()).await.unwrap()
    }

    /// The one live connection.
    pub(crate) async fn only_connection(&self) -> ConnectionView {
        let open = || self.context.connections.views().into_iter().find(|view| view.path.is_some());
        until("a connection is listed", || open().is_some()).await;
        open().unwrap()
    }

    /// The sum of a metric's samples whose labels contain all of `labels`.
    pub(crate) fn count(&self, metric: &str, labels: &[&str]) -> u64 {
        let text = telemetry::encode(&self.registry);
        let samples = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
        let wanted = samples.filter(|line| labels.iter().all(|label| line.contains(label)));
        wanted.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }
}

impl Pod {
    /// An address of this pod.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }

    /// Tells of its workloads.
    pub(crate) fn events(&self) -> Vec<Event> {
        let workloads = self.sandbox.workloads.read();
        workloads.values().map(|local| Event::Workload(Arc::clone(&local.workload))).collect()
    }
}

/// An application that sends back what it gets, and remembers who came. Ends when dropped.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    pub(crate) clients: Arc<Mutex<Vec<SocketAddr>>>,
    _task: JoinSet<()>,
}

impl Echo {
    /// Listens on any port of `ip`.
    pub(crate) async fn start(ip: IpAddr) -> Self {
        Self::at((ip, 0).into()).await
    }

    /// Listens at `address`.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let clients = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let mut task = JoinSet::new();
        task.spawn(echo(listener, Arc::clone(&clients)));
        Self { address, clients, _task: task }
    }
}

async fn echo(listener: TcpListener, clients: Arc<Mutex<Vec<SocketAddr>>>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, client)) = listener.accept().await {
        clients.lock().push(client);
        connections.spawn(async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        });
    }
}

/// Sends `text` and reads it back.
pub(crate) async fn ping(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut back = vec![0; text.len()];
    timeout(DEADLINE, stream.read_exact(&mut back)).await.expect("an answer in time").unwrap();
    assert_eq!(back, text.as_bytes());
}

/// Waits until the other end has reset the connection. A FIN is not a reset.
pub(crate) async fn assert_reset(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let ended = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("an end in time");
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// An address in 127.0.0.0/8 that no other test of this process has, and most likely none of another.
pub(crate) fn unused_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    let part = |value: u32| u8::try_from(value).expect("a remainder below 256");
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, 16 + part(pid % 224), part(pid / 224 % 256), next).into()
}

/// What the kernel recorded.
#[derive(Default)]
struct Table {
    /// By client.
    flows: Mutex<HashMap<SocketAddr, Origin>>,
    ports: Mutex<HashMap<u16, CgroupId>>,
}

impl OriginLookup for Table {
    fn lookup(&self, _: NetnsCookie, client: SocketAddr, _: SocketAddr) -> Option<Origin> {
        self.flows.lock().get(&client).copied()
    }
    fn port_owner(&self, _: NetnsCookie, port: u16) -> Option<CgroupId> {
        self.ports.lock().get(&port).copied()
    }
}

struct TestAuthority(Arc<TestCa>);

impl Authority for TestAuthority {
    async fn fetch(&self, _: &WorkloadUid, id: &SpiffeId) -> Result<X509Svid, FetchError> {
        let issued = self.0.issue(id.as_str(), |_| {});
        let now = rustls_pki_types::UnixTime::now();
        Ok(X509Svid::new(id, issued.chain, issued.key, self.0.bundles(), now).expect("a good SVID"))
    }
}

/// A pod's cgroup: the first of its sandbox.
const CGROUP: CgroupId = CgroupId(0);
/// Far more than anything takes, so that a busy machine fails no test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
