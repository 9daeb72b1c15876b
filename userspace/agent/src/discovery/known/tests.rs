//! From snapshots of manifests to events: what is told, what is held back, what is told once.

use signet_manifests::Snapshot;

use super::*;
use crate::discovery::files::Differences;
use crate::discovery::testing;
use crate::policy::{Action, MtlsMode, StringMatch};
use crate::state::Workload;

mod cluster;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web-6d4b75cb6d-x1
  namespace: shop
  uid: 11111111-2222-3333-4444-555555555555
  labels: {app: web, version: v2, pod-template-hash: 6d4b75cb6d, istio.io/dataplane-mode: ambient}
  annotations: {signet.dev/cgroup: pods/web}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: web-6d4b75cb6d, uid: u, controller: true}
spec:
  nodeName: n1
  serviceAccountName: web
  containers:
  - name: web
    image: nginx
    ports: [{name: http, containerPort: 8080}, {containerPort: 53, protocol: UDP}]
status: {phase: Running, podIPs: [{ip: 10.0.0.7}, {ip: 'fd00::7'}]}
---
";
const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: eu-1a}}
---
";
const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {namespaces: [bad]}}]}]}
---
";

/// What is known of a directory.
struct Told {
    known: Known,
    differences: Differences,
}

struct Changes {
    events: Vec<Event>,
    faults: Vec<DocumentError>,
}

impl Told {
    fn update(&mut self, snapshot: &Snapshot) -> Changes {
        let events = self.known.update(self.differences.since_last(snapshot));
        Changes { events, faults: self.known.faults().cloned().collect() }
    }
}

fn known() -> Told {
    Told { known: Known::new(testing::options()), differences: Differences::default() }
}

fn update(known: &mut Told, yaml: &str) -> Vec<Event> {
    let changes = known.update(&testing::snapshot(yaml));
    assert_eq!(changes.faults, []);
    changes.events
}

fn only_workload(yaml: &str) -> Workload {
    let events = update(&mut known(), yaml);
    let mut workloads = events.into_iter().filter_map(|event| match event {
        Event::Workload(workload) => Some(Workload::clone(&workload)),
        _ => None,
    });
    let workload = workloads.next().expect("a workload");
    assert!(workloads.next().is_none());
    workload
}

#[test]
fn a_pod_is_a_workload_with_everything_that_names_it() {
    let workload = only_workload(&format!("{POD}{NODE}"));
    assert_eq!(
        workload.uid.as_str(),
        "Kubernetes//Pod/shop/web-6d4b75cb6d-x1/11111111-2222-3333-4444-555555555555"
    );
    assert_eq!(workload.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((&*workload.node, &*workload.zone, &*workload.cluster), ("n1", "eu-1a", "Kubernetes"));
    assert_eq!(
        workload.addresses[..],
        ["10.0.0.7".parse::<std::net::IpAddr>().unwrap(), "fd00::7".parse().unwrap()]
    );
    assert!(workload.enrolled && !workload.host_network);
    assert_eq!((&**workload.workload_name(), workload.workload_type), ("web", "deployment"));
    assert_eq!((&**workload.canonical_name(), &*workload.canonical_revision), ("web", "v2"));
    assert_eq!(workload.cgroup, Some("pods/web".into()));
    assert_eq!(
        workload.ports.iter().map(|p| (p.name.as_deref(), p.port)).collect::<Vec<_>>(),
        [(Some("http"), 8080)]
    );
}

#[test]
fn a_namespace_enrols_its_pods_and_a_pod_may_opt_out() {
    let pod = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop, uid: u1, labels: {labels}}}\n\
             spec: {{containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n---\n"
        )
    };
    let namespace = |labels: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {labels}}}\n---\n")
    };
    let enrolled =
        |pod_labels: &str, labels: &str| only_workload(&(pod(pod_labels) + &namespace(labels))).enrolled;
    assert!(enrolled("{}", "{istio.io/dataplane-mode: ambient}"));
    assert!(enrolled("{}", "{signet.dev/mode: enabled}"));
    assert!(!enrolled("{istio.io/dataplane-mode: none}", "{signet.dev/mode: enabled}"));
    assert!(enrolled("{signet.dev/mode: enabled}", "{istio.io/dataplane-mode: none}"));
    assert!(!enrolled("{}", "{}"));
}

#[test]
fn a_namespace_that_changes_changes_its_pods() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, uid: u1}\n\
               spec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n---\n";
    let mut known = known();
    update(&mut known, pod);
    let namespace =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {signet.dev/mode: enabled}}\n";
    let events = update(&mut known, &format!("{pod}{namespace}"));
    assert!(matches!(&events[..], [Event::Workload(w)] if w.enrolled), "{events:?}");
}

#[test]
fn a_namespace_with_a_misspelt_mode_keeps_its_last_one_and_enrols_where_there_is_none() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, uid: u1}\n\
               spec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n---\n";
    let with = |mode: &str| {
        let labels = format!("labels: {{signet.dev/mode: {mode}}}");
        testing::snapshot(&format!(
            "{pod}apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {labels}}}\n"
        ))
    };
    let mut fresh = known();
    let changes = fresh.update(&with("enable"));
    assert!(matches!(&changes.events[..], [Event::Workload(w)] if w.enrolled), "{:?}", changes.events);
    assert_eq!(changes.faults[0].field, "metadata.labels[signet.dev/mode]");

    let mut opted_out = known();
    opted_out.update(&with("disabled"));
    assert_eq!(opted_out.update(&with("disable")).events, []);
}

#[test]
fn a_pod_that_has_ended_or_has_no_address_is_no_workload() {
    for (from, to) in [
        ("phase: Running", "phase: Succeeded"),
        ("phase: Running", "phase: Failed"),
        ("podIPs: [{ip: 10.0.0.7}, {ip: 'fd00::7'}]", "podIPs: []"),
    ] {
        let mut known = known();
        assert_eq!(update(&mut known, POD).len(), 1);
        let ended = POD.replace(from, to);
        assert_ne!(ended, POD);
        let events = update(&mut known, &ended);
        assert!(matches!(&events[..], [Event::WorkloadGone(_)]), "{to}: {events:?}");
    }
}

#[test]
fn a_pod_that_is_being_deleted_stays_a_workload_while_it_runs() {
    let mut known = known();
    assert_eq!(update(&mut known, POD).len(), 1);
    let deleted = POD.replace("  name: web-", "  deletionTimestamp: '2026-01-01T00:00:00Z'\n  name: web-");
    assert_ne!(deleted, POD);
    assert_eq!(update(&mut known, &deleted), []);
}

#[test]
fn a_pod_that_cannot_be_trusted_is_a_fault_that_names_the_field() {
    for (from, to, field) in [
        ("  uid: 11111111-2222-3333-4444-555555555555\n", "", "metadata.uid"),
        ("uid: 11111111-2222-3333-4444-555555555555", "uid: a/b", "metadata.uid"),
        ("ip: 10.0.0.7", "ip: 127.0.0.1", "status.podIPs"),
        ("ip: 10.0.0.7", "ip: pod.local", "status.podIPs"),
        ("serviceAccountName: web", "serviceAccountName: ../admin", "spec.serviceAccountName"),
        ("cgroup: pods/web", "cgroup: ../web", "metadata.annotations[signet.dev/cgroup]"),
        (
            "dataplane-mode: ambient",
            "dataplane-mode: ambient, signet.dev/mode: on",
            "metadata.labels[signet.dev/mode]",
        ),
        ("containerPort: 8080", "containerPort: 80800", "spec.containers[].ports[].containerPort"),
        ("containerPort: 8080", "containerPort: 8080, hostPort: 80800", "spec.containers[].ports[].hostPort"),
    ] {
        let broken = POD.replace(from, to);
        assert_ne!(broken, POD);
        let changes = known().update(&testing::snapshot(&broken));
        assert_eq!(changes.events, [], "{to}");
        assert_eq!(changes.faults[0].field, field, "{}", changes.faults[0]);
    }
}

#[test]
fn a_broken_pod_keeps_its_last_good_version_until_it_is_gone() {
    let mut known = known();
    update(&mut known, POD);
    let changes = known.update(&testing::snapshot(&POD.replace("ip: 10.0.0.7", "ip: x")));
    assert_eq!((changes.events.len(), changes.faults.len()), (0, 1));
    assert!(matches!(&update(&mut known, NODE)[..], [Event::WorkloadGone(_)]));
}

#[test]
fn a_pod_that_returns_under_its_name_is_another_workload() {
    let mut known = known();
    update(&mut known, POD);
    let events = update(&mut known, &POD.replace("uid: 1111", "uid: 9999"));
    assert!(matches!(&events[..], [Event::WorkloadGone(_), Event::Workload(_)]), "{events:?}");
}

#[test]
fn nothing_is_told_twice() {
    let mut known = known();
    let all = format!("{POD}{NODE}{DENY}");
    assert_eq!(update(&mut known, &all).len(), 2);
    assert_eq!(update(&mut known, &all), []);
}

#[test]
fn policies_come_first_and_go_last() {
    let mut known = known();
    let events = update(&mut known, &format!("{POD}{DENY}"));
    assert!(matches!(&events[..], [Event::Authorization(_), Event::Workload(_)]), "{events:?}");
    let events = update(&mut known, "");
    assert!(matches!(&events[..], [Event::WorkloadGone(_), Event::AuthorizationGone(..)]), "{events:?}");
}

#[test]
fn a_misspelt_policy_keeps_its_last_good_version() {
    let mut known = known();
    update(&mut known, DENY);
    let changes = known.update(&testing::snapshot(&DENY.replace("namespaces:", "namespace:")));
    assert_eq!((changes.events.len(), changes.faults.len()), (0, 1));
    let events = update(&mut known, &DENY.replace("[bad]", "[worse]"));
    assert!(matches!(&events[..], [Event::Authorization(p)]
        if p.rules[0].from[0].namespaces == [StringMatch::Exact("worse".into())]));
}

#[test]
fn a_policy_never_understood_denies_its_workloads_and_no_others() {
    let changes = known().update(&testing::snapshot(&DENY.replace("namespaces:", "namespace:")));
    let [Event::Authorization(policy)] = &changes.events[..] else { panic!("{:?}", changes.events) };
    assert_eq!(policy.action, Action::Deny);
    assert_eq!(policy.selector.get("app").map(String::as_str), Some("web"));
    assert!(policy.warnings[0].contains("spec.rules[0].from[0].source.namespace"), "{:?}", policy.warnings);
    let flow_matches_all = policy.rules[0].from.is_empty() && policy.rules[0].to.is_empty();
    assert!(flow_matches_all && policy.rules[0].unsupported);
}

#[test]
fn a_stand_in_covers_the_whole_namespace_where_the_selector_is_unclear() {
    let broken = DENY.replace("matchLabels", "matchlabels");
    let changes = known().update(&testing::snapshot(&broken));
    assert!(matches!(&changes.events[..], [Event::Authorization(p)] if p.selector.is_empty()));
}

#[test]
fn a_stand_in_ends_when_the_policy_is_mended_or_gone() {
    let mut known = known();
    let broken = DENY.replace("namespaces:", "namespace:");
    known.update(&testing::snapshot(&broken));
    let again = known.update(&testing::snapshot(&broken.replace("app: web", "app: db")));
    assert!(matches!(&again.events[..], [Event::Authorization(p)] if p.selector["app"] == "db"));
    let events = update(&mut known, DENY);
    assert!(matches!(&events[..], [Event::Authorization(p)] if p.warnings.is_empty()));
    assert!(matches!(&update(&mut known, "")[..], [Event::AuthorizationGone(..)]));
}

#[test]
fn a_peer_authentication_never_understood_is_strict() {
    let yaml = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                metadata: {name: p, namespace: shop}\nspec: {mtls: {mode: OFF}}\n";
    let changes = known().update(&testing::snapshot(yaml));
    let [Event::PeerAuthentication(policy)] = &changes.events[..] else { panic!("{:?}", changes.events) };
    assert_eq!(policy.mode, MtlsMode::Strict);
    assert!(policy.warnings[0].contains("spec.mtls.mode"), "{:?}", policy.warnings);
    assert_eq!(changes.faults[0].field, "spec.mtls.mode");
}

#[test]
fn the_modes_of_a_peer_authentication_are_kept_by_port() {
    let yaml = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                metadata: {name: p, namespace: shop, creationTimestamp: '1970-01-01T00:01:00Z'}\n\
                spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, \
                portLevelMtls: {8080: {mode: DISABLE}, '9090': {mode: PERMISSIVE}}}\n";
    let events = update(&mut known(), yaml);
    let [Event::PeerAuthentication(policy)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((policy.mode, policy.created), (MtlsMode::Strict, 60));
    assert_eq!(policy.ports, [(8080, MtlsMode::Disable), (9090, MtlsMode::Permissive)].into());
}

#[test]
fn a_workload_entry_is_a_workload_of_its_machine() {
    let workload = only_workload(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {name: db, namespace: shop, labels: {signet.dev/mode: enabled}, \
         annotations: {signet.dev/unit: postgres.service, signet.dev/node: vm1}}\n\
         spec: {address: 10.9.0.1, serviceAccount: db, labels: {app: db}, locality: eu/eu-1b/x, ports: {pg: 5432}}\n",
    );
    assert!(workload.enrolled && workload.host_network);
    assert_eq!(workload.uid.as_str(), "Kubernetes/networking.istio.io/WorkloadEntry/shop/db/");
    assert_eq!(workload.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/db");
    assert_eq!(workload.cgroup, Some("system.slice/postgres.service".into()));
    assert_eq!((&*workload.node, &*workload.zone, &**workload.canonical_name()), ("vm1", "eu-1b", "db"));
    assert_eq!(workload.ports[0].port, 5432);
}

#[test]
fn services_and_slices_keep_their_tcp_ports() {
    let events = update(
        &mut known(),
        "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd96::1']
  ports: [{name: http, port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.7], conditions: {ready: false}, zone: eu-1a}
- {addresses: [10.0.0.8]}
",
    );
    let services: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Service(service) => Some((&*service.hostname, service.vips.len(), service.ports.len())),
            _ => None,
        })
        .collect();
    assert_eq!(services, [("web.shop.svc.cluster.local", 2, 1), ("headless.shop.svc.cluster.local", 0, 1)]);
    let slice = events.iter().find_map(|event| match event {
        Event::EndpointSlice(slice) => Some(slice),
        _ => None,
    });
    let slice = slice.expect("a slice");
    assert_eq!((&*slice.service, slice.ports.len(), slice.ports[0].port), ("web", 1, 8080));
    assert_eq!(
        slice.endpoints.iter().map(|e| (e.ready, &*e.zone)).collect::<Vec<_>>(),
        [(false, "eu-1a"), (true, "")]
    );
}
