//! A PeerAuthentication to the mTLS modes of the policy engine.

use signet_manifests::{Document, DocumentError};

use crate::discovery::istio::{PeerAuthenticationSpec, Resource};
use crate::policy::{MtlsMode, PeerAuthentication};

/// The policy.
pub(crate) fn policy(document: &Document) -> Result<PeerAuthentication, DocumentError> {
    let manifest: Resource<PeerAuthenticationSpec> = document.parse()?;
    let spec = manifest.spec.unwrap_or_default();
    let selector = spec.selector.map(|selector| selector.match_labels).unwrap_or_default();
    if selector.is_empty() && !spec.port_level_mtls.is_empty() {
        return Err(document.error("spec.portLevelMtls", "needs spec.selector: ports are a workload's"));
    }
    Ok(PeerAuthentication {
        namespace: document.key().namespace.clone(),
        name: document.key().name.clone(),
        selector,
        mode: spec.mtls.map_or(MtlsMode::Unset, |mtls| mtls.mode.into()),
        ports: spec.port_level_mtls.into_iter().map(|(port, mtls)| (port.0, mtls.mode.into())).collect(),
        created: manifest.metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
    })
}
