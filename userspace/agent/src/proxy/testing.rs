//! What the proxies' tests share.

use std::collections::BTreeMap;
use std::sync::Arc;

use signet_identity::SpiffeId;

use crate::addr::WorkloadUid;
use crate::state::Workload;

/// A workload `ns/<name>` with identity `spiffe://cluster.local/ns/ns/sa/<name>`.
pub(crate) fn workload(name: &str) -> Arc<Workload> {
    let text = |text: &str| Arc::<str>::from(text);
    Arc::new(Workload {
        uid: WorkloadUid::new(format!("uid-{name}")),
        name: text(name),
        namespace: text("ns"),
        service_account: text(name),
        identity: SpiffeId::parse(&format!("spiffe://cluster.local/ns/ns/sa/{name}")).unwrap(),
        node: text("n1"),
        zone: text("z1"),
        cluster: text("Kubernetes"),
        addresses: Vec::new(),
        host_network: false,
        enrolled: true,
        labels: BTreeMap::new().into(),
        ports: Vec::new().into(),
        workload_name: text(name),
        workload_type: text("deployment"),
        canonical_name: text(name),
        canonical_revision: text("v1"),
        cgroup: None,
    })
}
