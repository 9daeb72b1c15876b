//! What a mesh of 100,000 workloads costs this node: memory, and the time of one question.
//!
//! The memory is a promise and asserted, as resident pages, so that the allocator's own waste counts. Times are printed,
//! never asserted: `cargo test --release -p signet-agent --test mesh_size -- --nocapture`. It has a process to itself,
//! since pages of other tests would count too.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use signet_agent::addr::WorkloadUid;
use signet_agent::config::SameNode;
use signet_agent::footprint::Memory;
use signet_agent::policy::{Action, AuthorizationPolicy, Flow, Rule};
use signet_agent::state::{
    ContainerPort, Endpoint, EndpointSlice, Event, External, Service, ServicePort, State, Template, Workload,
};
use signet_identity::SpiffeId;

#[test]
fn a_hundred_thousand_workloads_cost_at_most_42_mib() {
    let state = State::new("istio-system");
    let before = resident_bytes();
    for i in 0..WORKLOADS {
        state.apply(&Event::Workload(workload(i).into()));
    }
    let grown = resident_bytes() - before;
    println!("{WORKLOADS} workloads: {} MiB, {} bytes each", grown >> 20, grown / u64::from(WORKLOADS));

    add_services_and_policies(&state);
    print_times(&state);
    while_it_changes(&state, || print_times(&state));
    assert_eq!(state.workloads().len(), WORKLOADS as usize);
    assert!(grown <= 42 << 20, "{grown} bytes");
}

/// Asks while one thread writes without a pause: workloads, and the endpoints of whole Services.
fn while_it_changes(state: &State, ask: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut changes = 0;
            while !done.load(Relaxed) {
                state.apply(&Event::Workload(workload(scattered(changes % WORKLOADS)).into()));
                state.apply(&Event::EndpointSlice(slice(changes % DEPLOYMENTS)));
                changes += 1;
            }
            println!("(two changes each, {changes} times)");
        });
        ask();
        done.store(true, Relaxed);
    });
}

fn print_times(state: &State) {
    let identity = identity(7);
    let labels = labels(7);
    let questions: [(&str, &dyn Fn(u32)); 5] = [
        ("the clock alone", &|_| ()),
        ("by address", &|i| drop(black_box(state.resolve(address(i), 8080, "zone-1", &[])))),
        ("by uid", &|i| drop(black_box(state.workload(&uid(i))))),
        ("by VIP", &|i| drop(black_box(state.resolve(vip(i % DEPLOYMENTS), 80, "zone-1", &[])))),
        ("authorize", &|i| {
            let flow = Flow {
                identity: Some(&identity),
                source_ip: address(i),
                remote_ip: address(i),
                namespace: "ns-7",
                labels: &labels,
                destination_ip: address(7),
                destination_port: 8080,
            };
            drop(black_box(state.authorize(&flow)));
        }),
    ];
    for (name, ask) in questions {
        let mut times: Vec<Duration> = (0..WORKLOADS).map(|i| time_of(ask, scattered(i))).collect();
        times.sort_unstable();
        let quantile = |q: f64| times[(times.len() as f64 * q) as usize];
        println!("{name}: p50 {:?}, p99 {:?}, p99.9 {:?}", quantile(0.5), quantile(0.99), quantile(0.999));
    }
}

fn time_of(ask: &dyn Fn(u32), i: u32) -> Duration {
    let start = Instant::now();
    ask(i);
    start.elapsed()
}

/// Every workload once, in an order that no cache line follows.
fn scattered(i: u32) -> u32 {
    (u64::from(i) * 7_919 % u64::from(WORKLOADS)) as u32
}

fn add_services_and_policies(state: &State) {
    for deployment in 0..DEPLOYMENTS {
        state.apply(&Event::Service(service(deployment)));
        state.apply(&Event::EndpointSlice(slice(deployment)));
    }
    for i in 0..10_000 {
        state.apply(&Event::Authorization(policy(i).into()));
    }
}

fn workload(i: u32) -> Workload {
    let deployment = i % DEPLOYMENTS;
    let namespace: Arc<str> = format!("ns-{}", deployment % NAMESPACES).into();
    let app: Arc<str> = format!("app-{deployment}").into();
    let template = Template {
        namespace,
        service_account: app.clone(),
        identity: identity(deployment),
        cluster: "Kubernetes".into(),
        labels: labels(deployment),
        ports: [ContainerPort { name: Some("http".into()), port: 8080, at_node: None }].into_iter().collect(),
        workload_name: Some(app.clone()),
        workload_type: "deployment",
        canonical_name: Some(app),
        canonical_revision: "v1".into(),
    };
    Workload {
        uid: uid(i),
        name: format!("app-{deployment}-7d4b9c6f5d-{i:05x}").into(),
        template: template.into(),
        node: format!("node-{}", i % 1000).into(),
        zone: format!("zone-{}", i % 3).into(),
        addresses: [address(i)].into(),
        host_network: false,
        enrolled: true,
        same_node: SameNode::Direct,
        cgroup: None,
    }
}

fn uid(i: u32) -> WorkloadUid {
    WorkloadUid::new(format!("{i:08x}-cafe-4bad-8bad-0123456789ab"))
}

fn address(i: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + i))
}

fn vip(deployment: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xac10_0000 + deployment))
}

fn identity(deployment: u32) -> SpiffeId {
    let uri = format!("spiffe://cluster.local/ns/ns-{}/sa/app-{deployment}", deployment % NAMESPACES);
    SpiffeId::parse(&uri).expect("a legal id")
}

fn labels(deployment: u32) -> BTreeMap<String, String> {
    [
        ("app", format!("app-{deployment}")),
        ("version", "v1".into()),
        ("pod-template-hash", format!("{deployment:010x}")),
        ("app.kubernetes.io/managed-by", "Helm".into()),
        ("istio.io/dataplane-mode", "ambient".into()),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into()
}

fn service(deployment: u32) -> Service {
    Service {
        namespace: format!("ns-{}", deployment % NAMESPACES).into(),
        name: format!("app-{deployment}").into(),
        hostname: format!("app-{deployment}.ns-{}.svc.cluster.local", deployment % NAMESPACES).into(),
        vips: vec![vip(deployment)],
        ports: vec![ServicePort { name: "http".into(), port: 80 }],
        affinity: false,
        local: false,
        external: External::default(),
    }
}

fn slice(deployment: u32) -> EndpointSlice {
    let replicas = (deployment..WORKLOADS).step_by(DEPLOYMENTS as usize);
    let endpoint =
        |i: u32| Endpoint { zone: format!("zone-{}", i % 3).into(), pod: true, ..Endpoint::at(address(i)) };
    EndpointSlice {
        namespace: format!("ns-{}", deployment % NAMESPACES).into(),
        name: format!("app-{deployment}-abcde").into(),
        service: format!("app-{deployment}").into(),
        ports: vec![ServicePort { name: "http".into(), port: 8080 }],
        endpoints: replicas.map(endpoint).collect(),
    }
}

fn policy(i: u32) -> AuthorizationPolicy {
    AuthorizationPolicy {
        namespace: format!("ns-{}", i % NAMESPACES).into(),
        name: format!("policy-{i}").into(),
        selector: [("app".to_string(), format!("app-{}", i % DEPLOYMENTS))].into(),
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule::default()],
        warnings: vec![],
    }
}

fn resident_bytes() -> u64 {
    Memory::now().expect("every Linux process has one").resident
}

const WORKLOADS: u32 = 100_000;
const DEPLOYMENTS: u32 = 2_000;
const NAMESPACES: u32 = 100;
