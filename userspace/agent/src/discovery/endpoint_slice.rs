//! An EndpointSlice to its endpoints and TCP target ports.

use k8s_openapi::api::discovery::v1::{Endpoint as ManifestEndpoint, EndpointSlice as Manifest};
use signet_manifests::{Document, DocumentError};

use crate::discovery::addresses;
use crate::state::{Endpoint, EndpointSlice, ServicePort};

/// The slice; `None` where it belongs to no Service or holds names instead of addresses.
pub(crate) fn endpoint_slice(document: &Document) -> Result<Option<EndpointSlice>, DocumentError> {
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
    let endpoints =
        endpoints.filter_map(|(index, endpoint)| self::endpoint(document, index, endpoint).transpose());
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
    index: usize,
    endpoint: &ManifestEndpoint,
) -> Result<Option<Endpoint>, DocumentError> {
    let Some(address) = endpoint.addresses.first() else { return Ok(None) };
    let address = addresses::unicast(document, &format!("endpoints[{index}].addresses"), address)?;
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
    let pod = endpoint.target_ref.as_ref().is_some_and(|target| target.kind.as_deref() == Some("Pod"));
    Ok(Some(Endpoint { address, ready, zone: endpoint.zone.as_deref().unwrap_or_default().into(), pod }))
}

/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
