//! In which order the steps are taken, and what holds when one of them fails.
//!
//! The kernel and the sandboxes are fakes that write what they are asked into one list; cgroups are directories.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use parking_lot::Mutex;
use signet_identity::{SpiffeId, X509Svid};
use tempfile::TempDir;

use super::*;
use crate::config::SameNode;
use crate::kernel::{
    CaptureState, CapturedWorkload, Cgroup, DirectRoute, DirectServer, DirectService, KernelError,
};
use crate::net::NetError;
use crate::policy::Permit;
use crate::state::{Ports, Template};
use crate::svid::{Authority, FetchError};
use crate::telemetry::Registry;

mod direct;
mod failures;
mod order;
mod pods;
mod unresolved;

/// A reconciler, and what it did.
struct Scene {
    reconciler: Reconciler<FakeSandboxes, FakeDoor>,
    world: World,
    mount: TempDir,
}

impl Scene {
    /// A node whose cgroup mount has the directory `web`.
    fn new() -> Self {
        let (mount, world) = (tempfile::tempdir().unwrap(), World::default());
        std::fs::create_dir(mount.path().join("web")).unwrap();
        let options = NodeOptions {
            node: "n1".into(),
            zone: String::new(),
            cgroup_mount: mount.path().to_owned(),
            pods_root: Some("kubepods".into()),
            heartbeat: Duration::from_secs(1),
        };
        let svids = svid::Store::new(SilentAuthority, &mut Registry::default());
        let (door, sandboxes) = (FakeDoor(Arc::clone(&world)), FakeSandboxes(Arc::clone(&world)));
        let state = Arc::new(State::new("istio-system"));
        let reconciler = Reconciler::new(options, state, door, svids, sandboxes, Statuses::default());
        Self { reconciler, world, mount }
    }

    /// The same after the source has told all it had, with this workload.
    fn synced(workload: Workload) -> Self {
        let mut scene = Self::new();
        scene.tell(workload);
        scene.hear(Event::Synced);
        scene.steps();
        scene
    }

    fn hear(&mut self, event: Event) {
        self.reconciler.on_source(event).unwrap();
    }

    fn tell(&mut self, workload: Workload) {
        self.hear(Event::Workload(workload.into()));
    }

    /// What was done since the last time.
    fn steps(&self) -> Vec<String> {
        std::mem::take(&mut self.world.lock().steps)
    }

    fn phase(&self) -> Option<Phase> {
        self.reconciler.statuses.all().pop().map(|status| status.phase)
    }

    /// The cgroup of `web`.
    fn web(&self) -> CgroupId {
        Cgroup::open(self.mount.path(), Path::new("web")).unwrap().id()
    }

    /// What the kernel does for it.
    fn entry(&self) -> Option<CaptureState> {
        self.world.lock().entries.get(&self.web()).copied()
    }

    /// Waits for the next attempt and makes it.
    async fn retry(&mut self) {
        let at = self.reconciler.next_retry().expect("something is retried");
        tokio::time::sleep_until(at).await;
        self.reconciler.advance_due();
    }
}

type World = Arc<Mutex<Recorded>>;

/// What the fakes were asked, and what they have.
#[derive(Default)]
struct Recorded {
    steps: Vec<String>,
    /// The step that does not succeed.
    broken: Option<&'static str>,
    entries: BTreeMap<CgroupId, CaptureState>,
    links: Vec<NetnsCookie>,
    direct: FakeDirect,
}

/// The kernel's side of direct flows.
#[derive(Default)]
struct FakeDirect {
    epoch: u64,
    /// With the epochs they were made under.
    permits: HashMap<DirectRoute, u64>,
    used: HashSet<DirectRoute>,
    live: Vec<DirectFlow>,
    services: HashMap<SocketAddr, DirectService>,
    /// No flow can be ended.
    out_of_reach: bool,
    /// What the access log will say of flows that were ended.
    revoked: Vec<(DirectFlow, Option<Denial>)>,
}

impl Recorded {
    fn step(&mut self, step: String) -> Result<(), KernelError> {
        let broken = self.broken == Some(step.as_str());
        self.steps.push(step);
        if broken { Err(KernelError::NoCgroup2) } else { Ok(()) }
    }
}

struct FakeDoor(World);

impl Door for FakeDoor {
    fn attach(&mut self) -> Result<(), KernelError> {
        self.0.lock().step("attach".into())
    }
    fn heartbeat(&mut self) -> Result<(), KernelError> {
        self.0.lock().step("heartbeat".into())
    }
    fn put_workload(&mut self, workload: &CapturedWorkload) -> Result<(), KernelError> {
        let mut world = self.0.lock();
        world.step(format!("put {:?}", workload.capture))?;
        world.entries.insert(workload.cgroup, workload.capture);
        Ok(())
    }
    fn remove_workload(&mut self, cgroup: CgroupId) -> Result<(), KernelError> {
        let mut world = self.0.lock();
        world.step("remove".into())?;
        world.entries.remove(&cgroup);
        Ok(())
    }
    fn workloads(&self) -> Result<Vec<CgroupId>, KernelError> {
        Ok(self.0.lock().entries.keys().copied().collect())
    }
    fn netns_of(&self, _: &Cgroup, _: bool) -> Result<Option<(Netns, NetnsCookie)>, ReconcileError> {
        Ok(Some((Netns::current().unwrap(), COOKIE)))
    }
    fn listen(&mut self, _: &Netns, cookie: NetnsCookie, _: bool) -> Result<Listeners, ReconcileError> {
        let mut world = self.0.lock();
        world.step("listen".into())?;
        world.links.push(cookie);
        Ok(Listeners { outbound_v4: listener(), outbound_v6: None, plaintext: listener(), hbone: listener() })
    }
    fn unsteer(&mut self, cookie: NetnsCookie) -> Result<(), KernelError> {
        let mut world = self.0.lock();
        world.step("unsteer".into())?;
        world.links.retain(|link| *link != cookie);
        Ok(())
    }
    fn restore(&self, _: &Netns) -> Result<(), NetError> {
        self.0.lock().steps.push("restore".into());
        Ok(())
    }
    fn steered(&self) -> Vec<NetnsCookie> {
        self.0.lock().links.clone()
    }
    fn direct(&mut self) -> &mut dyn DirectDoor {
        self
    }
}

impl DirectDoor for FakeDoor {
    fn is_possible(&self) -> bool {
        true
    }
    fn set_epoch(&mut self, policy_epoch: u64) -> Result<(), KernelError> {
        self.0.lock().direct.epoch = policy_epoch;
        Ok(())
    }
    fn permit(&mut self, route: DirectRoute, _: DirectServer, permit: &Permit) -> Result<(), KernelError> {
        self.0.lock().direct.permits.insert(route, permit.epoch());
        Ok(())
    }
    fn is_used(&self, route: DirectRoute) -> bool {
        self.0.lock().direct.used.contains(&route)
    }
    fn forbid(&mut self, route: DirectRoute) -> Result<(), KernelError> {
        self.0.lock().direct.permits.remove(&route);
        Ok(())
    }
    fn put_service(&mut self, vip: SocketAddr, service: &DirectService) -> Result<bool, KernelError> {
        self.0.lock().direct.services.insert(vip, service.clone());
        Ok(true)
    }
    fn remove_service(&mut self, vip: SocketAddr) -> Result<(), KernelError> {
        self.0.lock().direct.services.remove(&vip);
        Ok(())
    }
    fn live(&self) -> Result<Vec<DirectFlow>, KernelError> {
        Ok(self.0.lock().direct.live.clone())
    }
    fn destroy(&mut self, flow: &DirectFlow) -> std::io::Result<bool> {
        let mut world = self.0.lock();
        if world.direct.out_of_reach {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        world.direct.live.retain(|live| live != flow);
        Ok(true)
    }
}

struct FakeSandboxes(World);

impl FakeSandboxes {
    fn did(&self, step: &str) {
        self.0.lock().steps.push(step.into());
    }
}

impl Sandboxes for FakeSandboxes {
    fn open(&mut self, _: Opened) {
        self.did("open sandbox");
    }
    fn put(&mut self, _: NetnsCookie, _: CgroupId, _: Arc<Workload>, _: Credentials) {
        self.did("enter sandbox");
    }
    fn captured(&mut self, _: NetnsCookie, _: CgroupId, _: Arc<Workload>) {
        self.did("captured");
    }
    fn remove(&mut self, _: NetnsCookie, _: CgroupId) {
        self.did("leave sandbox");
    }
    fn close(&mut self, _: NetnsCookie) {
        self.did("close sandbox");
    }
    fn policy_changed(&mut self, _: u64) {}
    fn told(&mut self) {}
    fn forget(&mut self, _: &WorkloadUid) {
        self.did("forget");
    }
    fn revoked(&mut self, flow: &DirectFlow, denial: Option<Denial>) {
        self.0.lock().direct.revoked.push((*flow, denial));
    }
}

/// A CA that never answers.
struct SilentAuthority;

impl Authority for SilentAuthority {
    async fn fetch(&self, _: &WorkloadUid, _: &SpiffeId) -> Result<X509Svid, FetchError> {
        std::future::pending().await
    }
}

fn listener() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

/// An enrolled pod of this node, in the cgroup `web`.
fn web() -> Workload {
    let text = |text: &str| Arc::<str>::from(text);
    Workload {
        uid: WorkloadUid::new("uid-web"),
        name: text("web"),
        template: template("web").into(),
        node: text("n1"),
        zone: text(""),
        addresses: ["10.0.0.1".parse().unwrap()].into(),
        host_network: false,
        enrolled: true,
        same_node: SameNode::Direct,
        cgroup: Some("web".into()),
    }
}

/// Of a pod that has a service account to itself.
fn template(service_account: &str) -> Template {
    let identity = format!("spiffe://cluster.local/ns/ns/sa/{service_account}");
    Template {
        namespace: "ns".into(),
        service_account: service_account.into(),
        identity: SpiffeId::parse(&identity).unwrap(),
        cluster: "Kubernetes".into(),
        labels: BTreeMap::new(),
        ports: Ports::new(),
        workload_name: None,
        workload_type: "pod",
        canonical_name: None,
        canonical_revision: "latest".into(),
    }
}

/// The one network namespace there is.
const COOKIE: NetnsCookie = NetnsCookie(7);
/// What a predecessor has left, of a workload that is gone.
const STALE: CgroupId = CgroupId(u64::MAX);
