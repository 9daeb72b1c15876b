//! Which flows may go past the engine, and what is done when that changes.

use super::*;
use crate::kernel::CaptureState;
use crate::policy::{Action, AuthorizationPolicy, Rule};

/// The server's neighbour on the node.
fn client() -> Workload {
    let text = |text: &str| Arc::<str>::from(text);
    Workload {
        uid: WorkloadUid::new("uid-client"),
        name: text("client"),
        template: template("client").into(),
        addresses: vec!["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()].into(),
        cgroup: Some("client".into()),
        ..web()
    }
}

/// A node with both, of which the engine has carried one connection.
fn scene() -> Scene {
    let mut scene = Scene::new();
    std::fs::create_dir(scene.mount.path().join("client")).unwrap();
    scene.tell(web());
    scene.tell(client());
    scene.hear(Event::Synced);
    scene.reconciler.settle_direct();
    scene.reconciler.on_served(&served());
    scene.steps();
    scene
}

fn served() -> Served {
    Served { client: client().uid, server: web().uid, to: "10.0.0.1:80".parse().unwrap() }
}

fn deny(name: &str, action: Action, rules: Vec<Rule>) -> Event {
    Event::Authorization(Box::new(AuthorizationPolicy {
        namespace: "ns".into(),
        name: name.into(),
        selector: BTreeMap::new(),
        action,
        dry_run: false,
        rules,
        warnings: Vec::new(),
    }))
}

impl Scene {
    fn client(&self) -> CgroupId {
        Cgroup::open(self.mount.path(), Path::new("client")).unwrap().id()
    }

    fn route(&self) -> DirectRoute {
        DirectRoute { client: self.client(), to: served().to }
    }

    fn flow(&self) -> DirectFlow {
        DirectFlow {
            client: self.client(),
            server: self.web(),
            source: "10.0.0.2:4000".parse().unwrap(),
            destination: served().to,
            asked: crate::addr::OriginalDst::new(served().to),
            netns: COOKIE,
            socket: 1,
            age: Duration::ZERO,
            established: true,
        }
    }

    /// A flow is under way.
    fn open(&self) -> DirectFlow {
        self.world.lock().direct.live.push(self.flow());
        self.flow()
    }

    /// The permit that holds now.
    fn holds(&self) -> bool {
        let world = self.world.lock();
        world.direct.permits.get(&self.route()).is_some_and(|epoch| *epoch == world.direct.epoch)
    }

    fn is_live(&self) -> bool {
        !self.world.lock().direct.live.is_empty()
    }
}

#[tokio::test]
async fn a_connection_that_was_carried_permits_the_next_ones() {
    let scene = scene();
    assert!(scene.holds());
}

#[tokio::test]
async fn a_change_takes_the_permit_back_at_once_and_writes_it_anew_when_it_settles() {
    let mut scene = scene();
    let flow = scene.open();
    scene.hear(deny("nobody", Action::Deny, Vec::new()));
    assert!(!scene.holds(), "before anything else is done");
    assert!(scene.reconciler.direct.settle_at().is_some());
    scene.reconciler.settle_direct();
    assert!(scene.holds());
    assert_eq!(scene.world.lock().direct.live, [flow]);
    assert!(scene.reconciler.direct.settle_at().is_none());
}

#[tokio::test]
async fn a_permit_that_nobody_has_used_is_not_written_anew() {
    let mut scene = scene();
    for (policy, used) in [("first", true), ("second", true), ("third", false)] {
        scene.world.lock().direct.used.clear();
        if used {
            let route = scene.route();
            scene.world.lock().direct.used.insert(route);
        }
        scene.hear(deny(policy, Action::Deny, Vec::new()));
        scene.reconciler.settle_direct();
        assert_eq!(scene.holds(), used, "{policy}");
    }
}

#[tokio::test]
async fn a_flow_that_lost_its_permit_is_ended_and_the_policy_named() {
    let mut scene = scene();
    let flow = scene.open();
    scene.hear(deny("all", Action::Deny, vec![Rule::default()]));
    scene.reconciler.settle_direct();
    assert!(!scene.is_live() && !scene.holds());
    let revoked = scene.world.lock().direct.revoked.clone();
    assert_eq!(revoked, [(flow, Some(Denial::Denied("ns/all".into())))]);
}

#[tokio::test]
async fn every_address_of_the_client_must_be_allowed() {
    let mut scene = scene();
    let only = |block: &str| {
        let source = crate::policy::Source { ip_blocks: vec![block.parse().unwrap()], ..Default::default() };
        vec![Rule { from: vec![source], ..Rule::default() }]
    };
    scene.hear(deny("one", Action::Allow, only("10.0.0.2/32")));
    scene.reconciler.settle_direct();
    assert!(!scene.holds(), "it may come from 10.0.0.3 too");
    scene.hear(deny("one", Action::Allow, only("10.0.0.2/31")));
    scene.reconciler.on_served(&served());
    assert!(scene.holds());
}

#[tokio::test]
async fn either_sides_wish_for_mtls_ends_it() {
    for wishes in [web, client] {
        let mut scene = scene();
        scene.open();
        scene.tell(Workload { same_node: SameNode::Mtls, ..wishes() });
        assert!(!scene.holds());
        scene.reconciler.settle_direct();
        assert!(!scene.is_live());
        scene.reconciler.on_served(&served());
        assert!(!scene.holds());
    }
}

#[tokio::test]
async fn a_workload_that_leaves_takes_its_flows_and_permits_along() {
    for leaves in [web(), client()] {
        let mut scene = scene();
        scene.open();
        scene.hear(Event::WorkloadGone(leaves.uid));
        assert!(!scene.is_live() && !scene.holds());
    }
    for leaves in [web(), client()] {
        let mut scene = scene();
        scene.open();
        scene.tell(Workload { enrolled: false, ..leaves });
        assert!(!scene.is_live() && !scene.holds());
    }
}

#[tokio::test]
async fn a_flow_that_began_under_an_old_permit_is_looked_at() {
    let mut scene = scene();
    scene.hear(deny("all", Action::Deny, vec![Rule::default()]));
    scene.reconciler.settle_direct();
    let late = scene.open();
    scene.reconciler.on_kernel(KernelEvent::DirectStale(late));
    assert!(!scene.is_live());
}

#[tokio::test]
async fn a_route_that_leads_astray_is_not_taken_again() {
    let mut scene = scene();
    let stray = scene.open();
    scene.reconciler.on_kernel(KernelEvent::DirectStray(stray));
    assert!(!scene.is_live() && !scene.holds());
    scene.reconciler.on_served(&served());
    assert!(!scene.holds());
    scene.hear(Event::WorkloadGone(web().uid));
    scene.tell(web());
    scene.reconciler.on_served(&served());
    assert!(scene.holds(), "another server may be reached");
}

#[tokio::test]
async fn a_flow_that_cannot_be_ended_yet_is_ended_later() {
    let mut scene = scene();
    scene.open();
    scene.world.lock().direct.out_of_reach = true;
    scene.hear(deny("all", Action::Deny, vec![Rule::default()]));
    scene.reconciler.settle_direct();
    assert!(scene.is_live());
    scene.world.lock().direct.out_of_reach = false;
    scene.reconciler.heartbeat();
    assert!(!scene.is_live());
}

#[tokio::test]
async fn a_predecessors_flows_are_looked_at_once_the_source_has_told_all() {
    let mut scene = Scene::new();
    std::fs::create_dir(scene.mount.path().join("client")).unwrap();
    scene.hear(deny("all", Action::Deny, vec![Rule::default()]));
    scene.tell(web());
    scene.tell(client());
    scene.open();
    scene.reconciler.settle_direct();
    assert!(scene.is_live(), "a policy that allows it may still be told of");
    scene.hear(Event::Synced);
    assert!(scene.reconciler.direct.settle_at().is_some());
    scene.reconciler.settle_direct();
    assert!(!scene.is_live());
    assert_eq!(scene.entry(), Some(CaptureState::Redirect));
}

fn service(affinity: bool) -> Event {
    Event::Service(crate::state::Service {
        namespace: "ns".into(),
        name: "web".into(),
        hostname: "web.ns.svc.cluster.local".into(),
        vips: vec!["10.96.0.1".parse().unwrap()],
        ports: vec![crate::state::ServicePort { name: "http".into(), port: 80 }],
        affinity,
        local: false,
        external: crate::state::External::default(),
    })
}

fn endpoints(addresses: &[&str]) -> Event {
    let endpoint = |address: &&str| crate::state::Endpoint::at(address.parse().unwrap());
    Event::EndpointSlice(crate::state::EndpointSlice {
        namespace: "ns".into(),
        name: "web-1".into(),
        service: "web".into(),
        ports: vec![crate::state::ServicePort { name: "http".into(), port: 8080 }],
        endpoints: addresses.iter().map(endpoint).collect(),
    })
}

#[tokio::test]
async fn the_kernel_resolves_services_that_have_an_endpoint_captured_here() {
    let mut scene = scene();
    let mut written = |events: Vec<Event>| {
        events.into_iter().for_each(|event| scene.hear(event));
        scene.reconciler.settle_direct();
        scene.world.lock().direct.services.clone()
    };
    assert!(written(vec![service(false), endpoints(&["10.1.0.1"])]).is_empty(), "another node's alone");
    let both = written(vec![endpoints(&["10.1.0.1", "10.0.0.1"])]);
    let expected = DirectService {
        affinity: false,
        backends: vec!["10.0.0.1:8080".parse().unwrap(), "10.1.0.1:8080".parse().unwrap()],
    };
    assert_eq!(both, HashMap::from([("10.96.0.1:80".parse().unwrap(), expected)]));
    let changed = written(vec![service(true)]);
    assert!(changed.values().all(|service| service.affinity));
    assert!(written(vec![Event::WorkloadGone(web().uid)]).is_empty(), "its endpoint here has left");
}
