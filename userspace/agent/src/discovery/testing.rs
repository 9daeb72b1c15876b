//! Manifests from text, for the tests of this module.

use std::sync::Arc;

use signet_identity::TrustDomain;
use signet_manifests::{Directory, Document, Snapshot};

use crate::config::SameNode;
use crate::discovery::{DiscoveryOptions, Origin};

/// What a directory with this one file says.
pub(crate) fn snapshot(yaml: &str) -> Snapshot {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("m.yaml"), yaml).unwrap();
    let snapshot = Directory::open(directory.path()).unwrap().read();
    assert!(snapshot.faults.is_empty(), "{:?}", snapshot.faults);
    snapshot
}

/// The only document of a text.
pub(crate) fn document(yaml: &str) -> Arc<Document> {
    let snapshot = snapshot(yaml);
    assert_eq!(snapshot.documents.len(), 1);
    snapshot.documents[0].clone()
}

/// A mesh with Istio's defaults.
pub(crate) fn options() -> DiscoveryOptions {
    DiscoveryOptions {
        trust_domain: TrustDomain::parse("cluster.local").unwrap(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        root_namespace: "istio-system".into(),
        same_node: SameNode::Direct,
        node: "n1".into(),
        zone: "z1".into(),
        origin: Origin::Directory,
    }
}
