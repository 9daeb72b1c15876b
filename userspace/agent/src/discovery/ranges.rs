//! The addresses that a cluster gives away: a Node's for its pods, a ServiceCIDR's for Services.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use signet_manifests::{Document, DocumentError};

use crate::discovery::addresses;
use crate::state::{RangeKind, Ranges};

/// The addresses of a node and of its pods; of these none where the CNI keeps them to itself.
pub(crate) fn of_node(document: &Document) -> Result<Option<Ranges>, DocumentError> {
    let node = document.parse::<Node>()?;
    let spec = node.spec.unwrap_or_default();
    let texts = spec.pod_cidrs.filter(|all| !all.is_empty()).or_else(|| spec.pod_cidr.map(|one| vec![one]));
    let pods = ranges(document, RangeKind::Pods, "spec.podCIDRs", texts)?;
    let node = own(&node.status.unwrap_or_default());
    Ok((!pods.blocks.is_empty() || !node.is_empty()).then_some(Ranges { node, ..pods }))
}

/// Where its kube-proxy answers for the ports of Services: not at names, and at external addresses only where no router of a
/// cloud's has them, which nobody can tell.
fn own(status: &NodeStatus) -> Vec<IpAddr> {
    let internal = status.addresses.iter().flatten().filter(|one| one.type_ == "InternalIP");
    internal.filter_map(|one| one.address.parse().ok()).collect()
}

/// The addresses of Services.
pub(crate) fn of_services(document: &Document) -> Result<Option<Ranges>, DocumentError> {
    let texts = document.parse::<ServiceCIDR>()?.spec.and_then(|spec| spec.cidrs);
    let ranges = ranges(document, RangeKind::Services, "spec.cidrs", texts)?;
    Ok((!ranges.blocks.is_empty()).then_some(ranges))
}

fn ranges(
    document: &Document,
    kind: RangeKind,
    field: &str,
    texts: Option<Vec<String>>,
) -> Result<Ranges, DocumentError> {
    let texts = texts.unwrap_or_default();
    let texts = texts.iter().filter(|text| !text.is_empty());
    let block = |text: &String| addresses::block(text).map_err(|reason| document.error(field, reason));
    let blocks: Vec<IpNet> = texts.map(block).collect::<Result<_, _>>()?;
    let owner = Arc::clone(&document.key().name);
    Ok(Ranges { kind, owner, blocks, node: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::testing;

    fn node(spec: &str) -> Result<Option<Ranges>, DocumentError> {
        let yaml = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\nspec: {spec}\n");
        of_node(&testing::document(&yaml))
    }

    #[test]
    fn a_nodes_ranges_are_those_of_both_families() {
        let both = "{podCIDR: 10.0.1.0/24, podCIDRs: [10.0.1.0/24, 'fd00:1::/64']}";
        let ranges = node(both).unwrap().unwrap();
        assert_eq!((ranges.kind, &*ranges.owner, ranges.blocks.len()), (RangeKind::Pods, "n1", 2));
        assert_eq!(node("{podCIDR: 10.0.1.0/24}").unwrap().unwrap().blocks.len(), 1);
        assert_eq!(node("{}").unwrap(), None);
    }

    #[test]
    fn a_node_has_addresses_of_its_own() {
        let status = "{}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: n1}]}";
        let ranges = node(status).unwrap().unwrap();
        assert_eq!((ranges.blocks.len(), &*ranges.node), (0, &["192.0.2.1".parse().unwrap()][..]));
    }

    #[test]
    fn a_range_that_is_none_is_named() {
        let error = node("{podCIDRs: [10.0.1.0/33]}").unwrap_err().to_string();
        assert!(error.contains("spec.podCIDRs") && error.contains("10.0.1.0/33"), "{error}");
    }

    #[test]
    fn a_service_cidr_has_the_addresses_of_services() {
        let yaml = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n\
                    spec: {cidrs: [10.96.0.0/16]}\n";
        let ranges = of_services(&testing::document(yaml)).unwrap().unwrap();
        assert_eq!((ranges.kind, &*ranges.owner), (RangeKind::Services, "kubernetes"));
    }
}
