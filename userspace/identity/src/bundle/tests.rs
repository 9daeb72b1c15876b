//! Bundles from PEM and from SPIFFE's JSON, good, foreign and hostile.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use rcgen::{IsCa, KeyUsagePurpose};

use super::*;
use crate::testing::{TestCa, pem, uri_san};

fn td() -> TrustDomain {
    TrustDomain::parse("td").unwrap()
}

fn document(ca: &TestCa) -> String {
    let x5c = STANDARD.encode(ca.root());
    format!(r#"{{"spiffe_sequence": 1, "keys": [{{"kty": "EC", "use": "x509-svid", "x5c": ["{x5c}"]}}]}}"#)
}

#[test]
fn all_roots_of_a_pem_file_are_read_and_other_sections_are_not() {
    let (a, b) = (TestCa::new("td"), TestCa::new("td"));
    let text =
        format!("# old\n{}\n{}{}", a.root_pem(), a.issue("spiffe://td/a", |_| {}).key_pem(), b.root_pem());
    let bundle = TrustBundle::from_pem(td(), text.as_bytes()).unwrap();
    assert_eq!(bundle.roots(), [a.root().clone(), b.root().clone()]);
}

#[test]
fn a_file_without_a_root_is_no_bundle() {
    assert_eq!(
        TrustBundle::from_pem(td(), b"hello").unwrap_err(),
        BundleError::NoRoot { trust_domain: td() }
    );
    let cut = TestCa::new("td").root_pem().replace("-----END", "-----");
    assert!(matches!(TrustBundle::from_pem(td(), cut.as_bytes()), Err(BundleError::Pem { .. })));
}

#[test]
fn a_root_is_a_ca_of_its_trust_domain_without_a_path() {
    let ca = TestCa::new("td");
    let root_error = |root: CertificateDer<'static>| match TrustBundle::new(td(), vec![root]) {
        Err(BundleError::Root { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    let no_ca = ca.intermediate(|p| p.is_ca = IsCa::ExplicitNoCa);
    assert_eq!(root_error(certificate_of(&no_ca)), SvidError::SignerIsNoCa { position: 0 });
    let no_signer = ca.intermediate(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_eq!(root_error(certificate_of(&no_signer)), SvidError::SignerMayNotSign { position: 0 });
    let workload = ca.intermediate(|p| p.subject_alt_names = vec![uri_san("spiffe://td/a")]);
    assert!(matches!(root_error(certificate_of(&workload)), SvidError::SignerIdHasPath { .. }));
    let foreign = TestCa::new("other").root().clone();
    assert!(matches!(root_error(foreign), SvidError::SignerOfOtherTrustDomain { .. }));
    assert!(matches!(root_error(vec![1, 2, 3].into()), SvidError::Malformed { position: 0, .. }));
}

/// The certificate of an intermediate, to be tried as a root.
fn certificate_of(ca: &TestCa) -> CertificateDer<'static> {
    ca.issue("spiffe://td/a", |_| {}).chain.remove(1)
}

#[test]
fn a_trust_domain_has_one_bundle() {
    let mut set = BundleSet::of(TestCa::new("td").bundle());
    let second = TestCa::new("TD").bundle();
    assert_eq!(set.insert(second), Err(BundleError::Duplicate { trust_domain: td() }));
    assert_eq!(set.iter().count(), 1);
}

#[test]
fn the_number_of_roots_is_bounded() {
    let root = TestCa::new("td").root().clone();
    let text = pem(&vec![root; MAX_ROOTS + 1]);
    let error = TrustBundle::from_pem(td(), text.as_bytes()).unwrap_err();
    assert!(matches!(error, BundleError::TooManyRoots { .. }));
}

#[test]
fn a_spiffe_bundle_gives_its_x509_roots_alone() {
    let ca = TestCa::new("td");
    let x5c = STANDARD.encode(ca.root());
    let json = format!(
        r#"{{"keys": [
            {{"kty": "EC", "use": "jwt-svid", "kid": "1", "crv": "P-256", "x": "a", "y": "b"}},
            {{"kty": "XX", "use": "x509-svid"}},
            {{"kty": "EC", "x5c": ["{x5c}"]}},
            {{"kty": "EC", "use": "x509-svid", "x5c": ["{x5c}", "ignored"]}}
        ]}}"#
    );
    let bundle = TrustBundle::from_jwks(td(), json.as_bytes()).unwrap();
    assert_eq!(bundle.roots(), [ca.root().clone()]);
}

#[test]
fn keys_may_be_empty_but_not_absent() {
    assert!(TrustBundle::from_jwks(td(), br#"{"keys": []}"#).unwrap().roots().is_empty());
    for json in [&b"{}"[..], b"[]", b"", br#"{"keys": [{"use": "x509-svid", "x5c": ["!"]}]}"#] {
        assert!(matches!(TrustBundle::from_jwks(td(), json), Err(BundleError::Document { .. })));
    }
}

#[test]
fn a_bundle_map_refuses_a_trust_domain_that_comes_twice() {
    let (a, b) = (document(&TestCa::new("td")), document(&TestCa::new("other")));
    let good = format!(r#"{{"trust_domains": {{"td": {a}, "other": {b}}}}}"#);
    assert_eq!(BundleSet::from_jwks_map(good.as_bytes()).unwrap().iter().count(), 2);
    for twice in ["td", "TD"] {
        let bad = format!(r#"{{"trust_domains": {{"td": {a}, "{twice}": {a}}}}}"#);
        assert_eq!(
            BundleSet::from_jwks_map(bad.as_bytes()),
            Err(BundleError::Duplicate { trust_domain: td() })
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
        let _ = TrustBundle::from_pem(td(), &bytes);
        let _ = TrustBundle::from_pem(td(), format!("-----BEGIN CERTIFICATE-----\n{text}").as_bytes());
        let _ = TrustBundle::from_jwks(td(), &bytes);
        let _ = BundleSet::from_jwks_map(text.as_bytes());
    }
}
