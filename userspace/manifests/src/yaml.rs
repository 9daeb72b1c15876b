//! The text of one manifest file to its documents.
//!
//! JSON files take the same way: YAML 1.2 contains JSON, and one parser with one set of limits is less to trust than
//! two. Duplicate keys are refused, since which of two `rules` holds is not for a parser to choose. Aliases may repeat
//! only [`limits::ALIASED_NODES`] nodes, which ends "billion laughs" early.

use std::sync::Arc;

use serde_json::Value;
use serde_saphyr::{Options, Spanned};

use crate::directory::FileError;
use crate::document::{Document, DocumentError, Place};
use crate::limits;

/// All documents of a file, lists unpacked, empty documents left out.
pub(crate) fn documents(file: &Arc<str>, bytes: &[u8]) -> Result<Vec<Arc<Document>>, FileError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| FileError::NotUtf8 { file: file.clone(), offset: e.valid_up_to() })?;
    let values: Vec<Spanned<Value>> =
        serde_saphyr::from_multiple_with_options(text, options()).map_err(|e| syntax_error(file, &e))?;
    let mut documents = Vec::with_capacity(values.len());
    for value in values {
        let place = Place { file: file.clone(), line: value.defined.line(), index: documents.len() };
        unpack(place, value.value, &mut documents)?;
    }
    Ok(documents)
}

/// Appends the object, or the objects of a list.
fn unpack(place: Place, value: Value, into: &mut Vec<Arc<Document>>) -> Result<(), DocumentError> {
    let Some(list) = List::of(&value) else {
        return push(place, value, into);
    };
    let (api_version, kind) = list.item_type();
    let Value::Object(mut list) = value else { unreachable!("List::of has seen an object") };
    let Some(Value::Array(items)) = list.remove("items") else {
        return Err(place.error("items", "must be a sequence"));
    };
    for (number, mut item) in items.into_iter().enumerate() {
        complete(&mut item, api_version.as_deref(), kind.as_deref());
        let place = Place { index: into.len(), ..place.clone() };
        push(place, item, into).map_err(|e| in_list(e, number))?;
    }
    Ok(())
}

fn push(place: Place, value: Value, into: &mut Vec<Arc<Document>>) -> Result<(), DocumentError> {
    if into.len() >= limits::DOCUMENTS {
        return Err(place.error(".", format!("the file holds more than {} objects", limits::DOCUMENTS)));
    }
    into.push(Arc::new(Document::new(place, value)?));
    Ok(())
}

/// A `List`, or a typed one as `kubectl get -o json --raw` gives it (`PodList`, whose items have no kind of their own).
struct List {
    api_version: String,
    kind: String,
}

impl List {
    fn of(value: &Value) -> Option<Self> {
        let kind = value.get("kind")?.as_str()?;
        if !kind.ends_with("List") || value.get("items").is_none() {
            return None;
        }
        let api_version = value.get("apiVersion")?.as_str()?;
        Some(Self { api_version: api_version.into(), kind: kind.into() })
    }

    /// What the items of a typed list are.
    fn item_type(self) -> (Option<String>, Option<String>) {
        match self.kind.strip_suffix("List") {
            None | Some("") => (None, None),
            Some(item) => (Some(self.api_version), Some(item.to_owned())),
        }
    }
}

fn complete(item: &mut Value, api_version: Option<&str>, kind: Option<&str>) {
    let Value::Object(item) = item else { return };
    for (field, elided) in [("apiVersion", api_version), ("kind", kind)] {
        if let Some(elided) = elided {
            item.entry(field).or_insert_with(|| elided.into());
        }
    }
}

fn in_list(mut error: DocumentError, number: usize) -> DocumentError {
    error.field = format!("items[{number}].{}", error.field);
    error
}

fn syntax_error(file: &Arc<str>, error: &serde_saphyr::Error) -> FileError {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    // The first line says it; the others draw the place, which the log does not need.
    let reason = error.without_snippet().to_string();
    let reason = reason.lines().next().unwrap_or_default().to_owned();
    FileError::Syntax { file: file.clone(), line, column, reason }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: limits::NODES * 2,
            max_nodes: limits::NODES,
            max_depth: limits::DEPTH,
            max_documents: limits::DOCUMENTS,
            max_inclusion_depth: 0,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: limits::ALIASED_NODES,
        },
        // YAML 1.2: `n` is a node's name, not false.
        strict_booleans: true,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Vec<Arc<Document>>, FileError> {
        documents(&"m.yaml".into(), text.as_bytes())
    }

    fn names(text: &str) -> Vec<String> {
        parse(text).unwrap().iter().map(|d| d.key().to_string()).collect()
    }

    #[test]
    fn documents_are_separated_and_empty_ones_do_not_count() {
        let text = "# a comment\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n\n---\n\
            apiVersion: v1\nkind: Node\nmetadata: {name: n}\n---\n";
        assert_eq!(names(text), ["Pod default/a", "Node n"]);
        let lines: Vec<_> = parse(text).unwrap().iter().map(|d| (d.line(), d.index())).collect();
        assert_eq!(lines, [(3, 0), (9, 1)]);
    }

    #[test]
    fn a_list_is_its_items() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n\
            - {apiVersion: v1, kind: Node, metadata: {name: n}}\n";
        assert_eq!(names(text), ["Pod default/a", "Node n"]);
    }

    #[test]
    fn the_items_of_a_typed_list_have_its_type() {
        let text = r#"{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"a"}}]}"#;
        assert_eq!(names(text), ["Pod default/a"]);
    }

    #[test]
    fn a_list_inside_a_list_is_no_object() {
        let text = "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: List, items: []}]}";
        let error = parse(text).unwrap_err().to_string();
        assert_eq!(error, "m.yaml line 1: items[0].metadata.name: is missing");
    }

    #[test]
    fn a_document_that_is_no_object_is_named() {
        let error = parse("---\n- a\n- b\n").unwrap_err().to_string();
        assert_eq!(error, "m.yaml line 2: apiVersion: is missing");
    }

    #[test]
    fn a_syntax_error_says_where() {
        let error = parse("apiVersion: v1\nkind: [Pod\n").unwrap_err();
        assert!(error.to_string().starts_with("m.yaml line "), "{error}");
    }

    #[test]
    fn a_key_given_twice_is_an_error_and_not_a_choice() {
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: n1}\nspec: {nodeName: n2}\n";
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains("line 5") && error.contains("spec"), "{error}");
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused() {
        let text = format!("a: {}{}", "[".repeat(limits::DEPTH + 1), "]".repeat(limits::DEPTH + 1));
        assert!(matches!(parse(&text).unwrap_err(), FileError::Syntax { .. }));
    }

    #[test]
    fn aliases_cannot_swell_a_file() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..8 {
            let alias = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
        }
        assert!(matches!(parse(&text).unwrap_err(), FileError::Syntax { .. }));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let error = documents(&"m.yaml".into(), b"kind: \xff").unwrap_err();
        assert_eq!(error.to_string(), "m.yaml: is no UTF-8 text (byte 6)");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = documents(&"m.yaml".into(), &bytes);
        }

        #[test]
        fn no_text_in_yaml_letters_panics(text in "[a-c:{}\\[\\],&*!|>\\-\"'# \n?%@]{0,200}") {
            let _ = parse(&text);
        }
    }
}
