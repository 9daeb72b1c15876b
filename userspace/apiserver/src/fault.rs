//! What an API server's refusal means, and who has to do what about it.

use std::fmt;

use kube::Error;
use kube::core::Status;

use crate::resource::Resource;

/// What is asked of which objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// As RBAC rules name it.
    verb: &'static str,
    /// As RBAC rules name it.
    resource: String,
    /// `None` for all of them.
    namespace: Option<String>,
}

/// Why an answer was not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {}: {}", access.verb, access.resource, Said(blame, access))]
pub struct Fault {
    access: Access,
    blame: Blame,
}

/// Who is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Blame {
    /// The cluster's administrator: a right is missing.
    Right { account: &'static str },
    /// Nobody yet: an API server that has just started says the same.
    NotYet { said: String },
    /// The credentials: expired, or of another cluster.
    Unauthorized { account: &'static str },
    /// The API server has no such resource.
    Missing,
    /// The API server says no for a reason of its own.
    Refused(String),
    /// What it says cannot be read.
    Nonsense(String),
    /// Nothing answers.
    Unreachable(String),
}

impl Access {
    /// In all namespaces.
    pub(crate) fn everywhere(verb: &'static str, resource: &Resource) -> Self {
        Self::of(verb, resource, None)
    }

    /// In one namespace, or in all.
    pub(crate) fn of(verb: &'static str, resource: &Resource, namespace: Option<&str>) -> Self {
        Self { verb, resource: resource.name(), namespace: namespace.map(str::to_owned) }
    }

    /// Rights of one kind come and go together; namespaces are many.
    pub(crate) fn key(&self) -> (&'static str, String) {
        (self.verb, self.resource.clone())
    }
}

impl Fault {
    /// `lasts`: a refusal of this access has lasted long enough to be a missing right.
    pub(crate) fn of(access: Access, account: &'static str, error: &Error, lasts: bool) -> Self {
        let blame = match error {
            Error::Api(status) => match status.code {
                401 => Blame::Unauthorized { account },
                403 if is_about_rights(status) && lasts => Blame::Right { account },
                403 if is_about_rights(status) => Blame::NotYet { said: short(&status.message) },
                404 => Blame::Missing,
                code => Blame::Refused(format!("{code} {}", short(&status.message))),
            },
            error => Blame::Unreachable(chain(error)),
        };
        Self { access, blame }
    }

    pub(crate) fn unreachable(access: Access, what: &dyn fmt::Display) -> Self {
        Self { access, blame: Blame::Unreachable(what.to_string()) }
    }

    pub(crate) fn nonsense(access: Access, what: &dyn fmt::Display) -> Self {
        Self { access, blame: Blame::Nonsense(what.to_string()) }
    }

    /// For metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self.blame {
            Blame::Right { .. } => "forbidden",
            Blame::NotYet { .. } => "forbidden_yet",
            Blame::Unauthorized { .. } => "unauthorized",
            Blame::Missing => "missing",
            Blame::Refused(_) => "refused",
            Blame::Nonsense(_) => "nonsense",
            Blame::Unreachable(_) => "unreachable",
        }
    }
}

/// Admission says 403 too, of namespaces that are being deleted and quotas that are used up; only authorisers say
/// "cannot" (apiserver `responsewriters.ForbiddenStatusError`).
fn is_about_rights(status: &Status) -> bool {
    status.message.contains(" cannot ")
}

fn short(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, resource, .. } = self;
        match &self.namespace {
            None => write!(f, "the verb {verb:?} on {resource} in all namespaces: add it to its ClusterRole"),
            Some(namespace) => {
                write!(
                    f,
                    "the verb {verb:?} on {resource} in namespace {namespace}: add it to its Role there"
                )
            }
        }
    }
}

struct Said<'f>(&'f Blame, &'f Access);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Blame::Right { account } => write!(f, "forbidden: {account}'s account lacks {}", self.1),
            Blame::NotYet { said } => {
                write!(f, "refused for now, as by an API server that does not know its rules yet: {said}")
            }
            Blame::Unauthorized { account } => {
                write!(f, "the API server does not know {account}'s credentials: renew them")
            }
            Blame::Missing => f.write_str("the API server has no such resource"),
            Blame::Refused(status) => write!(f, "refused: {status}"),
            Blame::Nonsense(why) => write!(f, "the answer cannot be read: {why}"),
            Blame::Unreachable(error) => write!(f, "the API server cannot be reached: {error}"),
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

/// How much of the API server's words is told, in characters.
const SHOWN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const SLICES: Resource =
        Resource { group: "discovery.k8s.io", kind: "EndpointSlice", plural: "endpointslices" };
    const CANNOT: &str = "endpointslices is forbidden: User \"u\" cannot watch resource";

    fn fault(code: u16, message: &str, lasts: bool) -> Fault {
        let status = Status { code, ..Status::failure(message, "Because") };
        Fault::of(Access::everywhere("watch", &SLICES), "signetd", &Error::Api(status.boxed()), lasts)
    }

    #[test]
    fn a_missing_right_is_named_with_account_verb_and_resource() {
        let text = fault(403, CANNOT, true).to_string();
        assert!(
            text.contains("signetd's account lacks the verb \"watch\" on endpointslices.discovery.k8s.io"),
            "{text}"
        );
        assert!(text.contains("ClusterRole"), "{text}");
        let access = Access::of("create", &SLICES, Some("shop"));
        assert!(access.to_string().contains("in namespace shop: add it to its Role there"), "{access}");
    }

    #[test]
    fn a_refusal_that_may_pass_blames_nobody() {
        let text = fault(403, CANNOT, false).to_string();
        assert!(!text.contains("lacks") && text.contains("does not know its rules yet"), "{text}");
    }

    #[test]
    fn a_refusal_by_admission_is_no_missing_right() {
        let text = fault(403, "unable to create: namespace a is being terminated", true).to_string();
        assert!(!text.contains("lacks") && text.contains("being terminated"), "{text}");
    }

    #[test]
    fn every_fault_has_a_label_of_its_own_for_its_blame() {
        let labels = [401, 403, 404, 503].map(|code| fault(code, CANNOT, true).label());
        assert_eq!(labels, ["unauthorized", "forbidden", "missing", "refused"]);
        assert_eq!(fault(403, CANNOT, false).label(), "forbidden_yet");
    }
}
