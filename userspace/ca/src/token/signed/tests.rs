//! Node tokens: whom they name, and every way they prove nothing.

use proptest::prelude::*;

use std::sync::Arc;

use super::*;
use crate::jwks::Jwks;
use crate::tests::fixture::{ISSUER, TokenIssuer, node_claims};

fn rules() -> Rules {
    Rules { audience: "istio-ca".into(), accounts: ["signet-system/signetd".to_owned()].into() }
}

fn keys(issuer: &TokenIssuer) -> Arc<KeySet> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, issuer.jwks().to_string()).unwrap();
    Jwks::open(&path).unwrap().current()
}

#[test]
fn the_node_is_the_one_in_the_token() {
    let issuer = TokenIssuer::new();
    let node = verify(&issuer.sign(&node_claims("n7")), &keys(&issuer), ISSUER, &rules()).unwrap();
    assert_eq!(&**node.name(), "n7");
}

proptest! {
    #[test]
    fn no_token_panics_and_none_verifies(text in "[A-Za-z0-9_.-]{0,200}|\\PC{0,60}") {
        prop_assert!(verify(&text, &KeySet::default(), ISSUER, &rules()).is_err());
    }

    #[test]
    fn a_token_with_one_byte_changed_does_not_verify(position in any::<prop::sample::Index>(), byte in 0x21u8..0x7f) {
        let issuer = TokenIssuer::new();
        let mut token = issuer.sign(&node_claims("n1")).into_bytes();
        let position = position.index(token.len());
        prop_assume!(token[position] != byte);
        // The last character of a part carries bits that base64 leaves open.
        let ends_part = token.get(position + 1).is_none_or(|next| *next == b'.');
        prop_assume!(!ends_part);
        token[position] = byte;
        let token = String::from_utf8(token).unwrap();
        prop_assert!(verify(&token, &keys(&issuer), ISSUER, &rules()).is_err());
    }
}
