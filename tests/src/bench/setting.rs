//! The settings of Signet that are contenders: what differs in the engines' configuration, and what the contender is called.

use anyhow::Result;
use serde_json::Value;

/// Two nodes whose engines have it.
pub(super) struct Setting {
    /// Begins its nodes' names.
    pub(super) node: &'static str,
    /// The contender across its nodes, if it is one there.
    pub(super) across: Option<&'static str>,
    /// The contender on its first node, if it is one there.
    pub(super) same_node: Option<&'static str>,
    /// Merged into the engines' configuration: JSON.
    overrides: &'static str,
}

impl Setting {
    /// What is merged into the engines' configuration.
    ///
    /// # Errors
    /// It is no JSON.
    pub(super) fn overrides(&self) -> Result<Value> {
        Ok(serde_json::from_str(self.overrides)?)
    }
}

/// The first is the one that is measured in most ways.
pub(super) const SETTINGS: [Setting; 3] = [
    Setting { node: "n", across: Some("signet"), same_node: Some("signet-same-node"), overrides: "{}" },
    Setting {
        node: "h",
        across: Some("signet-hbone"),
        same_node: None,
        overrides: r#"{"mesh": {"tunnel": "hbone"}}"#,
    },
    Setting {
        node: "m",
        across: None,
        same_node: Some("signet-same-node-mtls"),
        overrides: r#"{"mesh": {"sameNode": "mtls"}}"#,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_json_and_a_contender_of_its_own() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            assert!(setting.overrides().unwrap().is_object());
            let before = &SETTINGS[..at];
            let names = |setting: &Setting| [Some(setting.node), setting.across, setting.same_node];
            let taken: Vec<&str> = before.iter().flat_map(names).flatten().collect();
            assert!(names(setting).into_iter().flatten().all(|name| !taken.contains(&name)));
        }
    }
}
