//! What an API server's refusal means, and who has to do what about it.

use std::fmt;

use kube::Error;

use super::kind::Resource;

/// Why a list or a watch did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{verb} {resource}: {blame}")]
pub(super) struct Fault {
    verb: &'static str,
    /// As RBAC rules name it.
    resource: String,
    blame: Blame,
}

/// Who is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Blame {
    /// The cluster's administrator: a right is missing.
    Forbidden { verb: &'static str, resource: String },
    /// The credentials: expired, or of another cluster.
    Unauthorized,
    /// The API server has no such resource.
    Missing,
    /// The API server says no for a reason of its own.
    Refused(String),
    /// Nothing answers.
    Unreachable(String),
}

impl Fault {
    pub(super) fn of(verb: &'static str, resource: &Resource, error: &Error) -> Self {
        let name = resource.name();
        let blame = match error {
            Error::Api(status) => match status.code {
                401 => Blame::Unauthorized,
                403 => Blame::Forbidden { verb, resource: name.clone() },
                404 => Blame::Missing,
                code => Blame::Refused(format!("{code} {}", status.message)),
            },
            error => Blame::Unreachable(chain(error)),
        };
        Self { verb, resource: name, blame }
    }

    pub(super) fn unreachable(verb: &'static str, resource: &Resource, what: &dyn fmt::Display) -> Self {
        Self { verb, resource: resource.name(), blame: Blame::Unreachable(what.to_string()) }
    }

    /// For metrics.
    pub(super) fn label(&self) -> &'static str {
        match self.blame {
            Blame::Forbidden { .. } => "forbidden",
            Blame::Unauthorized => "unauthorized",
            Blame::Missing => "missing",
            Blame::Refused(_) => "refused",
            Blame::Unreachable(_) => "unreachable",
        }
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden { verb, resource } => write!(
                f,
                "forbidden: signetd's account lacks the verb {verb:?} on {resource} in all namespaces: add it to its \
                 ClusterRole"
            ),
            Self::Unauthorized => {
                f.write_str("the API server does not know signetd's credentials: renew them")
            }
            Self::Missing => f.write_str("the API server has no such resource"),
            Self::Refused(status) => write!(f, "refused: {status}"),
            Self::Unreachable(error) => write!(f, "the API server cannot be reached: {error}"),
        }
    }
}

/// The client's errors hide what happened behind each other.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::discovery::kubernetes::kind::{EndpointSlices, Kind as _};

    fn fault(code: u16) -> Fault {
        let status = Status { code, ..Status::failure("no", "Because") };
        Fault::of("watch", &EndpointSlices::RESOURCE, &Error::Api(status.boxed()))
    }

    #[test]
    fn a_missing_right_is_named_with_verb_and_resource() {
        let text = fault(403).to_string();
        assert!(text.contains("\"watch\"") && text.contains("endpointslices.discovery.k8s.io"), "{text}");
        assert!(text.contains("ClusterRole"), "{text}");
    }

    #[test]
    fn every_fault_has_a_label_of_its_own_for_its_blame() {
        let labels = [401, 403, 404, 503].map(|code| fault(code).label());
        assert_eq!(labels, ["unauthorized", "forbidden", "missing", "refused"]);
    }
}
