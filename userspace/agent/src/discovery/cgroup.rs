//! The cgroup of a workload: from its annotations `signet.dev/cgroup` or `signet.dev/unit`, or from kubelet.
//!
//! A path is relative to the cgroup root. What could lead out of it, or name the root itself, is refused: a workload
//! that owned the root would lend its identity to every process of the node.
//!
//! Annotations count in a directory of manifests alone. In a cluster whoever may create a pod writes them, and could so
//! choose whose traffic is taken for the pod's: there kubelet's own cgroup, named after the pod's uid, is the only one.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use signet_manifests::{Document, DocumentError};

use crate::discovery::{DiscoveryOptions, Origin};
use crate::state::CgroupName;

/// Where a pod's processes are; `None` where nothing says it, and for a pod of another node.
pub(crate) fn of_pod(
    document: &Document,
    metadata: &ObjectMeta,
    node: &str,
    options: &DiscoveryOptions,
) -> Result<Option<CgroupName>, DocumentError> {
    match &options.origin {
        Origin::Directory => annotated(document, metadata.annotations.as_ref()),
        origin if origin.binds_to(node) => Ok(kubelets_uid(metadata).map(|uid| CgroupName::Pod(uid.into()))),
        Origin::Cluster { .. } => Ok(None),
    }
}

/// The uid by which kubelet knows the pod. Of a static pod the API server has a mirror with a uid of its own; kubelet's
/// is in an annotation: an MD5 sum (kubernetes `pkg/kubelet/config/common.go` `applyDefaults`). Any other text there was
/// not written by kubelet, and could name somebody else's pod.
fn kubelets_uid(metadata: &ObjectMeta) -> Option<&str> {
    let annotation = |key: &str| metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let is_md5 =
        |hash: &&str| hash.len() == 32 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match annotation(MIRROR) {
        Some(hash) => Some(hash).filter(is_md5),
        None => metadata.uid.as_deref(),
    }
}

/// The annotated cgroup, where there is one.
pub(crate) fn annotated(
    document: &Document,
    annotations: Option<&BTreeMap<String, String>>,
) -> Result<Option<CgroupName>, DocumentError> {
    let named = |path: Result<Arc<str>, String>| path.map(CgroupName::Path).map(Some);
    let annotation = |key: &str| annotations.and_then(|all| all.get(key));
    let error = |key: &str, reason: String| document.error(&format!("metadata.annotations[{key}]"), reason);
    match (annotation(CGROUP), annotation(UNIT)) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(error(UNIT, format!("give {CGROUP} or {UNIT}, not both"))),
        (Some(path), None) => named(checked(path)).map_err(|reason| error(CGROUP, reason)),
        (None, Some(unit)) => named(unit_path(unit)).map_err(|reason| error(UNIT, reason)),
    }
}

fn checked(path: &str) -> Result<Arc<str>, String> {
    if path.len() > PATH_BYTES || path.contains(char::is_control) {
        return Err("is longer than a path can be, or has control characters".into());
    }
    let illegal = |segment: &str| segment.is_empty() || segment == "." || segment == "..";
    if path.split('/').any(illegal) {
        return Err(format!(
            "{path:?} is no path below the cgroup root: give it without /, //, . or .. around names"
        ));
    }
    Ok(path.into())
}

/// Where systemd puts a system unit (systemd.resource-control(5)): `system.slice`, for an instance of a template in the
/// template's own slice below it (systemd.unit(5), "String Escaping": `-` in a slice's name is a level, so it is escaped).
fn unit_path(unit: &str) -> Result<Arc<str>, String> {
    let known = [".service", ".scope"].iter().any(|suffix| unit.ends_with(suffix));
    if !known || unit.contains('/') {
        return Err(format!("{unit:?} is no unit with processes: give <name>.service or <name>.scope"));
    }
    match unit.split_once('@') {
        None => checked(&format!("system.slice/{unit}")),
        Some((template, _)) => {
            checked(&format!("system.slice/system-{}.slice/{unit}", template.replace('-', "\\x2d")))
        }
    }
}

const CGROUP: &str = "signet.dev/cgroup";
const UNIT: &str = "signet.dev/unit";
/// On mirror pods, with the static pod's uid (kubernetes `pkg/kubelet/types/pod_update.go` `ConfigMirrorAnnotationKey`).
const MIRROR: &str = "kubernetes.io/config.mirror";
/// `PATH_MAX` of Linux.
const PATH_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_stays_below_the_root() {
        assert_eq!(&*checked("kubepods.slice/pod1").unwrap(), "kubepods.slice/pod1");
        for path in ["", "/", "/a", "a/", "a//b", ".", "a/./b", "..", "a/../../b", "a\nb"] {
            assert!(checked(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_static_pods_uid_is_kubelets_and_nothing_else_is_taken_for_one() {
        let of = |mirror: Option<&str>| {
            let annotations = mirror.map(|hash| BTreeMap::from([(MIRROR.to_owned(), hash.to_owned())]));
            let metadata = ObjectMeta { uid: Some("own".into()), annotations, ..ObjectMeta::default() };
            kubelets_uid(&metadata).map(str::to_owned)
        };
        assert_eq!(of(None).as_deref(), Some("own"));
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(of(Some(hash)).as_deref(), Some(hash));
        for forged in ["", "own", "3c2f0e4c-9f3a-4f6e-8d53-0b6f3c1f2a10", &hash.to_uppercase()] {
            assert_eq!(of(Some(forged)), None, "{forged}");
        }
    }

    #[test]
    fn a_unit_is_found_where_systemd_puts_it() {
        assert_eq!(&*unit_path("nginx.service").unwrap(), "system.slice/nginx.service");
        assert_eq!(
            &*unit_path("post-gres@15.service").unwrap(),
            "system.slice/system-post\\x2dgres.slice/post-gres@15.service"
        );
        for unit in ["nginx", "../x.service", "a/b.service", "x.socket", ""] {
            assert!(unit_path(unit).is_err(), "{unit:?}");
        }
    }

    proptest! {
        #[test]
        fn no_accepted_path_leaves_the_root(path in "[a./\\\\]{0,12}") {
            if let Ok(path) = checked(&path) {
                prop_assert!(!path.starts_with('/'));
                prop_assert!(path.split('/').all(|s| !["", ".", ".."].contains(&s)));
            }
        }
    }
}
