//! One document to what it means for the mesh.

use signet_manifests::{Document, DocumentError};

use crate::discovery::{
    DiscoveryOptions, authorization, endpoint_slice, failsafe, peer_authentication, pod, ranges, service,
    workload_entry,
};
use crate::state::Event;

/// Converts a document; `None` where it means nothing to the mesh (now). A workload does not have yet what its Namespace
/// and Node say of it.
pub(crate) fn convert(
    document: &Document,
    options: &DiscoveryOptions,
) -> Result<Option<Event>, DocumentError> {
    let domain = &options.cluster_domain;
    let key = document.key();
    Ok(match (&*key.group, &*key.kind) {
        ("", "Pod") => pod::workload(document, options)?.map(|workload| Event::Workload(workload.into())),
        ("networking.istio.io", "WorkloadEntry") => {
            workload_entry::workload(document, options)?.map(|workload| Event::Workload(workload.into()))
        }
        ("", "Service") => service::service(document, domain)?.map(Event::Service),
        ("discovery.k8s.io", "EndpointSlice") => {
            endpoint_slice::endpoint_slice(document, options)?.map(Event::EndpointSlice)
        }
        ("", "Node") => ranges::of_node(document)?.map(Event::Ranges),
        ("networking.k8s.io", "ServiceCIDR") => ranges::of_services(document)?.map(Event::Ranges),
        ("security.istio.io", "AuthorizationPolicy") => {
            Some(Event::Authorization(Box::new(authorization::policy(document)?)))
        }
        ("security.istio.io", "PeerAuthentication") => {
            let root = &options.root_namespace;
            Some(Event::PeerAuthentication(Box::new(peer_authentication::policy(document, root)?)))
        }
        _ => None,
    })
}

/// What stands in for a document that cannot be converted; `None` where leaving it out opens nothing.
pub(crate) fn failsafe(document: &Document, error: &DocumentError) -> Option<Event> {
    if document.is("security.istio.io", "AuthorizationPolicy") {
        return Some(Event::Authorization(Box::new(failsafe::authorization(document, error))));
    }
    if document.is("security.istio.io", "PeerAuthentication") {
        return Some(Event::PeerAuthentication(Box::new(failsafe::peer_authentication(document, error))));
    }
    None
}

/// The event that takes back what `event` told of anything but a workload.
pub(crate) fn gone(event: &Event) -> Option<Event> {
    Some(match event {
        Event::Service(service) => Event::ServiceGone(service.namespace.clone(), service.name.clone()),
        Event::EndpointSlice(slice) => Event::EndpointSliceGone(slice.namespace.clone(), slice.name.clone()),
        Event::Authorization(policy) => {
            Event::AuthorizationGone(policy.namespace.clone(), policy.name.clone())
        }
        Event::PeerAuthentication(policy) => {
            Event::PeerAuthenticationGone(policy.namespace.clone(), policy.name.clone())
        }
        Event::Ranges(ranges) => Event::RangesGone(ranges.kind, ranges.owner.clone()),
        _ => return None,
    })
}
