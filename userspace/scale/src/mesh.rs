//! A mesh as large as the engine promises to carry, as the events that discovery would send.
//!
//! Names, labels and addresses are shaped as Kubernetes makes them, because their length is what they cost.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use signet_agent::addr::WorkloadUid;
use signet_agent::config::SameNode;
use signet_agent::policy::{Action, AuthorizationPolicy, Rule, Source, StringMatch};
use signet_agent::state::{
    ContainerPort, Endpoint, EndpointSlice, Event, External, Service, ServicePort, State, Template, Workload,
};
use signet_identity::SpiffeId;

/// Fills a state with every workload.
pub fn add_workloads(state: &State) {
    for i in 0..WORKLOADS {
        state.apply(&Event::Workload(workload(i).into()));
    }
}

/// Fills a state with a Service and its endpoints for each deployment.
pub fn add_services(state: &State) {
    for deployment in 0..DEPLOYMENTS {
        state.apply(&Event::Service(service(deployment)));
        state.apply(&Event::EndpointSlice(slice(deployment)));
    }
}

/// Fills a state with every policy: five for each deployment, of which one matches [`identity`] of the deployment itself.
pub fn add_policies(state: &State) {
    for i in 0..POLICIES {
        state.apply(&Event::Authorization(policy(i).into()));
    }
}

/// Every workload once, in an order that no cache line follows.
#[must_use]
pub fn scattered(i: u32) -> u32 {
    (u64::from(i) * 7_919 % u64::from(WORKLOADS)) as u32
}

/// The address of a workload.
#[must_use]
pub fn address(i: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + i))
}

/// The ClusterIP of a deployment's Service.
#[must_use]
pub fn vip(deployment: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xac10_0000 + deployment))
}

/// Who a deployment's pods are.
///
/// # Panics
/// Never: it is a legal id.
#[must_use]
pub fn identity(deployment: u32) -> SpiffeId {
    let uri = format!("spiffe://cluster.local/ns/{}/sa/app-{deployment}", namespace(deployment));
    SpiffeId::parse(&uri).expect("a legal id")
}

/// The labels of a deployment's pods.
#[must_use]
pub fn labels(deployment: u32) -> BTreeMap<String, String> {
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

/// The namespace of a deployment.
#[must_use]
pub fn namespace(deployment: u32) -> String {
    format!("ns-{}", deployment % NAMESPACES)
}

fn workload(i: u32) -> Workload {
    let deployment = i % DEPLOYMENTS;
    let app: Arc<str> = format!("app-{deployment}").into();
    let template = Template {
        namespace: namespace(deployment).into(),
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
        uid: WorkloadUid::new(format!("{i:08x}-cafe-4bad-8bad-0123456789ab")),
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

fn service(deployment: u32) -> Service {
    let namespace = namespace(deployment);
    Service {
        name: format!("app-{deployment}").into(),
        hostname: format!("app-{deployment}.{namespace}.svc.cluster.local").into(),
        namespace: namespace.into(),
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
        namespace: namespace(deployment).into(),
        name: format!("app-{deployment}-abcde").into(),
        service: format!("app-{deployment}").into(),
        ports: vec![ServicePort { name: "http".into(), port: 8080 }],
        endpoints: replicas.map(endpoint).collect(),
    }
}

/// Each allows one more deployment to call; the last of a deployment's allows its own.
fn policy(i: u32) -> AuthorizationPolicy {
    let deployment = i % DEPLOYMENTS;
    let caller = (deployment + i / DEPLOYMENTS + 1 + DEPLOYMENTS - POLICIES / DEPLOYMENTS) % DEPLOYMENTS;
    let principal = identity(caller).to_string();
    let principal = StringMatch::Exact(principal.trim_start_matches("spiffe://").to_owned());
    let from = vec![Source { principals: vec![principal], ..Source::default() }];
    AuthorizationPolicy {
        namespace: namespace(deployment).into(),
        name: format!("policy-{i}").into(),
        selector: [("app".to_string(), format!("app-{deployment}"))].into(),
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule { from, ..Rule::default() }],
        warnings: vec![],
    }
}

/// Pods of the whole mesh.
pub const WORKLOADS: u32 = 100_000;
/// AuthorizationPolicies of the whole mesh.
pub const POLICIES: u32 = 10_000;
/// Fifty pods each.
pub const DEPLOYMENTS: u32 = 2_000;
const NAMESPACES: u32 = 100;
