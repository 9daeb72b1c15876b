//! A WorkloadEntry to a workload: what runs on a VM, outside Kubernetes.
//!
//! It shares its machine's network namespace and address with others, so it is a hostNetwork workload. Its labels are
//! those of its spec and its metadata together, as Istio takes them; the metadata's win.

use std::net::IpAddr;

use signet_manifests::{Document, DocumentError};
use smallvec::smallvec;

use crate::discovery::istio::{Resource, WorkloadEntrySpec};
use crate::discovery::surroundings::legal;
use crate::discovery::{DiscoveryOptions, Origin, addresses, cgroup, naming, owner};
use crate::state::{ContainerPort, Ports, Template, Workload};

/// The workload, as far as the entry alone says it; `None` where its address is a name or a socket, not an IP address.
/// Its zone is empty where it has no locality.
pub(crate) fn workload(
    document: &Document,
    options: &DiscoveryOptions,
) -> Result<Option<Workload>, DocumentError> {
    let entry: Resource<WorkloadEntrySpec> = document.parse()?;
    let spec = entry.spec.unwrap_or_default();
    if spec.address.parse::<IpAddr>().is_err() {
        return Ok(None);
    }
    let key = document.key();
    let mut labels = spec.labels;
    labels.extend(entry.metadata.labels.unwrap_or_default());
    legal(document, &labels)?;
    let annotations = entry.metadata.annotations.unwrap_or_default();
    let node = annotations.get(NODE).or_else(|| labels.get(NODE)).cloned().unwrap_or_default();
    let service_account = Some(spec.service_account).filter(|sa| !sa.is_empty());
    let service_account = service_account.as_deref().unwrap_or("default");
    let template = Template {
        namespace: key.namespace.clone(),
        service_account: service_account.into(),
        identity: naming::identity(document, options, service_account)?,
        cluster: options.cluster.as_str().into(),
        ports: ports(document, &spec.ports)?,
        workload_name: None,
        workload_type: "pod",
        canonical_name: owner::canonical_name(&labels).map(Into::into),
        canonical_revision: owner::canonical_revision(&labels).into(),
        labels,
    };
    Ok(Some(Workload {
        uid: naming::uid(document, options, &entry.metadata.uid.unwrap_or_default()),
        name: key.name.clone(),
        template: template.into(),
        node: node.as_str().into(),
        zone: zone(&spec.locality).unwrap_or_default().into(),
        addresses: smallvec![addresses::unicast(document, "spec.address", &spec.address)?],
        host_network: true,
        enrolled: false,
        same_node: options.same_node,
        cgroup: match options.origin {
            Origin::Directory => cgroup::annotated(document, Some(&annotations))?,
            Origin::Cluster { .. } => None,
        },
    }))
}

fn ports(
    document: &Document,
    ports: &std::collections::BTreeMap<String, i64>,
) -> Result<Ports, DocumentError> {
    let port = |(name, number): (&String, &i64)| {
        let port = addresses::port(document, &format!("spec.ports.{name}"), *number)?;
        Ok(ContainerPort { name: Some(name.as_str().into()), port, at_node: None })
    };
    ports.iter().map(port).collect()
}

/// `region/zone/subzone`.
fn zone(locality: &str) -> Option<&str> {
    locality.split('/').nth(1).filter(|zone| !zone.is_empty())
}

/// The machine an entry runs on, as an annotation or a label.
const NODE: &str = "signet.dev/node";
