//! What a directory says when its files are read one after the other, without a watch.

use std::fs;

use super::*;

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n---\n")
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.documents.iter().map(|d| d.key().name.to_string()).collect()
}

fn faults(snapshot: &Snapshot) -> Vec<String> {
    snapshot.faults.iter().map(|f| f.error.to_string()).collect()
}

#[test]
fn yaml_yml_and_json_are_read_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for (file, name) in [("a.yaml", "a"), ("b.yml", "b"), ("d.txt", "d"), (".e.yaml", "e"), ("f", "f")] {
        fs::write(dir.path().join(file), pod(name)).unwrap();
    }
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#;
    fs::write(dir.path().join("c.json"), json).unwrap();
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    fs::write(dir.path().join("sub.yaml/g.yaml"), pod("g")).unwrap();
    let snapshot = Directory::open(dir.path()).unwrap().read();
    assert_eq!(names(&snapshot), ["a", "b", "c"]);
    assert_eq!(faults(&snapshot), Vec::<String>::new());
}

#[test]
fn a_broken_file_keeps_what_it_last_said_and_leaves_the_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    fs::write(dir.path().join("b.yaml"), pod("b")).unwrap();
    let mut directory = Directory::open(dir.path()).unwrap();
    directory.read();
    fs::write(dir.path().join("a.yaml"), "kind: [").unwrap();
    fs::write(dir.path().join("b.yaml"), pod("b2")).unwrap();
    let snapshot = directory.read();
    assert_eq!(names(&snapshot), ["a", "b2"]);
    assert!(snapshot.faults[0].last_good);
    fs::write(dir.path().join("a.yaml"), pod("a3")).unwrap();
    let snapshot = directory.read();
    assert_eq!((names(&snapshot), snapshot.faults.len()), (vec!["a3".to_owned(), "b2".to_owned()], 0));
}

#[test]
fn a_file_broken_from_the_start_says_what_it_may_hold() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), "kind: AuthorizationPolicy\nspec: [").unwrap();
    let snapshot = Directory::open(dir.path()).unwrap().read();
    let fault = &snapshot.faults[0];
    assert!(!fault.last_good && fault.may_hold("AuthorizationPolicy") && !fault.may_hold("Pod"));
}

#[test]
fn the_same_object_in_two_files_is_taken_from_the_first() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    fs::write(dir.path().join("b.yaml"), format!("{}{}", pod("b"), pod("a"))).unwrap();
    let snapshot = Directory::open(dir.path()).unwrap().read();
    assert_eq!(names(&snapshot), ["a", "b"]);
    assert_eq!(
        faults(&snapshot),
        ["b.yaml line 5: Pod default/a is in a.yaml too, which is in force: remove one"]
    );
}

#[test]
fn a_file_that_is_too_large_is_not_read_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let padding = "# padding\n".repeat(limits::FILE_BYTES / 10 + 1);
    fs::write(dir.path().join("a.yaml"), pod("a") + &padding).unwrap();
    let snapshot = Directory::open(dir.path()).unwrap().read();
    assert_eq!(names(&snapshot), Vec::<String>::new());
    assert!(matches!(*snapshot.faults[0].error, FileError::TooLarge { .. }));
}

#[test]
fn unchanged_bytes_keep_their_documents_and_their_generation() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    let mut directory = Directory::open(dir.path()).unwrap();
    let first = directory.read();
    let generation = directory.generation();
    fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
    let second = directory.read();
    assert!(Arc::ptr_eq(&first.documents[0], &second.documents[0]));
    assert_eq!(directory.generation(), generation);
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error = Directory::open("/nonexistent/manifests").unwrap_err().to_string();
    assert!(error.starts_with("cannot read the manifest directory /nonexistent/manifests: "), "{error}");
}
