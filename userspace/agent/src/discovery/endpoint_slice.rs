//! An EndpointSlice to its endpoints and TCP target ports.

use k8s_openapi::api::discovery::v1::{Endpoint as ManifestEndpoint, EndpointSlice as Manifest};
use signet_manifests::{Document, DocumentError};

use crate::discovery::{DiscoveryOptions, addresses};
use crate::state::{Endpoint, EndpointSlice, Hint, ServicePort};

/// The slice; `None` where it belongs to no Service or holds names instead of addresses.
pub(crate) fn endpoint_slice(
    document: &Document,
    options: &DiscoveryOptions,
) -> Result<Option<EndpointSlice>, DocumentError> {
    let manifest: Manifest = document.parse()?;
    let labels = manifest.metadata.labels.unwrap_or_default();
    let Some(service) = labels.get(SERVICE_NAME).filter(|_| manifest.address_type != "FQDN") else {
        return Ok(None);
    };
    let mut ports = Vec::new();
    for (index, port) in manifest.ports.iter().flatten().enumerate() {
        // A port without a number means "all ports", which no Service port refers to.
        if let Some(number) = port.port.filter(|_| port.protocol.as_deref().is_none_or(|p| p == "TCP")) {
            let number = addresses::port(document, &format!("ports[{index}].port"), number.into())?;
            ports.push(ServicePort { name: port.name.as_deref().unwrap_or_default().into(), port: number });
        }
    }
    let endpoints = manifest.endpoints.iter().flatten().enumerate();
    let endpoints = endpoints
        .filter_map(|(index, endpoint)| self::endpoint(document, options, index, endpoint).transpose());
    Ok(Some(EndpointSlice {
        namespace: document.key().namespace.clone(),
        name: document.key().name.clone(),
        service: service.as_str().into(),
        ports,
        endpoints: endpoints.collect::<Result<_, _>>()?,
    }))
}

/// Only the first address counts: the others are the same endpoint again (`discovery/v1/types.go`, `Addresses`).
fn endpoint(
    document: &Document,
    options: &DiscoveryOptions,
    index: usize,
    endpoint: &ManifestEndpoint,
) -> Result<Option<Endpoint>, DocumentError> {
    let Some(address) = endpoint.addresses.first() else { return Ok(None) };
    let address = addresses::unicast(document, &format!("endpoints[{index}].addresses"), address)?;
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_ref()).map(|all| all.iter().map(|zone| &zone.name));
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).map(|all| all.iter().map(|node| &node.name));
    Ok(Some(Endpoint {
        ready,
        draining: !ready && conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false),
        zone: endpoint.zone.as_deref().unwrap_or_default().into(),
        pod: endpoint.target_ref.as_ref().is_some_and(|target| target.kind.as_deref() == Some("Pod")),
        here: endpoint.node_name.as_ref().is_some_and(|node| *node == options.node),
        node_hint: nodes.map_or(Hint::None, |mut names| hint(&mut names, &options.node)),
        zone_hint: zones.map_or(Hint::None, |mut names| hint(&mut names, &options.zone)),
        ..Endpoint::at(address)
    }))
}

/// An empty list says nothing.
fn hint<'a>(names: &mut (impl ExactSizeIterator<Item = &'a String> + Clone), own: &str) -> Hint {
    match (names.len(), names.any(|name| name == own)) {
        (0, _) => Hint::None,
        (_, true) => Hint::Here,
        (_, false) => Hint::Elsewhere,
    }
}

/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::testing;

    fn only(endpoint: &str) -> Endpoint {
        let yaml = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
             ports: [{{name: http, port: 8080}}]\nendpoints: [{endpoint}]\n"
        );
        let slice = endpoint_slice(&testing::document(&yaml), &testing::options()).unwrap().unwrap();
        slice.endpoints[0].clone()
    }

    #[test]
    fn an_endpoint_is_seen_from_this_node_and_its_zone() {
        let seen = only(
            "{addresses: [10.0.0.1], nodeName: n1, targetRef: {kind: Pod, name: a}, \
             hints: {forZones: [{name: z0}, {name: z1}], forNodes: [{name: n2}]}}",
        );
        let expected = Endpoint {
            pod: true,
            here: true,
            zone_hint: Hint::Here,
            node_hint: Hint::Elsewhere,
            ..Endpoint::at([10, 0, 0, 1].into())
        };
        assert_eq!(seen, expected);
        assert_eq!(
            only("{addresses: [10.0.0.1], hints: {forZones: []}}"),
            Endpoint::at([10, 0, 0, 1].into())
        );
    }

    #[test]
    fn one_that_ends_serves_until_it_is_gone() {
        let conditions = |text: &str| only(&format!("{{addresses: [10.0.0.1], conditions: {text}}}"));
        let draining = conditions("{ready: false, serving: true, terminating: true}");
        assert!(draining.draining && !draining.ready);
        assert!(!conditions("{ready: false, serving: true}").draining);
        assert!(!conditions("{ready: true, serving: true, terminating: true}").draining);
    }
}
