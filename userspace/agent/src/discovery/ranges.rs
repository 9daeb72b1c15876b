//! The addresses that a cluster gives away: a Node's for its pods, a ServiceCIDR's for Services.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use signet_manifests::{Document, DocumentError};

use crate::discovery::addresses;
use crate::state::{RangeKind, Ranges};

/// The addresses of a node's pods; `None` where the CNI keeps them to itself.
pub(crate) fn of_node(document: &Document) -> Result<Option<Ranges>, DocumentError> {
    let spec = document.parse::<Node>()?.spec.unwrap_or_default();
    let texts = spec.pod_cidrs.filter(|all| !all.is_empty()).or_else(|| spec.pod_cidr.map(|one| vec![one]));
    ranges(document, RangeKind::Pods, "spec.podCIDRs", texts)
}

/// The addresses of Services.
pub(crate) fn of_services(document: &Document) -> Result<Option<Ranges>, DocumentError> {
    let texts = document.parse::<ServiceCIDR>()?.spec.and_then(|spec| spec.cidrs);
    ranges(document, RangeKind::Services, "spec.cidrs", texts)
}

fn ranges(
    document: &Document,
    kind: RangeKind,
    field: &str,
    texts: Option<Vec<String>>,
) -> Result<Option<Ranges>, DocumentError> {
    let texts = texts.unwrap_or_default();
    let texts = texts.iter().filter(|text| !text.is_empty());
    let block = |text: &String| addresses::block(text).map_err(|reason| document.error(field, reason));
    let blocks: Vec<IpNet> = texts.map(block).collect::<Result<_, _>>()?;
    let owner = Arc::clone(&document.key().name);
    Ok((!blocks.is_empty()).then_some(Ranges { kind, owner, blocks }))
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
