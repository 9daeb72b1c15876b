//! Certificate requests: one name, one key, and every byte accounted for.

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;
use crate::tests::fixture::csr_for;

const ID: &str = "spiffe://cluster.local/ns/a/sa/b";

fn id() -> SpiffeId {
    SpiffeId::parse(ID).unwrap()
}

#[test]
fn a_request_names_the_granted_identity_or_nothing() {
    assert!(Csr::parse(&csr_for(ID)).unwrap().key_for(&id()).is_ok());
    let key = KeyPair::generate().unwrap();
    let nameless = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    assert!(Csr::parse(&nameless).unwrap().key_for(&id()).is_ok());
}

#[test]
fn a_second_name_of_any_kind_is_refused() {
    let key = KeyPair::generate().unwrap();
    for second in [
        SanType::URI("spiffe://cluster.local/ns/a/sa/admin".try_into().unwrap()),
        SanType::DnsName("admin.example".try_into().unwrap()),
    ] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap()), second];
        let csr = Csr::parse(&params.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
        assert!(matches!(csr.key_for(&id()), Err(CsrError::Names { .. })));
    }
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let sections = |pem: &str| pem::parse(pem).unwrap().into_contents();
    let (ours, theirs) = (sections(&csr_for(ID)), sections(&csr_for(ID)));
    // The signature is the last part; both requests are otherwise shaped alike.
    let cut = ours.len().min(theirs.len()) - 60;
    let mut forged = ours[..cut].to_vec();
    forged.extend_from_slice(&theirs[cut.min(theirs.len())..]);
    assert!(matches!(Csr::from_der(&forged), Err(CsrError::Signature | CsrError::Malformed)));
}

#[test]
fn bytes_after_the_request_are_refused() {
    let mut der = pem::parse(csr_for(ID)).unwrap().into_contents();
    der.push(0);
    assert_eq!(Csr::from_der(&der).unwrap_err(), CsrError::Malformed);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Csr::from_der(&bytes).is_err());
    }

    #[test]
    fn no_text_panics(text in "(-----BEGIN CERTIFICATE REQUEST-----\n)?[A-Za-z0-9+/=\n]{0,200}(-----END CERTIFICATE REQUEST-----)?") {
        let _ = Csr::parse(&text);
    }

    #[test]
    fn a_request_with_one_bit_changed_is_not_taken_for_another_key(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let original = pem::parse(csr_for(ID)).unwrap().into_contents();
        let mut changed = original.clone();
        let position = position.index(changed.len());
        changed[position] ^= 1 << bit;
        // Whatever still verifies (a flag the signature does not cover) must be the same key.
        if let Ok(csr) = Csr::from_der(&changed) {
            let same = Csr::from_der(&original).unwrap();
            prop_assert_eq!(csr.key, same.key);
        }
    }
}
