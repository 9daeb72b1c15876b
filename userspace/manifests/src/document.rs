//! One object of a manifest file: where it stands, what it is, and its content.
//!
//! The content stays an untyped JSON value until somebody asks for a type, because most kinds in a directory are
//! nobody's business. Name and namespace are checked here, once: keys, SPIFFE IDs and uids are built from them.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::limits;

/// One Kubernetes object, as read from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    place: Place,
    api_version: String,
    key: ObjectKey,
    value: Value,
}

/// What tells one object from another: its version is not part of it, `v1` and `v1beta1` are the same object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The API group, empty for the core group.
    pub group: Arc<str>,
    /// The kind.
    pub kind: Arc<str>,
    /// The namespace: `default` where a namespaced object elides it, empty for a Node or Namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// What is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {}{field}: {reason}", line_suffix(*.line), object_prefix(.object.as_deref()))]
pub struct DocumentError {
    /// The file's name in its directory, or `API server`.
    pub file: Arc<str>,
    /// The line its document begins at, from 1; 0 where there are no lines.
    pub line: u64,
    /// Kind, namespace and name of the object, where so much of it could be read.
    pub object: Option<String>,
    /// The field's path; `.` is the document itself.
    pub field: String,
    /// What it should be.
    pub reason: String,
}

/// A file has lines, an API server has none.
fn line_suffix(line: u64) -> String {
    if line == 0 { String::new() } else { format!(" line {line}") }
}

fn object_prefix(object: Option<&str>) -> String {
    object.map(|key| format!("{key}: ")).unwrap_or_default()
}

/// Where a document stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) file: Arc<str>,
    pub(crate) line: u64,
    /// Among the non-empty documents of the file, list items counted, from 0.
    pub(crate) index: usize,
}

impl Place {
    pub(crate) fn error(&self, field: &str, reason: impl Into<String>) -> DocumentError {
        DocumentError {
            file: self.file.clone(),
            line: self.line,
            object: None,
            field: field.into(),
            reason: reason.into(),
        }
    }
}

impl Document {
    /// An object that came from an API server, which says apart from it what it is.
    ///
    /// # Errors
    /// It is no legal object.
    pub fn received(api_version: &str, kind: &str, mut value: Value) -> Result<Self, DocumentError> {
        if let Value::Object(fields) = &mut value {
            fields.insert("apiVersion".into(), api_version.into());
            fields.insert("kind".into(), kind.into());
        }
        Self::new(Place { file: API_SERVER.into(), line: 0, index: 0 }, value)
    }

    /// Checks what every object must have.
    pub(crate) fn new(place: Place, value: Value) -> Result<Self, DocumentError> {
        let api_version = text(&place, &value, "/apiVersion")?.to_owned();
        let kind = text(&place, &value, "/kind")?;
        let name = text(&place, &value, "/metadata/name")?;
        let namespace = namespace(&place, &value, kind)?;
        check_name(&place, "metadata.name", name)?;
        let key = ObjectKey {
            group: api_version.split_once('/').map_or("", |(group, _)| group).into(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        Ok(Self { place, api_version, key, value })
    }

    /// The file's name in its directory.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.place.file
    }

    /// The line it begins at, from 1; a `List`'s items have the list's.
    #[must_use]
    pub fn line(&self) -> u64 {
        self.place.line
    }

    /// Its number among the file's objects, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.place.index
    }

    /// `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> &str {
        &self.api_version
    }

    /// Its identity.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// All of it.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Whether it is of this group (empty for the core group) and kind.
    #[must_use]
    pub fn is(&self, group: &str, kind: &str) -> bool {
        &*self.key.group == group && &*self.key.kind == kind
    }

    /// The document as a `T`.
    ///
    /// # Errors
    /// The first field that does not fit, by its path.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, DocumentError> {
        serde_path_to_error::deserialize(&self.value)
            .map_err(|e| self.error(&e.path().to_string(), e.inner().to_string()))
    }

    /// An error about a field of this document, for what only the caller can judge.
    #[must_use]
    pub fn error(&self, field: &str, reason: impl Into<String>) -> DocumentError {
        DocumentError { object: Some(self.key.to_string()), ..self.place.error(field, reason) }
    }
}

fn text<'v>(place: &Place, value: &'v Value, pointer: &str) -> Result<&'v str, DocumentError> {
    let field = pointer[1..].replace('/', ".");
    match value.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(_) => Err(place.error(&field, "must be a non-empty string")),
        None => Err(place.error(&field, "is missing")),
    }
}

fn namespace<'v>(place: &Place, value: &'v Value, kind: &str) -> Result<&'v str, DocumentError> {
    if CLUSTER_SCOPED.contains(&kind) {
        return Ok("");
    }
    if value.pointer("/metadata/namespace").is_none() {
        return Ok("default");
    }
    let namespace = text(place, value, "/metadata/namespace")?;
    check_name(place, "metadata.namespace", namespace)?;
    Ok(namespace)
}

/// What the API server asks of any name that becomes a path segment (apimachinery `IsValidPathSegmentName`).
fn check_name(place: &Place, field: &str, name: &str) -> Result<(), DocumentError> {
    if name.len() > limits::NAME_BYTES {
        return Err(place.error(field, format!("is longer than {} bytes", limits::NAME_BYTES)));
    }
    let illegal = |c: char| c == '/' || c == '%' || c.is_whitespace() || c.is_control();
    if name == "." || name == ".." || name.contains(illegal) {
        return Err(place.error(field, format!("{name:?} is no legal name")));
    }
    Ok(())
}

/// Where an object stands that came from one.
const API_SERVER: &str = "API server";

/// The cluster-scoped kinds that Signet reads; for others the namespace of the key does not matter to anybody.
const CLUSTER_SCOPED: [&str; 2] = ["Namespace", "Node"];

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn place() -> Place {
        Place { file: "pods.yaml".into(), line: 7, index: 0 }
    }

    #[test]
    fn an_elided_namespace_is_default_except_for_cluster_scoped_kinds() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
        assert_eq!(&*Document::new(place(), pod).unwrap().key().namespace, "default");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}});
        assert_eq!(&*Document::new(place(), node).unwrap().key().namespace, "");
    }

    #[test]
    fn a_field_of_the_wrong_type_is_named_with_file_line_and_object() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": "eighty"}]}]}});
        let error = Document::new(place(), pod).unwrap().parse::<Pod>().unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(
                "pods.yaml line 7: Pod default/a: spec.containers[0].ports[0].containerPort: invalid type"
            ),
            "{text}"
        );
    }

    #[test]
    fn an_object_of_an_api_server_is_what_it_was_asked_for_as() {
        let forged = json!({"kind": "Node", "metadata": {"name": "a", "namespace": "x"}, "spec": 1});
        let document = Document::received("v1", "Pod", forged).unwrap();
        assert_eq!(document.key().to_string(), "Pod x/a");
        let error = document.error("spec", "is odd").to_string();
        assert_eq!(error, "API server: Pod x/a: spec: is odd");
    }

    #[test]
    fn a_name_that_could_forge_a_path_is_refused() {
        for name in ["a/b", "..", "a b", "a%2fb", "a\nb", ""] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
            assert_eq!(Document::new(place(), pod).unwrap_err().field, "metadata.name", "{name:?}");
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "x/y"}});
        assert_eq!(Document::new(place(), pod).unwrap_err().field, "metadata.namespace");
    }

    #[test]
    fn the_version_is_not_part_of_the_identity() {
        let of = |version: &str| {
            let value = json!({"apiVersion": format!("security.istio.io/{version}"),
                "kind": "AuthorizationPolicy", "metadata": {"name": "a"}});
            Document::new(place(), value).unwrap().key().clone()
        };
        assert_eq!(of("v1"), of("v1beta1"));
    }
}
