//! X.509-SVID rules, one broken certificate each.

use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
};

use super::*;
use crate::spiffe_id::SpiffeIdError;
use crate::svid::X509Svid;
use crate::testing::{Issued, TestCa, from_now, unix_from_now, uri_san};
use crate::trust_domain::TrustDomain;

const URI: &str = "spiffe://td/ns/a/sa/b";

/// What a verifier that trusts `td` says to a leaf of `td`'s CA, changed as the test likes.
fn verdict(change: impl FnOnce(&mut CertificateParams)) -> Result<SpiffeId, SvidError> {
    let ca = TestCa::new("td");
    verify_peer(&ca.issue(URI, change).chain, &ca.bundles(), UnixTime::now())
}

fn id() -> SpiffeId {
    SpiffeId::parse(URI).unwrap()
}

#[test]
fn a_good_leaf_tells_who_the_peer_is() {
    assert_eq!(verdict(|_| {}), Ok(id()));
}

#[test]
fn dns_names_beside_the_id_are_legal() {
    let verdict =
        verdict(|leaf| leaf.subject_alt_names.push(rcgen::SanType::DnsName("a.b".try_into().unwrap())));
    assert_eq!(verdict, Ok(id()));
}

#[test]
fn a_leaf_without_extended_key_usage_is_legal() {
    assert_eq!(verdict(|leaf| leaf.extended_key_usages.clear()), Ok(id()));
}

#[test]
fn there_is_exactly_one_uri_san() {
    assert_eq!(verdict(|leaf| leaf.subject_alt_names.clear()), Err(SvidError::NoUriSan));
    for second in [URI, "https://example.test/", "spiffe://td/ns/a/sa/c"] {
        let verdict = verdict(|leaf| leaf.subject_alt_names.push(uri_san(second)));
        assert_eq!(verdict, Err(SvidError::SeveralUriSans { count: 2 }), "{second}");
    }
}

#[test]
fn the_uri_san_is_a_spiffe_id_with_a_path() {
    for (uri, error) in [
        ("https://td/ns/a/sa/b", SpiffeIdError::Scheme),
        ("spiffe://td/ns/a/sa/b/", SpiffeIdError::TrailingSlash),
        ("spiffe://td:8/a", SpiffeIdError::Port),
    ] {
        let verdict = verdict(|leaf| leaf.subject_alt_names = vec![uri_san(uri)]);
        assert_eq!(verdict, Err(SvidError::InvalidId { position: 0, error }));
    }
    let verdict = verdict(|leaf| leaf.subject_alt_names = vec![uri_san("spiffe://td")]);
    assert!(matches!(verdict, Err(SvidError::LeafIdWithoutPath { .. })), "{verdict:?}");
}

#[test]
fn a_uri_san_that_is_no_ascii_is_not_overlooked() {
    // SubjectAltName with two URIs, the second one with a byte outside IA5String.
    let uri = URI.as_bytes();
    let mut names = vec![0x86, u8::try_from(uri.len()).unwrap()];
    names.extend_from_slice(uri);
    names.extend_from_slice(&[0x86, 0x01, 0xff]);
    let mut san = vec![0x30, u8::try_from(names.len()).unwrap()];
    san.extend_from_slice(&names);
    let verdict = verdict(|leaf| {
        leaf.subject_alt_names.clear();
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], san);
        extension.set_criticality(true);
        leaf.custom_extensions.push(extension);
    });
    assert!(matches!(verdict, Err(SvidError::Malformed { position: 0, .. })), "{verdict:?}");
}

#[test]
fn an_empty_subject_needs_a_critical_san() {
    let names = [&[0x30, 0x17, 0x86, 0x15][..], URI.as_bytes()].concat();
    let with_san = |subject: &'static str| {
        let names = names.clone();
        verdict(move |leaf| {
            leaf.subject_alt_names.clear();
            leaf.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], names));
            if !subject.is_empty() {
                leaf.distinguished_name.push(rcgen::DnType::CommonName, subject);
            }
        })
    };
    assert_eq!(with_san(""), Err(SvidError::UriSanNotCritical { id: id() }));
    assert_eq!(with_san("b"), Ok(id()));
}

#[test]
fn a_ca_is_no_workload() {
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::Ca(BasicConstraints::Constrained(0))] {
        assert_eq!(verdict(|leaf| leaf.is_ca = is_ca), Err(SvidError::LeafIsCa { id: id() }));
    }
}

#[test]
fn a_leafs_key_signs_handshakes_and_nothing_else() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
    for (usages, fault) in [
        (vec![], "it has no key usage"),
        (vec![KeyEncipherment], "its key may not make digital signatures"),
        (vec![DigitalSignature, KeyCertSign], "its key may sign certificates"),
        (vec![DigitalSignature, CrlSign], "its key may sign CRLs"),
    ] {
        let verdict = verdict(|leaf| leaf.key_usages = usages);
        assert_eq!(verdict, Err(SvidError::LeafKeyUsage { id: id(), fault }));
    }
}

#[test]
fn a_leafs_key_usage_is_critical() {
    let verdict = verdict(|leaf| {
        leaf.key_usages.clear();
        // BIT STRING digitalSignature, and not critical.
        let usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![0x03, 0x02, 0x07, 0x80]);
        leaf.custom_extensions.push(usage);
    });
    assert_eq!(verdict, Err(SvidError::LeafKeyUsage { id: id(), fault: "its key usage is not critical" }));
}

#[test]
fn a_leaf_is_for_servers_and_clients_alike() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
    for usages in [vec![ServerAuth], vec![ClientAuth], vec![Any]] {
        let verdict = verdict(|leaf| leaf.extended_key_usages = usages);
        assert_eq!(verdict, Err(SvidError::LeafExtendedKeyUsage { id: id() }));
    }
}

#[test]
fn time_is_checked_on_both_ends() {
    let expired = verdict(|leaf| leaf.not_after = from_now(-1));
    assert!(matches!(expired, Err(SvidError::Expired { .. })), "{expired:?}");
    let early = verdict(|leaf| leaf.not_before = from_now(60));
    assert!(matches!(early, Err(SvidError::NotYetValid { .. })), "{early:?}");
}

#[test]
fn a_foreign_root_of_the_same_name_is_not_trusted() {
    let (ours, theirs) = (TestCa::new("td"), TestCa::new("td"));
    let verdict = verify_peer(&theirs.issue(URI, |_| {}).chain, &ours.bundles(), UnixTime::now());
    assert!(matches!(verdict, Err(SvidError::Untrusted { .. })), "{verdict:?}");
}

#[test]
fn roots_are_never_pooled_across_trust_domains() {
    let (td, other) = (TestCa::new("td"), TestCa::new("other"));
    let bundles = td.bundles_with(&[&other]);
    // `other` is trusted, but not to speak for `td`.
    let verdict = verify_peer(&other.issue(URI, |_| {}).chain, &bundles, UnixTime::now());
    assert!(matches!(verdict, Err(SvidError::Untrusted { .. })), "{verdict:?}");
    let own = other.issue("spiffe://other/a", |_| {});
    assert!(verify_peer(&own.chain, &bundles, UnixTime::now()).is_ok());
}

#[test]
fn a_trust_domain_without_a_bundle_is_unknown() {
    let (td, other) = (TestCa::new("td"), TestCa::new("other"));
    let verdict = verify_peer(&other.issue("spiffe://other/a", |_| {}).chain, &td.bundles(), UnixTime::now());
    let trust_domain = TrustDomain::parse("other").unwrap();
    assert_eq!(verdict, Err(SvidError::UnknownTrustDomain { trust_domain }));
}

#[test]
fn an_empty_bundle_trusts_nobody() {
    let ca = TestCa::new("td");
    let empty = TrustBundle::new(ca.trust_domain().clone(), Vec::new()).unwrap();
    let verdict = verify_peer(&ca.issue(URI, |_| {}).chain, &BundleSet::of(empty), UnixTime::now());
    assert!(matches!(verdict, Err(SvidError::Untrusted { .. })), "{verdict:?}");
}

#[test]
fn a_chain_of_three_intermediates_is_followed_whatever_else_was_sent() {
    let root = TestCa::new("td");
    let deep = root.intermediate(|_| {}).intermediate(|_| {}).intermediate(|_| {});
    let mut chain = deep.issue(URI, |_| {}).chain;
    chain.push(TestCa::new("td").root().clone());
    assert_eq!(verify_peer(&chain, &root.bundles(), UnixTime::now()), Ok(id()));
}

/// What a verifier says to a good leaf below an intermediate that was changed.
fn verdict_below(change: impl FnOnce(&mut CertificateParams)) -> Result<SpiffeId, SvidError> {
    let root = TestCa::new("td");
    let issued = root.intermediate(change).issue(URI, |_| {});
    verify_peer(&issued.chain, &root.bundles(), UnixTime::now())
}

#[test]
fn a_signer_is_a_ca_that_may_sign() {
    assert!(matches!(verdict_below(|ca| ca.is_ca = IsCa::ExplicitNoCa), Err(SvidError::Untrusted { .. })));
    for usages in [vec![], vec![KeyUsagePurpose::DigitalSignature]] {
        let verdict = verdict_below(|ca| ca.key_usages = usages);
        assert_eq!(verdict, Err(SvidError::SignerMayNotSign { position: 1 }));
    }
}

#[test]
fn a_signer_has_no_path_and_is_of_the_same_trust_domain() {
    let named = |uri: &'static str| verdict_below(move |ca| ca.subject_alt_names = vec![uri_san(uri)]);
    assert!(matches!(named("spiffe://td/ca"), Err(SvidError::SignerIdHasPath { position: 1, .. })));
    assert!(matches!(named("spiffe://other"), Err(SvidError::SignerOfOtherTrustDomain { .. })));
    assert!(matches!(named("spiffe://td?"), Err(SvidError::InvalidId { position: 1, .. })));
    assert_eq!(named("https://ca.example.test/"), Ok(id()));
    assert_eq!(verdict_below(|ca| ca.subject_alt_names.clear()), Ok(id()));
}

#[test]
fn a_signer_past_its_time_is_told_from_an_expired_leaf() {
    let verdict = verdict_below(|ca| ca.not_after = from_now(-1));
    assert!(matches!(verdict, Err(SvidError::SignerNotValidNow { .. })), "{verdict:?}");
}

#[test]
fn a_signers_path_length_and_extended_key_usage_hold() {
    let root = TestCa::new("td");
    let limited = root.intermediate(|ca| ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let chain = limited.intermediate(|_| {}).issue(URI, |_| {}).chain;
    let verdict = verify_peer(&chain, &root.bundles(), UnixTime::now());
    assert!(matches!(verdict, Err(SvidError::Untrusted { .. })), "{verdict:?}");
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
    for (usages, good) in [(vec![ServerAuth], false), (vec![Any], true), (vec![ClientAuth, ServerAuth], true)]
    {
        assert_eq!(verdict_below(|ca| ca.extended_key_usages = usages).is_ok(), good);
    }
}

#[test]
fn chains_are_bounded_before_they_are_read() {
    let ca = TestCa::new("td");
    let leaf = ca.issue(URI, |_| {}).chain.remove(0);
    let verdict = |chain: &[CertificateDer<'_>]| verify_peer(chain, &ca.bundles(), UnixTime::now());
    assert_eq!(verdict(&[]), Err(SvidError::NoCertificate));
    assert!(verdict(&vec![leaf.clone(); MAX_CHAIN_CERTIFICATES]).is_ok());
    assert!(matches!(
        verdict(&vec![leaf.clone(); MAX_CHAIN_CERTIFICATES + 1]),
        Err(SvidError::ChainTooLong { .. })
    ));
    let large = CertificateDer::from(vec![0; MAX_CERTIFICATE_BYTES + 1]);
    assert!(matches!(verdict(&[leaf, large]), Err(SvidError::CertificateTooLarge { position: 1, .. })));
}

#[test]
fn our_own_svid_tells_its_validity_and_serial() {
    let ca = TestCa::new("td");
    let issued = ca.issue(URI, |leaf| {
        leaf.serial_number = Some(rcgen::SerialNumber::from_slice(&[0xfe, 0x01]));
    });
    let svid = X509Svid::new(&id(), issued.chain, issued.key, ca.bundles(), UnixTime::now()).unwrap();
    assert_eq!(svid.serial(), "fe01");
    assert!(svid.not_before() < svid.not_after());
    assert!(!svid.is_expired(unix_from_now(0)) && svid.is_expired(unix_from_now(3700)));
    assert!(format!("{svid:?}").contains("fe01"));
}

#[test]
fn an_svid_is_for_the_id_and_the_key_that_were_asked_for() {
    let ca = TestCa::new("td");
    let other = ca.id("a", "c");
    let make = |expected: &SpiffeId, Issued { chain, key }| {
        X509Svid::new(expected, chain, key, ca.bundles(), UnixTime::now()).unwrap_err()
    };
    assert!(matches!(make(&other, ca.issue(URI, |_| {})), SvidError::UnexpectedId { .. }));
    let swapped = Issued { key: ca.issue(URI, |_| {}).key, ..ca.issue(URI, |_| {}) };
    assert_eq!(make(&id(), swapped), SvidError::WrongKey { id: id() });
    let broken = Issued { key: crate::PrivateKey::new(vec![1, 2, 3].into()), ..ca.issue(URI, |_| {}) };
    assert_eq!(make(&id(), broken), SvidError::UnusableKey { id: id() });
}

#[test]
fn an_svid_is_judged_by_its_own_trust_domain_even_where_others_are_trusted() {
    let (td, other) = (TestCa::new("td"), TestCa::new("other"));
    let issued = other.issue(URI, |_| {});
    let bundles = Arc::clone(&td.bundles_with(&[&other]));
    let error = X509Svid::new(&id(), issued.chain, issued.key, bundles, UnixTime::now()).unwrap_err();
    assert!(matches!(error, SvidError::Untrusted { .. }), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_flipped_bit_anywhere_in_a_leaf_is_never_accepted(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let ca = TestCa::new("td");
        let chain = ca.issue(URI, |_| {}).chain;
        let mut der = chain[0].to_vec();
        let at = at.index(der.len());
        der[at] ^= 1 << bit;
        prop_assert!(verify_peer(&[der.into()], &ca.bundles(), UnixTime::now()).is_err());
    }

    #[test]
    fn no_bytes_make_the_verifier_panic(der in prop::collection::vec(any::<u8>(), 0..600)) {
        let ca = TestCa::new("td");
        prop_assert!(verify_peer(&[der.into()], &ca.bundles(), UnixTime::now()).is_err());
    }
}
