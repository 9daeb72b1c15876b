//! The cgroup of a workload, from its annotations: `signet.dev/cgroup` or `signet.dev/unit`.
//!
//! The path is relative to the cgroup root. What could lead out of it, or name the root itself, is refused: a workload
//! that owned the root would lend its identity to every process of the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use signet_manifests::{Document, DocumentError};

/// The annotated cgroup path, where there is one.
pub(crate) fn path(
    document: &Document,
    annotations: Option<&BTreeMap<String, String>>,
) -> Result<Option<Arc<str>>, DocumentError> {
    let annotation = |key: &str| annotations.and_then(|all| all.get(key));
    let error = |key: &str, reason: String| document.error(&format!("metadata.annotations[{key}]"), reason);
    match (annotation(CGROUP), annotation(UNIT)) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(error(UNIT, format!("give {CGROUP} or {UNIT}, not both"))),
        (Some(path), None) => checked(path).map(Some).map_err(|reason| error(CGROUP, reason)),
        (None, Some(unit)) => unit_path(unit).map(Some).map_err(|reason| error(UNIT, reason)),
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
