//! What is followed, in which order, and when enough is known to begin. Pure.
//!
//! Two stages. What pods depend on comes first: a pod that is told before its Namespace could not be said to be in the
//! mesh, and one that is told before its policies would be guarded by none. Istio's kinds are followed where their CRDs
//! are, and the CRDs are followed, so that kinds which appear later are found.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Something that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Namespaces,
    Nodes,
    ServiceCidrs,
    Pods,
    Services,
    EndpointSlices,
    /// A kind that is there where its CRD is.
    Custom(Custom),
    /// That CRD.
    Definition(Custom),
}

/// Istio's kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Custom {
    AuthorizationPolicies,
    PeerAuthentications,
    WorkloadEntries,
}

/// What has been listed, and which of Istio's kinds there are.
#[derive(Debug, Default)]
pub(super) struct Progress {
    listed: BTreeSet<Subject>,
    served: BTreeMap<Custom, String>,
}

impl Subject {
    /// Its name in metrics and texts.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Namespaces => "Namespace",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
            Self::Pods => "Pod",
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Custom(Custom::AuthorizationPolicies) => "AuthorizationPolicy",
            Self::Custom(Custom::PeerAuthentications) => "PeerAuthentication",
            Self::Custom(Custom::WorkloadEntries) => "WorkloadEntry",
            Self::Definition(Custom::AuthorizationPolicies) => "CRD of AuthorizationPolicy",
            Self::Definition(Custom::PeerAuthentications) => "CRD of PeerAuthentication",
            Self::Definition(Custom::WorkloadEntries) => "CRD of WorkloadEntry",
        }
    }

    /// It belongs to the second stage.
    pub(super) fn is_late(self) -> bool {
        !Self::FIRST.contains(&self) && !matches!(self, Self::Custom(custom) if custom.is_policy())
    }

    /// Followed from the start.
    pub(super) const FIRST: [Self; 6] = [
        Self::Namespaces,
        Self::Nodes,
        Self::ServiceCidrs,
        Self::Definition(Custom::AuthorizationPolicies),
        Self::Definition(Custom::PeerAuthentications),
        Self::Definition(Custom::WorkloadEntries),
    ];
    /// Followed when the first stage is complete.
    pub(super) const SECOND: [Self; 3] = [Self::Pods, Self::Services, Self::EndpointSlices];
}

impl Custom {
    fn is_policy(self) -> bool {
        self != Self::WorkloadEntries
    }
}

impl Progress {
    /// A list is complete.
    pub(super) fn listed(&mut self, subject: Subject) {
        self.listed.insert(subject);
    }

    /// The version in which a kind is served now, `None` where it is not. True where that is another than before: its
    /// objects have to be listed anew.
    pub(super) fn serve(&mut self, custom: Custom, version: Option<String>) -> bool {
        if self.served.get(&custom) == version.as_ref() {
            return false;
        }
        self.listed.remove(&Subject::Custom(custom));
        match version {
            Some(version) => self.served.insert(custom, version),
            None => self.served.remove(&custom),
        };
        true
    }

    /// The version to follow a kind in.
    pub(super) fn version(&self, custom: Custom) -> Option<&str> {
        self.served.get(&custom).map(String::as_str)
    }

    /// All that pods depend on is known.
    pub(super) fn first_stage_is_complete(&self) -> bool {
        let custom = self.served.keys().filter(|custom| custom.is_policy());
        self.has_listed(Subject::FIRST) && self.has_listed(custom.copied().map(Subject::Custom))
    }

    /// Every kind has been listed.
    pub(super) fn is_complete(&self) -> bool {
        self.first_stage_is_complete()
            && self.has_listed(Subject::SECOND)
            && self.has_listed(self.served.keys().copied().map(Subject::Custom))
    }

    fn has_listed(&self, subjects: impl IntoIterator<Item = Subject>) -> bool {
        subjects.into_iter().all(|subject| self.listed.contains(&subject))
    }
}

/// The version in which a CRD's kind can be followed: the best of those that are served, once the API server has taken
/// the definition up.
pub(super) fn served_version(definition: &Value) -> Option<String> {
    let list = |pointer: &str| definition.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let established = list("/status/conditions")
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
    let served = list("/spec/versions").filter(|version| version["served"] == true);
    let names: Vec<&str> = served.filter_map(|version| version["name"].as_str()).collect();
    let best = VERSIONS.into_iter().find(|version| names.contains(version)).or(names.first().copied());
    best.filter(|_| established).map(str::to_owned)
}

/// Istio's, best first: they differ in nothing that is read here.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listed(subjects: &[Subject]) -> Progress {
        Progress { listed: subjects.iter().copied().collect(), served: BTreeMap::new() }
    }

    #[test]
    fn pods_wait_for_the_policies_that_are_served() {
        let mut progress = listed(&Subject::FIRST);
        assert!(progress.first_stage_is_complete());
        assert!(progress.serve(Custom::AuthorizationPolicies, Some("v1".into())));
        assert!(!progress.first_stage_is_complete());
        progress.listed(Subject::Custom(Custom::AuthorizationPolicies));
        assert!(progress.first_stage_is_complete() && !progress.is_complete());
    }

    #[test]
    fn a_cluster_without_istios_kinds_is_complete_without_them() {
        let mut progress = listed(&Subject::FIRST);
        Subject::SECOND.into_iter().for_each(|subject| progress.listed(subject));
        assert!(progress.is_complete());
        progress.serve(Custom::WorkloadEntries, Some("v1".into()));
        assert!(!progress.is_complete());
        assert!(progress.serve(Custom::WorkloadEntries, None) && progress.is_complete());
    }

    #[test]
    fn a_definition_counts_once_it_is_established_and_in_its_best_version() {
        let definition = |status: &str, served: &[(&str, bool)]| {
            let versions: Vec<_> =
                served.iter().map(|(name, served)| json!({"name": name, "served": served})).collect();
            json!({"spec": {"versions": versions},
                "status": {"conditions": [{"type": "Established", "status": status}]}})
        };
        let of = |status, served: &[_]| served_version(&definition(status, served));
        assert_eq!(of("True", &[("v1beta1", true), ("v1", true)]).as_deref(), Some("v1"));
        assert_eq!(of("True", &[("v1beta1", true), ("v1", false)]).as_deref(), Some("v1beta1"));
        assert_eq!(of("True", &[("v2", true)]).as_deref(), Some("v2"));
        assert_eq!(of("False", &[("v1", true)]), None);
        assert_eq!(of("True", &[]), None);
        assert_eq!(served_version(&json!({})), None);
    }
}
