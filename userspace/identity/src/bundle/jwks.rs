//! SPIFFE bundle documents: JWK sets whose `x509-svid` entries carry one root each in `x5c`
//! (SPIFFE_Trust_Domain_and_Bundle.md §4, RFC 7517 §4.7).
//!
//! It reads roots and nothing else: JWT keys, the sequence number and the refresh hint are the business of whoever
//! fetches bundles.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::bundle::BundleError;
use crate::trust_domain::TrustDomain;

/// The roots of one document.
pub(super) fn roots(json: &[u8]) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    parse::<Document>(json)?.roots()
}

/// The roots of each document of a bundle map. A trust domain that comes twice comes out twice.
pub(super) fn roots_by_trust_domain(
    json: &[u8],
) -> Result<Vec<(TrustDomain, Vec<CertificateDer<'static>>)>, BundleError> {
    let map: Map = parse(json)?;
    map.trust_domains.0.into_iter().map(|(name, document)| Ok((name, document.roots()?))).collect()
}

#[derive(Deserialize)]
struct Map {
    trust_domains: Entries<TrustDomain, Document>,
}

/// `keys` must be there, though it may be empty: its absence is not "trust nobody" but "no bundle".
#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    #[serde(default, rename = "use")]
    usage: String,
    #[serde(default)]
    x5c: Vec<String>,
}

impl Document {
    fn roots(self) -> Result<Vec<CertificateDer<'static>>, BundleError> {
        self.keys
            .into_iter()
            .filter(|key| key.usage == "x509-svid")
            // "x5c" has exactly one certificate; readers take the first, and ignore an entry without one.
            .filter_map(|key| key.x5c.into_iter().next())
            .map(|text| match STANDARD.decode(&text) {
                Ok(der) => Ok(der.into()),
                Err(e) => Err(BundleError::Document { reason: format!("x5c is no base64: {e}") }),
            })
            .collect()
    }
}

/// A JSON object in its order, duplicates kept: serde's own maps keep the last one silently.
struct Entries<K, V>(Vec<(K, V)>);

impl<'de, K: DeserializeOwned, V: DeserializeOwned> Deserialize<'de> for Entries<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<K, V>(PhantomData<(K, V)>);
        impl<'de, K: DeserializeOwned, V: DeserializeOwned> Visitor<'de> for Collect<K, V> {
            type Value = Entries<K, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect(PhantomData))
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, BundleError> {
    serde_json::from_slice(json).map_err(|e| BundleError::Document { reason: e.to_string() })
}
