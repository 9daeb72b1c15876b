//! Trust domain names: the part of a SPIFFE ID that says whose roots judge it (SPIFFE-ID.md §2.1).
//!
//! A name is checked and lower-cased once, at its only constructor, so that two names are the same trust domain exactly
//! when they are equal. It knows nothing of DNS: a name that looks like a host or an IPv4 address is legal and is never
//! resolved.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spiffe_id::{SpiffeIdError, quoted};

/// A trust domain name: lower case `[a-z0-9.-_]`, 1 to 255 bytes (SPIFFE-ID.md §2.1, §2.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a name and lower-cases it: trust domains are case-insensitive (SPIFFE-ID.md §2).
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        check(name)?;
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(|e| serde::de::Error::custom(format!("{}: {e}", quoted(&text))))
    }
}

fn check(name: &str) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::NoTrustDomain);
    }
    // Before the characters: `user:secret@td` is a user info, not a port.
    if name.contains('@') {
        return Err(SpiffeIdError::UserInfo);
    }
    if let Some(character) = name.chars().find(|&c| !is_legal(c)) {
        return Err(match character {
            ':' => SpiffeIdError::Port,
            '%' => SpiffeIdError::PercentEncoding,
            character => SpiffeIdError::TrustDomainCharacter { character },
        });
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong { bytes: name.len() });
    }
    Ok(())
}

fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// SPIFFE-ID.md §2.3.
pub(crate) const MAX_NAME_BYTES: usize = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_the_same_in_any_case() {
        assert_eq!(TrustDomain::parse("Cluster.LOCAL"), TrustDomain::parse("cluster.local"));
    }

    #[test]
    fn an_address_is_a_legal_name() {
        assert_eq!(TrustDomain::parse("10.0.0.1").unwrap().as_str(), "10.0.0.1");
    }

    #[test]
    fn every_broken_rule_has_its_own_error() {
        let long = "a".repeat(256);
        for (name, error) in [
            ("", SpiffeIdError::NoTrustDomain),
            ("me@td", SpiffeIdError::UserInfo),
            ("me:secret@td", SpiffeIdError::UserInfo),
            ("td:80", SpiffeIdError::Port),
            ("t%64", SpiffeIdError::PercentEncoding),
            ("t d", SpiffeIdError::TrustDomainCharacter { character: ' ' }),
            ("tü", SpiffeIdError::TrustDomainCharacter { character: 'ü' }),
            ("[::1]", SpiffeIdError::TrustDomainCharacter { character: '[' }),
            (&long, SpiffeIdError::TrustDomainTooLong { bytes: 256 }),
        ] {
            assert_eq!(TrustDomain::parse(name), Err(error), "{name}");
        }
    }

    #[test]
    fn a_name_reads_back_from_its_json() {
        let name = TrustDomain::parse("cluster.local").unwrap();
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(serde_json::from_str::<TrustDomain>(&json).unwrap(), name);
        let error = serde_json::from_str::<TrustDomain>("\"a b\"").unwrap_err().to_string();
        assert!(error.contains("\"a b\""), "{error}");
    }

    proptest! {
        #[test]
        fn a_legal_name_parses_to_itself_in_lower_case(name in "[a-zA-Z0-9._-]{1,255}") {
            let parsed = TrustDomain::parse(&name).unwrap();
            prop_assert_eq!(parsed.as_str(), name.to_ascii_lowercase());
        }

        #[test]
        fn what_parses_has_only_legal_characters(name in any::<String>()) {
            if let Ok(parsed) = TrustDomain::parse(&name) {
                prop_assert!(parsed.as_str().chars().all(|c| is_legal(c) && !c.is_ascii_uppercase()));
            }
        }
    }
}
