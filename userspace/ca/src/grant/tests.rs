//! Which identity a request asks for, and who may have it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost_types::{ListValue, Value};

use super::*;

fn metadata(kind: Option<Kind>) -> Struct {
    Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), Value { kind })]) }
}

fn asked(metadata: Option<&Struct>) -> Result<SpiffeId, GrantError> {
    requested(&"n1".into(), metadata)
}

#[test]
fn the_identity_is_a_string_and_nothing_else() {
    let id = "spiffe://cluster.local/ns/a/sa/b";
    assert_eq!(asked(Some(&metadata(Some(Kind::StringValue(id.into()))))).unwrap().as_str(), id);
    for kind in [Kind::BoolValue(true), Kind::NumberValue(1.0), Kind::ListValue(ListValue::default())] {
        assert!(matches!(asked(Some(&metadata(Some(kind)))), Err(GrantError::Malformed { .. })));
    }
    for absent in [None, Some(&Struct::default()), Some(&metadata(None))] {
        assert!(matches!(asked(absent), Err(GrantError::NoIdentity { .. })));
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_errors_stay_short(text in "\\PC{0,3000}") {
        if let Err(GrantError::Malformed { asked, .. }) = asked(Some(&metadata(Some(Kind::StringValue(text))))) {
            prop_assert!(asked.chars().count() <= SHOWN);
        }
    }
}
