//! Whether a workload is in the mesh, by labels: `signet.dev/mode` and Istio's `istio.io/dataplane-mode`; and how it talks
//! to others of its node, by `signet.dev/same-node`.
//!
//! The workload's own labels win over its namespace's; `signet.dev/mode` wins over Istio's label on the same object. A
//! value of ours that is neither `enabled` nor `disabled` is an error, since a workload that is out of the mesh by a
//! typing mistake talks in clear. Istio's label has values that concern others (`sidecar`): they say nothing here.

use std::collections::BTreeMap;

use crate::config::SameNode;

/// The labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// A value of one of our labels that means nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownValue {
    /// The label.
    pub(crate) label: &'static str,
    /// Its value.
    pub(crate) value: String,
    /// What it may be.
    pub(crate) legal: [&'static str; 2],
}

/// What the labels of one object say; `None` where they say nothing.
pub(crate) fn mode(labels: &Labels) -> Result<Option<bool>, UnknownValue> {
    match labels.get(MODE).map(String::as_str) {
        Some("enabled") => return Ok(Some(true)),
        Some("disabled") => return Ok(Some(false)),
        Some(other) => return Err(unknown(MODE, other, ["enabled", "disabled"])),
        None => {}
    }
    Ok(match labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => Some(true),
        Some("none") => Some(false),
        _ => None,
    })
}

/// What the labels of one object say of its node's own traffic; `None` where they say nothing.
pub(crate) fn same_node(labels: &Labels) -> Result<Option<SameNode>, UnknownValue> {
    match labels.get(SAME_NODE).map(String::as_str) {
        Some("direct") => Ok(Some(SameNode::Direct)),
        Some("mtls") => Ok(Some(SameNode::Mtls)),
        Some(other) => Err(unknown(SAME_NODE, other, ["direct", "mtls"])),
        None => Ok(None),
    }
}

fn unknown(label: &'static str, value: &str, legal: [&'static str; 2]) -> UnknownValue {
    UnknownValue { label, value: value.to_owned(), legal }
}

/// The label of ours.
const MODE: &str = "signet.dev/mode";
/// The other one.
const SAME_NODE: &str = "signet.dev/same-node";
/// Istio's (istio/api `label/labels.yaml`).
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[(&str, &str)]) -> Labels {
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn of(pairs: &[(&str, &str)]) -> Result<Option<bool>, UnknownValue> {
        mode(&labels(pairs))
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
        assert_eq!(of(&[(MODE, "enable")]), Err(unknown(MODE, "enable", ["enabled", "disabled"])));
        assert_eq!(of(&[(DATAPLANE_MODE, "sidecar")]), Ok(None));
    }

    #[test]
    fn the_same_node_label_says_one_of_two_things_or_is_an_error() {
        let of = |value| same_node(&labels(&[(SAME_NODE, value)]));
        assert_eq!(of("mtls"), Ok(Some(SameNode::Mtls)));
        assert_eq!(of("direct"), Ok(Some(SameNode::Direct)));
        assert!(of("mTLS").is_err());
        assert_eq!(same_node(&labels(&[])), Ok(None));
    }
}
