//! What stands in for a policy that cannot be understood and has no last good version.
//!
//! Nothing is known of what it wanted to forbid, so it forbids everything it could have been about: the workloads of its
//! selector where that much can be read, otherwise its whole namespace (in the root namespace: the mesh). The policy's
//! status carries the error, and mending the file ends it.

use std::collections::BTreeMap;

use signet_manifests::{Document, DocumentError};

use crate::policy::{Action, AuthorizationPolicy, MtlsMode, PeerAuthentication, Rule};

/// Denies every connection to the workloads the policy is for.
pub(crate) fn authorization(document: &Document, error: &DocumentError) -> AuthorizationPolicy {
    AuthorizationPolicy {
        namespace: document.key().namespace.clone(),
        name: document.key().name.clone(),
        selector: selector(document),
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { unsupported: true, ..Rule::default() }],
        warnings: vec![format!("cannot be understood and denies everything until it is mended: {error}")],
    }
}

/// Asks for mTLS on every port of the workloads the policy is for.
pub(crate) fn peer_authentication(document: &Document, error: &DocumentError) -> PeerAuthentication {
    PeerAuthentication {
        namespace: document.key().namespace.clone(),
        name: document.key().name.clone(),
        selector: selector(document),
        mode: MtlsMode::Strict,
        ports: BTreeMap::new(),
        created: 0,
        warnings: vec![format!("cannot be understood and asks for mTLS until it is mended: {error}")],
    }
}

/// `spec.selector.matchLabels` if it is nothing but that; anything else might have meant more workloads.
fn selector(document: &Document) -> BTreeMap<String, String> {
    let selector = document.value().pointer("/spec/selector").and_then(|selector| selector.as_object());
    let labels = selector.filter(|s| s.len() == 1).and_then(|s| s.get("matchLabels")?.as_object());
    let text = |(key, value): (&String, &serde_json::Value)| Some((key.clone(), value.as_str()?.to_owned()));
    labels.and_then(|labels| labels.iter().map(text).collect()).unwrap_or_default()
}
