//! The CA's answer, made an SVID: `[leaf, intermediates…, root(s)]`, all PEM, the last element holding one or several
//! roots (istio/ztunnel `src/identity/caclient.rs`). Pure.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use signet_identity::{BundleSet, MAX_CHAIN_CERTIFICATES, PrivateKey, SpiffeId, TrustBundle, X509Svid};

use crate::svid::FetchError;
use crate::svid::skew::Skew;

/// Reads and checks an answer: it must be for the identity and the key that were asked for, valid now, and lead to the
/// roots that came with it.
pub(super) fn check(
    certificates: &[String],
    id: &SpiffeId,
    key: PrivateKey,
    address: &Arc<str>,
    now: UnixTime,
) -> Result<X509Svid, FetchError> {
    let malformed = |reason: String| FetchError::Malformed { address: address.clone(), reason };
    let (roots, chain) = match certificates.split_last() {
        Some((roots, chain)) if !chain.is_empty() => (roots, chain),
        _ => {
            let elements = certificates.len();
            return Err(malformed(format!("{elements} elements, at least a leaf and a root must be there")));
        }
    };
    let bundle = TrustBundle::from_pem(id.trust_domain().clone(), roots.as_bytes())
        .map_err(|e| malformed(e.to_string()))?;
    let chain = read_chain(chain).map_err(malformed)?;
    let svid = X509Svid::new(id, chain, key, Arc::new(BundleSet::of(bundle)), now);
    svid.map_err(|error| match Skew::of_fresh(&error, now) {
        Some(skew) => FetchError::Clock { address: address.clone(), skew },
        None => {
            FetchError::Lying { source_of_it: format!("the CA at {address}").into(), id: id.clone(), error }
        }
    })
}

/// One certificate an element by the contract; several are read too, as other CAs send them.
fn read_chain(elements: &[String]) -> Result<Vec<CertificateDer<'static>>, String> {
    elements
        .iter()
        .flat_map(|element| CertificateDer::pem_slice_iter(element.as_bytes()))
        .take(MAX_CHAIN_CERTIFICATES + 1)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("the chain is no PEM: {e}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use signet_identity::SvidError;
    use signet_identity::testing::{TestCa, pem};

    use super::*;

    fn checked(certificates: &[String], ca: &TestCa, key: PrivateKey) -> Result<X509Svid, FetchError> {
        check(certificates, &ca.id("a", "b"), key, &"https://ca:1".into(), UnixTime::now())
    }

    #[test]
    fn the_last_element_may_hold_several_roots() {
        let ca = TestCa::new("td").intermediate(|_| {});
        let issued = ca.issue("spiffe://td/ns/a/sa/b", |_| {});
        let roots = format!("{}\n{}", TestCa::new("td").root_pem(), ca.root_pem());
        let answer = [pem(&issued.chain[..1]), pem(&issued.chain[1..]), roots];
        let svid = checked(&answer, &ca, issued.key).unwrap();
        assert_eq!(svid.chain().len(), 2);
        assert_eq!(svid.bundles().get(ca.trust_domain()).unwrap().roots().len(), 2);
    }

    #[test]
    fn an_answer_without_leaf_or_root_is_malformed() {
        let ca = TestCa::new("td");
        let issued = || ca.issue("spiffe://td/ns/a/sa/b", |_| {});
        for answer in [vec![], vec![ca.root_pem()], vec![issued().chain_pem(), String::new()]] {
            let error = checked(&answer, &ca, issued().key).unwrap_err();
            assert!(matches!(error, FetchError::Malformed { .. }), "{error}");
        }
        let error = checked(&[String::new(), ca.root_pem()], &ca, issued().key).unwrap_err();
        assert!(matches!(error, FetchError::Lying { error: SvidError::NoCertificate, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(elements in prop::collection::vec(".{0,60}", 0..4)) {
            let ca = TestCa::new("td");
            let key = ca.issue("spiffe://td/ns/a/sa/b", |_| {}).key;
            let framed: Vec<_> =
                elements.iter().map(|e| format!("-----BEGIN CERTIFICATE-----\n{e}\n-----END CERTIFICATE-----")).collect();
            prop_assert!(checked(&framed, &ca, key).is_err());
        }
    }
}
