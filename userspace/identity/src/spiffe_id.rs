//! SPIFFE IDs: `spiffe://<trust domain>/<path>`, checked by every rule of SPIFFE-ID.md §2, one error per rule.
//!
//! An ID is parsed once, where it enters the process, and kept in its canonical form (scheme and trust domain in lower
//! case, the path as it was), so that comparing two IDs is comparing their bytes: nothing behind the constructor
//! normalises again. It is no general URI parser: what a URI may have and a SPIFFE ID may not (user info, port, query,
//! fragment, percent-encoding, empty or dot segments) is refused, never stripped.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::trust_domain::TrustDomain;

/// A SPIFFE ID, checked and canonical. Cheap to clone; ordered as its text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

/// Why a text is no SPIFFE ID. The text itself is not repeated: the caller knows what it parsed, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// More than 2048 bytes (SPIFFE-ID.md §2.3).
    #[error("the SPIFFE ID has {bytes} bytes, at most {MAX_URI_BYTES} are allowed")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// Not `spiffe://…`.
    #[error("a SPIFFE ID begins with spiffe://")]
    Scheme,
    /// Nothing between `spiffe://` and the path.
    #[error("the trust domain is empty: give spiffe://<trust domain>/<path>")]
    NoTrustDomain,
    /// A trust domain of more than 255 bytes.
    #[error("the trust domain has {bytes} bytes, at most 255 are allowed")]
    TrustDomainTooLong {
        /// How many it has.
        bytes: usize,
    },
    /// A character outside `[a-zA-Z0-9.-_]` in the trust domain.
    #[error("the trust domain contains {character:?}: letters, digits, '.', '-' and '_' are allowed")]
    TrustDomainCharacter {
        /// The first of them.
        character: char,
    },
    /// `user@` before the trust domain.
    #[error("a SPIFFE ID has no user info: remove what stands before '@'")]
    UserInfo,
    /// `:port` after the trust domain.
    #[error("a SPIFFE ID has no port: remove it from the trust domain")]
    Port,
    /// `%xx`, which SPIFFE IDs never use.
    #[error("a SPIFFE ID is not percent-encoded: remove '%'")]
    PercentEncoding,
    /// `?query`.
    #[error("a SPIFFE ID has no query: remove '?' and what follows it")]
    Query,
    /// `#fragment`.
    #[error("a SPIFFE ID has no fragment: remove '#' and what follows it")]
    Fragment,
    /// The path ends with `/`; a lone `/` is the same mistake.
    #[error("the path ends with '/': remove it")]
    TrailingSlash,
    /// Two slashes in a row.
    #[error("the path has an empty segment: remove one of two slashes in a row, or fill in what is missing")]
    EmptySegment,
    /// `.` or `..` as a segment.
    #[error("the path has the segment {segment:?}, which is not allowed")]
    DotSegment {
        /// Which of the two.
        segment: &'static str,
    },
    /// A character outside `[a-zA-Z0-9.-_]` in a path segment.
    #[error("the path contains {character:?}: letters, digits, '.', '-' and '_' are allowed in a segment")]
    PathCharacter {
        /// The first of them.
        character: char,
    },
}

impl SpiffeId {
    /// Parses `spiffe://<trust domain>/<path>`; the path may be absent, which names the trust domain itself.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn parse(uri: &str) -> Result<Self, SpiffeIdError> {
        if uri.len() > MAX_URI_BYTES {
            return Err(SpiffeIdError::TooLong { bytes: uri.len() });
        }
        let rest = without_scheme(uri).ok_or(SpiffeIdError::Scheme)?;
        let (name, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let trust_domain = TrustDomain::parse(name)?;
        check_path(path)?;
        Ok(Self::assemble(trust_domain, path))
    }

    /// Istio's shape: `spiffe://<td>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// A namespace or name that is no legal path segment, or too long for a SPIFFE ID.
    pub fn for_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        let id = Self::assemble(trust_domain.clone(), &format!("/ns/{namespace}/sa/{service_account}"));
        match id.uri.len() {
            bytes if bytes > MAX_URI_BYTES => Err(SpiffeIdError::TooLong { bytes }),
            _ => Ok(id),
        }
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path, with its leading `/`, or empty.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.uri[SCHEME.len() + self.trust_domain.as_str().len()..]
    }

    /// (namespace, service account) where the path has Istio's shape.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        let is_segment = |s: &str| !s.contains('/');
        (is_segment(namespace) && is_segment(account)).then_some((namespace, account))
    }

    fn assemble(trust_domain: TrustDomain, path: &str) -> Self {
        Self { uri: format!("{SCHEME}{trust_domain}{path}").into(), trust_domain }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(|e| serde::de::Error::custom(format!("{}: {e}", quoted(&text))))
    }
}

/// The text in quotes, cut to what an error message can carry.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn without_scheme(uri: &str) -> Option<&str> {
    let (scheme, rest) = uri.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(rest)
}

fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    match path.find(['?', '#']).map(|at| path.as_bytes()[at]) {
        Some(b'?') => return Err(SpiffeIdError::Query),
        Some(_) => return Err(SpiffeIdError::Fragment),
        None => {}
    }
    let Some(segments) = path.strip_prefix('/') else {
        return Ok(());
    };
    if segments.is_empty() || segments.ends_with('/') {
        return Err(SpiffeIdError::TrailingSlash);
    }
    segments.split('/').try_for_each(check_segment)
}

fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => return Err(SpiffeIdError::EmptySegment),
        "." => return Err(SpiffeIdError::DotSegment { segment: "." }),
        ".." => return Err(SpiffeIdError::DotSegment { segment: ".." }),
        _ => {}
    }
    match segment.chars().find(|&c| !is_legal(c)) {
        None => Ok(()),
        Some('%') => Err(SpiffeIdError::PercentEncoding),
        Some(character) => Err(SpiffeIdError::PathCharacter { character }),
    }
}

fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

const SCHEME: &str = "spiffe://";

/// SPIFFE-ID.md §2.3: implementations support up to 2048 bytes, and nobody may rely on more.
const MAX_URI_BYTES: usize = 2048;

const MAX_QUOTED_CHARS: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scheme_and_trust_domain_are_the_same_in_any_case_and_the_path_is_not() {
        let id = SpiffeId::parse("SPIFFE://Cluster.Local/NS/a").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/NS/a");
        assert_ne!(id, SpiffeId::parse("spiffe://cluster.local/ns/a").unwrap());
    }

    #[test]
    fn an_id_without_a_path_names_its_trust_domain() {
        let id = SpiffeId::parse("spiffe://td").unwrap();
        assert_eq!((id.trust_domain().as_str(), id.path()), ("td", ""));
    }

    #[test]
    fn every_broken_rule_has_its_own_error() {
        let long_path = format!("spiffe://td/{}", "a".repeat(2048));
        let long_domain = format!("spiffe://{}/a", "a".repeat(256));
        for (uri, error) in [
            ("", SpiffeIdError::Scheme),
            ("spiffe:/td/a", SpiffeIdError::Scheme),
            ("https://td/a", SpiffeIdError::Scheme),
            ("spiffé://td/a", SpiffeIdError::Scheme),
            ("spiffe://", SpiffeIdError::NoTrustDomain),
            ("spiffe:///a", SpiffeIdError::NoTrustDomain),
            ("spiffe://me@td/a", SpiffeIdError::UserInfo),
            ("spiffe://td:1/a", SpiffeIdError::Port),
            ("spiffe://t%64/a", SpiffeIdError::PercentEncoding),
            ("spiffe://td/%61", SpiffeIdError::PercentEncoding),
            ("spiffe://td?q", SpiffeIdError::Query),
            ("spiffe://td/a?q#f", SpiffeIdError::Query),
            ("spiffe://td/a#f?q", SpiffeIdError::Fragment),
            ("spiffe://td#f", SpiffeIdError::Fragment),
            ("spiffe://td/", SpiffeIdError::TrailingSlash),
            ("spiffe://td/a/", SpiffeIdError::TrailingSlash),
            ("spiffe://td//a", SpiffeIdError::EmptySegment),
            ("spiffe://td/a/./b", SpiffeIdError::DotSegment { segment: "." }),
            ("spiffe://td/a/..", SpiffeIdError::DotSegment { segment: ".." }),
            ("spiffe://td/a b", SpiffeIdError::PathCharacter { character: ' ' }),
            ("spiffe://td/a\0", SpiffeIdError::PathCharacter { character: '\0' }),
            ("spiffe://t_d^/a", SpiffeIdError::TrustDomainCharacter { character: '^' }),
            (&long_domain, SpiffeIdError::TrustDomainTooLong { bytes: 256 }),
            (&long_path, SpiffeIdError::TooLong { bytes: 2060 }),
        ] {
            assert_eq!(SpiffeId::parse(uri), Err(error), "{uri}");
        }
    }

    #[test]
    fn dots_inside_a_segment_are_legal() {
        assert!(SpiffeId::parse("spiffe://td/.../a..b/.c").is_ok());
    }

    #[test]
    fn a_service_account_is_read_from_istios_shape_alone() {
        let id = |path: &str| SpiffeId::parse(&format!("spiffe://td{path}")).unwrap();
        assert_eq!(id("/ns/a/sa/b").service_account(), Some(("a", "b")));
        assert_eq!(id("/ns/sa/sa/sa").service_account(), Some(("sa", "sa")));
        for path in ["", "/ns/a", "/ns/a/sa", "/ns/a/sa/b/c", "/ns/a/b/sa/c", "/x/ns/a/sa/b", "/NS/a/sa/b"] {
            assert_eq!(id(path).service_account(), None, "{path}");
        }
    }

    #[test]
    fn a_service_account_cannot_smuggle_a_segment() {
        let td = TrustDomain::parse("td").unwrap();
        for (namespace, account, error) in [
            ("", "a", SpiffeIdError::EmptySegment),
            ("a/sa/b", "c", SpiffeIdError::PathCharacter { character: '/' }),
            ("a", "..", SpiffeIdError::DotSegment { segment: ".." }),
            ("a", "b?c", SpiffeIdError::PathCharacter { character: '?' }),
        ] {
            assert_eq!(SpiffeId::for_service_account(&td, namespace, account), Err(error));
        }
        let long = "a".repeat(2048);
        assert!(matches!(
            SpiffeId::for_service_account(&td, "a", &long),
            Err(SpiffeIdError::TooLong { bytes: 2068 })
        ));
    }

    #[test]
    fn an_error_quotes_a_bounded_part_of_a_bad_id() {
        let json = format!("\"{}\"", "x".repeat(100_000));
        let error = serde_json::from_str::<SpiffeId>(&json).unwrap_err().to_string();
        assert!(error.contains("2048") && error.len() < 500, "{error}");
    }

    proptest! {
        #[test]
        fn a_legal_id_reads_back_from_its_text_and_its_json(
            td in "[a-z0-9._-]{1,40}",
            path in "(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}){0,5}",
        ) {
            let uri = format!("spiffe://{td}{path}");
            let id = SpiffeId::parse(&uri).unwrap();
            prop_assert_eq!(id.to_string(), uri);
            prop_assert_eq!(id.path(), path);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), id);
        }

        #[test]
        fn no_text_makes_the_parser_panic_and_what_parses_is_canonical(text in ".{0,80}") {
            for uri in [text.clone(), format!("spiffe://{text}"), format!("spiffe://td/{text}")] {
                if let Ok(id) = SpiffeId::parse(&uri) {
                    prop_assert_eq!(SpiffeId::parse(id.as_str()), Ok(id.clone()));
                    prop_assert!(id.as_str().is_ascii());
                }
            }
        }

        #[test]
        fn what_for_service_account_makes_is_what_service_account_reads(
            namespace in "[a-z0-9-]{1,63}", account in "[a-z0-9][a-z0-9.-]{0,100}",
        ) {
            let td = TrustDomain::parse("cluster.local").unwrap();
            let id = SpiffeId::for_service_account(&td, &namespace, &account).unwrap();
            prop_assert_eq!(id.service_account(), Some((&*namespace, &*account)));
            prop_assert_eq!(SpiffeId::parse(id.as_str()), Ok(id.clone()));
        }

        #[test]
        fn ids_are_ordered_as_their_texts(a in "[a-z/]{0,12}", b in "[a-z/]{0,12}") {
            let parse = |s: &str| SpiffeId::parse(&format!("spiffe://{s}"));
            if let (Ok(a), Ok(b)) = (parse(&a), parse(&b)) {
                prop_assert_eq!(a.cmp(&b), a.as_str().cmp(b.as_str()));
            }
        }
    }
}
