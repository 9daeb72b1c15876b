//! A Pod to a workload.
//!
//! A pod is a workload from the moment it has an address until it has finished. One that is being deleted still runs,
//! for as long as its grace period, and must not fall out of the mesh meanwhile: that no new connection is sent to it is
//! for the EndpointSlices to say. Its cgroup comes from an annotation here; where the kernel's cgroup names carry the
//! pod's uid, that is for others to find.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use signet_manifests::{Document, DocumentError};

use crate::addr::WorkloadUid;
use crate::discovery::surroundings::Surroundings;
use crate::discovery::{addresses, cgroup, owner};
use crate::state::{ContainerPort, Workload};

/// The workload; `None` while the pod has no address, and when it has ended.
pub(crate) fn workload(
    document: &Document,
    surroundings: &Surroundings,
) -> Result<Option<Workload>, DocumentError> {
    let pod: Pod = document.parse()?;
    let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
    let metadata = &pod.metadata;
    let uid = metadata.uid.as_deref().filter(|uid| is_uid(uid)).ok_or_else(|| {
        document.error(
            "metadata.uid",
            "is missing or illegal: a pod that returns under its name must have another one",
        )
    })?;
    let addresses = addresses(document, &status)?;
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if addresses.is_empty() || ended {
        return Ok(None);
    }
    let key = document.key();
    let labels = metadata.labels.clone().unwrap_or_default();
    let service_account =
        spec.service_account_name.as_deref().filter(|sa| !sa.is_empty()).unwrap_or("default");
    let node = spec.node_name.as_deref().unwrap_or_default();
    let (workload_name, workload_type) = owner::workload(metadata, &key.name);
    Ok(Some(Workload {
        uid: WorkloadUid::new(surroundings.uid(document, uid)),
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        service_account: service_account.into(),
        identity: surroundings.identity(document, service_account)?,
        node: node.into(),
        zone: surroundings.zone(node, &labels),
        cluster: surroundings.options.cluster.as_str().into(),
        addresses,
        host_network: spec.host_network == Some(true),
        enrolled: surroundings.enrolled(document, &labels)?,
        same_node: surroundings.same_node(document, &labels)?,
        ports: ports(document, &spec)?,
        canonical_name: owner::canonical_name(&labels, &workload_name).into(),
        canonical_revision: owner::canonical_revision(&labels).into(),
        workload_name: workload_name.into(),
        workload_type: workload_type.into(),
        cgroup: cgroup::path(document, metadata.annotations.as_ref())?,
        labels: Arc::new(labels),
    }))
}

/// Any text the API server may call a uid; it becomes the last segment of ours.
fn is_uid(uid: &str) -> bool {
    (1..=128).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn addresses(document: &Document, status: &PodStatus) -> Result<Vec<IpAddr>, DocumentError> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let texts: Vec<&str> = match status.pod_ips.as_deref() {
        None | Some([]) => status.pod_ip.as_deref().into_iter().collect(),
        Some(_) => all.collect(),
    };
    let texts = texts.into_iter().filter(|text| !text.is_empty());
    texts.map(|text| addresses::unicast(document, "status.podIPs", text)).collect()
}

fn ports(document: &Document, spec: &PodSpec) -> Result<Arc<[ContainerPort]>, DocumentError> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(tcp_ports)
        .map(|(name, number)| {
            let port = addresses::port(document, "spec.containers[].ports[].containerPort", number.into())?;
            Ok(ContainerPort { name: name.map(Into::into), port })
        })
        .collect()
}

fn tcp_ports(container: &Container) -> impl Iterator<Item = (Option<&str>, i32)> {
    let tcp = |protocol: Option<&str>| protocol.is_none_or(|protocol| protocol == "TCP");
    let ports = container.ports.iter().flatten().filter(move |port| tcp(port.protocol.as_deref()));
    ports.map(|port| (port.name.as_deref(), port.container_port))
}
