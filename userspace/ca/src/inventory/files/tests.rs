//! Which workloads count on which node.

use super::*;

fn snapshot(yaml: &str) -> Snapshot {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("m.yaml"), yaml).unwrap();
    Directory::open(directory.path()).unwrap().read()
}

fn pod(account: &str, rest: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: a}}, spec: {{{account}nodeName: n1}}{rest}}}\n"
    )
}

fn has(yaml: &str, node: &str, service_account: &str) -> bool {
    let mut known = BTreeMap::new();
    assert!(update(&mut known, &snapshot(yaml)).is_empty());
    inventory(&known).has(node, "a", service_account)
}

#[test]
fn a_pod_counts_on_its_node_with_its_account() {
    let yaml = pod("serviceAccountName: web, ", "");
    assert!(has(&yaml, "n1", "web"));
    assert!(!has(&yaml, "n2", "web") && !has(&yaml, "n1", "default"));
    assert!(has(&pod("", ""), "n1", "default"));
}

#[test]
fn a_pod_that_has_finished_counts_nowhere() {
    assert!(has(&pod("", ", status: {phase: Running}"), "n1", "default"));
    for phase in ["Succeeded", "Failed"] {
        assert!(!has(&pod("", &format!(", status: {{phase: {phase}}}")), "n1", "default"));
    }
}

#[test]
fn a_pod_that_is_not_bound_counts_nowhere() {
    assert!(!has(&pod("", "").replace("nodeName: n1", "nodeName: ''"), "", "default"));
}

#[test]
fn a_workload_entry_counts_on_the_node_it_names() {
    for carrier in ["labels", "annotations"] {
        let yaml = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: db, namespace: a, {carrier}: {{signet.dev/node: vm1}}}}\n\
             spec: {{address: 10.0.0.1, serviceAccount: db}}\n"
        );
        assert!(has(&yaml, "vm1", "db"), "{carrier}");
    }
}

#[test]
fn a_broken_pod_keeps_its_last_place_until_it_is_gone() {
    let mut known = BTreeMap::new();
    update(&mut known, &snapshot(&pod("", "")));
    let faults = update(&mut known, &snapshot(&pod("", "").replace("n1", "[n1]")));
    assert_eq!((faults.len(), faults[0].field.as_str()), (1, "spec.nodeName"));
    assert!(inventory(&known).has("n1", "a", "default"));
    update(&mut known, &snapshot(""));
    assert!(!inventory(&known).has("n1", "a", "default"));
}
