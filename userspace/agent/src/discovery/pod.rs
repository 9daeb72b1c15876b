//! A Pod to a workload.
//!
//! A pod is a workload from the moment it has an address until it has finished. One that is being deleted still runs,
//! for as long as its grace period, and must not fall out of the mesh meanwhile: that no new connection is sent to it is
//! for the EndpointSlices to say. One that the API server has bound to this node is a workload even before it has an
//! address: kubelet tells the address up to a second after the pod's first process runs, and that one may connect.

use k8s_openapi::api::core::v1::{Container, ContainerPort as Declared, Pod, PodSpec, PodStatus};
use signet_manifests::{Document, DocumentError};

use crate::discovery::surroundings::legal;
use crate::discovery::{DiscoveryOptions, addresses, cgroup, naming, owner};
use crate::state::{Addresses, ContainerPort, Ports, Template, Workload};

/// The workload, as far as the pod alone says it; `None` while it has no address, and when it has ended.
pub(crate) fn workload(
    document: &Document,
    options: &DiscoveryOptions,
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
    let node = spec.node_name.as_deref().unwrap_or_default();
    if ended || (addresses.is_empty() && !options.origin.binds_to(node)) {
        return Ok(None);
    }
    let key = document.key();
    let labels = metadata.labels.clone().unwrap_or_default();
    legal(document, &labels)?;
    let service_account =
        spec.service_account_name.as_deref().filter(|sa| !sa.is_empty()).unwrap_or("default");
    let (workload_name, workload_type) = owner::workload(metadata);
    let template = Template {
        namespace: key.namespace.clone(),
        service_account: service_account.into(),
        identity: naming::identity(document, options, service_account)?,
        cluster: options.cluster.as_str().into(),
        ports: ports(document, &spec)?,
        workload_name: workload_name.map(Into::into),
        workload_type,
        canonical_name: owner::canonical_name(&labels).map(Into::into),
        canonical_revision: owner::canonical_revision(&labels).into(),
        labels,
    };
    Ok(Some(Workload {
        uid: naming::uid(document, options, uid),
        name: key.name.clone(),
        template: template.into(),
        node: node.into(),
        zone: "".into(),
        addresses,
        host_network: spec.host_network == Some(true),
        enrolled: false,
        same_node: options.same_node,
        cgroup: cgroup::of_pod(document, metadata, node, options)?,
    }))
}

/// Any text the API server may call a uid; it becomes the last segment of ours.
fn is_uid(uid: &str) -> bool {
    (1..=128).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn addresses(document: &Document, status: &PodStatus) -> Result<Addresses, DocumentError> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let texts: Vec<&str> = match status.pod_ips.as_deref() {
        None | Some([]) => status.pod_ip.as_deref().into_iter().collect(),
        Some(_) => all.collect(),
    };
    let texts = texts.into_iter().filter(|text| !text.is_empty());
    texts.map(|text| addresses::unicast(document, "status.podIPs", text)).collect()
}

fn ports(document: &Document, spec: &PodSpec) -> Result<Ports, DocumentError> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(tcp_ports)
        .map(|declared| {
            let number = |field: &str, number: i32| {
                addresses::port(document, &format!("spec.containers[].ports[].{field}"), number.into())
            };
            let at_node = declared.host_port.filter(|port| *port != 0 && is_everywhere(declared));
            Ok(ContainerPort {
                name: declared.name.as_deref().map(Into::into),
                port: number("containerPort", declared.container_port)?,
                at_node: at_node.map(|port| number("hostPort", port)).transpose()?,
            })
        })
        .collect()
}

fn tcp_ports(container: &Container) -> impl Iterator<Item = &Declared> {
    let tcp = |protocol: Option<&str>| protocol.is_none_or(|protocol| protocol == "TCP");
    container.ports.iter().flatten().filter(move |port| tcp(port.protocol.as_deref()))
}

/// Whether its `hostPort` is one of all of the node's addresses, of either family.
fn is_everywhere(port: &Declared) -> bool {
    port.host_ip.as_deref().is_none_or(str::is_empty)
}
