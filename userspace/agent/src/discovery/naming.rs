//! The names that a mesh gives its workloads: SPIFFE IDs and uids.

use signet_identity::SpiffeId;
use signet_manifests::{Document, DocumentError};

use crate::addr::WorkloadUid;
use crate::discovery::DiscoveryOptions;

/// The SPIFFE ID of a service account in the object's namespace.
pub(crate) fn identity(
    document: &Document,
    options: &DiscoveryOptions,
    service_account: &str,
) -> Result<SpiffeId, DocumentError> {
    let namespace = &document.key().namespace;
    SpiffeId::for_service_account(&options.trust_domain, namespace, service_account).map_err(|e| {
        document
            .error("spec.serviceAccountName", format!("{namespace}/{service_account} has no SPIFFE ID: {e}"))
    })
}

/// `<cluster>/<group>/<kind>/<namespace>/<name>/<metadata.uid>`.
pub(crate) fn uid(document: &Document, options: &DiscoveryOptions, uid: &str) -> WorkloadUid {
    let key = document.key();
    let (group, kind, namespace, name) = (&key.group, &key.kind, &key.namespace, &key.name);
    WorkloadUid::new(format!("{}/{group}/{kind}/{namespace}/{name}/{uid}", options.cluster))
}
