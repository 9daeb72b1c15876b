//! Kinds of objects, as URLs, RBAC rules and manifests name them.

use std::fmt::Debug;

use crate::trim::Keep;

/// A kind of object that is followed.
pub trait Kind: Debug + Send + Sync + 'static {
    /// Which.
    const RESOURCE: Resource;
    /// What is kept of its objects.
    const KEEP: Keep;
}

/// A kind as the API server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    /// `kind` in manifests.
    pub kind: &'static str,
    /// Its name in URLs and in RBAC rules.
    pub plural: &'static str,
}

impl Resource {
    /// `pods`, `endpointslices.discovery.k8s.io`: as RBAC rules and CRDs are named.
    #[must_use]
    pub fn name(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Where the API server has it: in one namespace, or in all of them.
    #[must_use]
    pub fn path(&self, version: &str, namespace: Option<&str>) -> String {
        let root = match self.group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        match namespace {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    /// API servers before 1.33 do not have it, and are none the worse for it.
    pub(crate) fn is_optional(&self) -> bool {
        (self.group, self.kind) == ("networking.k8s.io", "ServiceCIDR")
    }

    /// `apiVersion`.
    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }
}
