//! What is kept of an object while it is decoded.
//!
//! Of 100,000 pods the API server sends a gigabyte, of which a peer look-up needs a hundredth. What is not on the list of
//! its kind is skipped by the parser and never becomes a value: containers' environments, managed fields, conditions,
//! annotations. The lists also bound what a tenant can make the engine hold.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::resource::Kind;

/// What to keep of a value.
#[derive(Debug)]
pub enum Keep {
    /// All of it.
    All,
    /// These fields, of an object or of each item of a list. A scalar in their place is kept, for the conversion to name.
    Fields(&'static [(&'static str, Keep)]),
}

/// An object of a kind, with what is kept of it.
#[derive(Debug)]
pub struct Trimmed<K> {
    value: Value,
    kind: PhantomData<K>,
}

impl<K> Trimmed<K> {
    /// What was kept.
    #[must_use]
    pub fn into_value(self) -> Value {
        self.value
    }
}

impl<K> Clone for Trimmed<K> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), kind: PhantomData }
    }
}

impl<'de, K: Kind> Deserialize<'de> for Trimmed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Trim(&K::KEEP).deserialize(deserializer)?;
        Ok(Self { value, kind: PhantomData })
    }
}

struct Trim(&'static Keep);

impl<'de> DeserializeSeed<'de> for Trim {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.0 {
            Keep::All => Value::deserialize(deserializer),
            Keep::Fields(fields) => deserializer.deserialize_any(TrimFields { fields, keep: self.0 }),
        }
    }
}

struct TrimFields {
    fields: &'static [(&'static str, Keep)],
    /// The same, for the items of a list.
    keep: &'static Keep,
}

impl<'de> Visitor<'de> for TrimFields {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.fields.iter().find(|(name, _)| *name == key) {
                Some((_, keep)) => drop(kept.insert(key.into_owned(), map.next_value_seed(Trim(keep))?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(Trim(self.keep))? {
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::resource::Resource;
    use Keep::{All, Fields};

    #[derive(Debug)]
    struct Pods;

    impl Kind for Pods {
        const RESOURCE: Resource = Resource { group: "", kind: "Pod", plural: "pods" };
        const KEEP: Keep = Fields(&[
            (
                "metadata",
                Fields(&[
                    ("name", All),
                    ("labels", All),
                    ("annotations", Fields(&[("kubernetes.io/config.mirror", All)])),
                ]),
            ),
            (
                "spec",
                Fields(&[
                    ("nodeName", All),
                    ("containers", Fields(&[("ports", Fields(&[("containerPort", All)]))])),
                ]),
            ),
            ("status", Fields(&[("podIPs", Fields(&[("ip", All)]))])),
        ]);
    }

    fn trimmed(value: &Value) -> Value {
        serde_json::from_str::<Trimmed<Pods>>(&value.to_string()).unwrap().into_value()
    }

    #[test]
    fn a_pod_loses_what_no_look_up_needs() {
        let pod = json!({
            "metadata": {"name": "a", "managedFields": [{"manager": "kubelet"}], "labels": {"app": "a"},
                "annotations": {"signet.dev/cgroup": "x", "kubernetes.io/config.mirror": "m"}},
            "spec": {"nodeName": "n1", "volumes": [{}], "containers": [
                {"name": "c", "env": [{"name": "PASSWORD", "value": "secret"}], "ports": [{"containerPort": 80}]},
            ]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{}], "containerStatuses": [{}]},
        });
        let kept = json!({
            "metadata": {"name": "a", "labels": {"app": "a"}, "annotations": {"kubernetes.io/config.mirror": "m"}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"containerPort": 80}]}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}]},
        });
        assert_eq!(trimmed(&pod), kept);
    }

    #[test]
    fn a_scalar_where_an_object_belongs_is_kept_so_that_the_conversion_can_name_it() {
        for odd in [
            json!({"spec": 7}),
            json!({"spec": "x"}),
            json!({"spec": null}),
            json!({"spec": [true, -1, 0.5]}),
        ] {
            assert_eq!(trimmed(&odd), odd);
        }
    }

    proptest! {
        #[test]
        fn no_json_panics_and_none_grows(text in "[\\[\\]{}:,\"a-c0-9.\\-]{0,60}") {
            if let Ok(value) = serde_json::from_str::<Trimmed<Pods>>(&text) {
                prop_assert!(value.into_value().to_string().len() <= text.len() + 8);
            }
        }
    }
}
