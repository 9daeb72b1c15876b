//! A PeerAuthentication to the mTLS modes of the policy engine.

use std::collections::BTreeMap;

use signet_manifests::{Document, DocumentError};

use crate::discovery::istio::{PeerAuthenticationSpec, Resource};
use crate::policy::{MtlsMode, PeerAuthentication};

/// The policy. `root` is the mesh's root namespace.
pub(crate) fn policy(document: &Document, root: &str) -> Result<PeerAuthentication, DocumentError> {
    let manifest: Resource<PeerAuthenticationSpec> = document.parse()?;
    let spec = manifest.spec.unwrap_or_default();
    let selector = spec.selector.map(|selector| selector.match_labels).unwrap_or_default();
    if selector.is_empty() && !spec.port_level_mtls.is_empty() {
        return Err(document.error("spec.portLevelMtls", "needs spec.selector: ports are a workload's"));
    }
    let warnings = warnings(&document.key().namespace, &selector, root);
    Ok(PeerAuthentication {
        namespace: document.key().namespace.clone(),
        name: document.key().name.clone(),
        selector,
        mode: spec.mtls.map_or(MtlsMode::Unset, |mtls| mtls.mode.into()),
        ports: spec.port_level_mtls.into_iter().map(|(port, mtls)| (port.0, mtls.mode.into())).collect(),
        created: manifest.metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
        warnings,
    })
}

/// What the object asks for and does not get (istio/istio `convertedSelectorPeerAuthentications` does the same silently).
fn warnings(namespace: &str, selector: &BTreeMap<String, String>, root: &str) -> Vec<String> {
    if namespace != root || selector.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "spec.selector: an object with a selector has no effect in the root namespace {root}: leave the selector out to \
         hold for the mesh, or move the object to the workloads' namespace"
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::testing;

    fn warnings(namespace: &str, spec: &str) -> Vec<String> {
        let yaml = format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
        );
        policy(&testing::document(&yaml), "istio-system").unwrap().warnings
    }

    #[test]
    fn a_selector_in_the_root_namespace_is_warned_of() {
        let selecting = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}";
        let told = warnings("istio-system", selecting);
        assert!(told[0].starts_with("spec.selector: ") && told[0].contains("istio-system"), "{told:?}");
        assert!(warnings("shop", selecting).is_empty());
        assert!(warnings("istio-system", "{mtls: {mode: STRICT}}").is_empty());
    }
}
