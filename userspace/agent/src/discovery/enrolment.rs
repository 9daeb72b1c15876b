//! Whether a workload is in the mesh, by labels: `signet.dev/mode` and Istio's `istio.io/dataplane-mode`.
//!
//! The workload's own labels win over its namespace's; `signet.dev/mode` wins over Istio's label on the same object. A
//! value of ours that is neither `enabled` nor `disabled` is an error, since a workload that is out of the mesh by a
//! typing mistake talks in clear. Istio's label has values that concern others (`sidecar`): they say nothing here.

use std::collections::BTreeMap;

/// The labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// A value of `signet.dev/mode` that means nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownMode(pub(crate) String);

/// What the labels of one object say; `None` where they say nothing.
pub(crate) fn mode(labels: &Labels) -> Result<Option<bool>, UnknownMode> {
    match labels.get(MODE).map(String::as_str) {
        Some("enabled") => return Ok(Some(true)),
        Some("disabled") => return Ok(Some(false)),
        Some(other) => return Err(UnknownMode(other.to_owned())),
        None => {}
    }
    Ok(match labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => Some(true),
        Some("none") => Some(false),
        _ => None,
    })
}

/// The label of ours.
pub(crate) const MODE: &str = "signet.dev/mode";
/// Istio's (istio/api `label/labels.yaml`).
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[(&str, &str)]) -> Result<Option<bool>, UnknownMode> {
        mode(&labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn both_labels_enrol_and_opt_out() {
        assert_eq!(of(&[(DATAPLANE_MODE, "ambient")]), Ok(Some(true)));
        assert_eq!(of(&[(DATAPLANE_MODE, "none")]), Ok(Some(false)));
        assert_eq!(of(&[(MODE, "enabled")]), Ok(Some(true)));
        assert_eq!(of(&[(MODE, "disabled"), (DATAPLANE_MODE, "ambient")]), Ok(Some(false)));
        assert_eq!(of(&[]), Ok(None));
    }

    #[test]
    fn a_misspelt_mode_is_an_error_and_not_plaintext() {
        assert_eq!(of(&[(MODE, "enable")]), Err(UnknownMode("enable".into())));
        assert_eq!(of(&[(DATAPLANE_MODE, "sidecar")]), Ok(None));
    }
}
