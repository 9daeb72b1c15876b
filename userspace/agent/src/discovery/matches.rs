//! The values of policy fields, parsed while serde reads them, so that an error carries the exact path of its field.

use ipnet::IpNet;
use serde::Deserialize;

use crate::discovery::addresses;
use crate::policy::StringMatch;

/// Istio's string match over anything.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Pattern(pub(crate) StringMatch);

/// A string match over SPIFFE IDs, which Istio writes without `spiffe://`; with it, it means the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Principal(pub(crate) StringMatch);

/// `<namespace>/<service account>`, or a service account of the policy's own namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ServiceAccount(String);

/// An address or CIDR.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Block(pub(crate) IpNet);

/// A port, written as a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Port(pub(crate) u16);

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        string_match(&text).map(Self)
    }
}

impl TryFrom<String> for Principal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        string_match(text.strip_prefix("spiffe://").unwrap_or(&text)).map(Self)
    }
}

impl TryFrom<String> for ServiceAccount {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) || text.contains('*') {
            return Err(format!("{text:?} is neither <service account> nor <namespace>/<service account>"));
        }
        Ok(Self(text))
    }
}

impl ServiceAccount {
    /// The match in a policy of this namespace.
    pub(crate) fn within(&self, namespace: &str) -> StringMatch {
        if self.0.contains('/') {
            return StringMatch::Exact(self.0.clone());
        }
        StringMatch::Exact(format!("{namespace}/{}", self.0))
    }
}

impl TryFrom<String> for Block {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        addresses::block(&text).map(Self)
    }
}

impl TryFrom<String> for Port {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        addresses::port_text(&text).map(Self)
    }
}

/// `*` anywhere but at one end matches nothing in Istio, silently; in a DENY that is a hole, so here it is an error.
fn string_match(text: &str) -> Result<StringMatch, String> {
    let literal = |part: &str| (!part.is_empty() && !part.contains('*')).then(|| part.to_owned());
    let parsed = if text == "*" {
        Some(StringMatch::Presence)
    } else if let Some(suffix) = text.strip_prefix('*') {
        literal(suffix).map(StringMatch::Suffix)
    } else if let Some(prefix) = text.strip_suffix('*') {
        literal(prefix).map(StringMatch::Prefix)
    } else {
        literal(text).map(StringMatch::Exact)
    };
    parsed.ok_or_else(|| {
        format!("{text:?} is no match: give a text, with one * at its beginning or its end at most")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_presence_prefix_or_suffix() {
        assert_eq!(string_match("*"), Ok(StringMatch::Presence));
        assert_eq!(string_match("a*"), Ok(StringMatch::Prefix("a".into())));
        assert_eq!(string_match("*a"), Ok(StringMatch::Suffix("a".into())));
        assert_eq!(string_match("a"), Ok(StringMatch::Exact("a".into())));
        for text in ["", "**", "*a*", "a*b", "a**"] {
            assert!(string_match(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_principal_may_carry_its_scheme() {
        let Principal(principal) = "spiffe://cluster.local/ns/a/sa/b".to_owned().try_into().unwrap();
        assert_eq!(principal, StringMatch::Exact("cluster.local/ns/a/sa/b".into()));
    }

    #[test]
    fn a_bare_service_account_is_of_the_policys_namespace() {
        let of = |text: &str| ServiceAccount::try_from(text.to_owned());
        assert_eq!(of("sleep").unwrap().within("ns"), StringMatch::Exact("ns/sleep".into()));
        assert_eq!(of("other/sleep").unwrap().within("ns"), StringMatch::Exact("other/sleep".into()));
        for text in ["", "/", "a/", "/a", "a/b/c", "*", "ns/*"] {
            assert!(of(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_match_reads_back_as_it_was_written(text in "[a*/]{0,6}") {
            if let Ok(parsed) = string_match(&text) {
                let written = match parsed {
                    StringMatch::Presence => "*".to_owned(),
                    StringMatch::Prefix(part) => part + "*",
                    StringMatch::Suffix(part) => format!("*{part}"),
                    StringMatch::Exact(part) => part,
                };
                prop_assert_eq!(written, text);
            }
        }
    }
}
