//! House rules on files: a module doc that says something, names that say something, no file that needs a table of contents.

use std::fs;
use std::path::{Path, PathBuf};

use super::Verdict;
use crate::workspace;

/// Looks at every Rust file of the repository.
pub(super) fn check() -> Verdict {
    let files = rust_files(&workspace::root());
    let broken: Vec<String> = files.iter().flat_map(|(path, text)| broken_rules(path, text)).collect();
    let long: Vec<String> = files.iter().filter_map(|(path, text)| too_long(path, text)).collect();
    if !long.is_empty() {
        println!("\nsources, to be split ({MAX_LINES} lines are the limit):\n  {}", long.join("\n  "));
    }
    match broken.is_empty() {
        true => Verdict::Ok(format!("{} files, {} of them long", files.len(), long.len())),
        false => Verdict::Failed(broken),
    }
}

/// Every Rust file below the folders that hold them, by its path below `root`, in order.
fn rust_files(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    FOLDERS.iter().for_each(|folder| collect(&root.join(folder), &mut found));
    found.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).ok()?;
        Some((path.strip_prefix(root).ok()?.to_owned(), text))
    };
    found.into_iter().filter_map(read).collect()
}

/// Adds the Rust files below a folder; one that cannot be read has none.
pub(super) fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn broken_rules(path: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let doc = text.lines().next().and_then(|line| line.strip_prefix("//!")).unwrap_or_default();
    if doc.trim().len() < SHORTEST_DOC {
        broken.push(format!(
            "{}:1: open with `//!`: what it does, why this way, what it does not do",
            path.display()
        ));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    if EMPTY_NAMES.contains(&name.as_ref()) {
        broken.push(format!("{}: name it after the thing that it holds", path.display()));
    }
    broken
}

fn too_long(path: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > MAX_LINES).then(|| format!("{}: {lines} lines", path.display()))
}

const FOLDERS: [&str; 5] = ["common", "ebpf", "userspace", "tests", "xtask"];
const MAX_LINES: usize = 400;
/// In bytes: shorter than this nothing has been said.
const SHORTEST_DOC: usize = 12;
const EMPTY_NAMES: [&str; 8] = ["mod", "utils", "util", "helpers", "helper", "manager", "handler", "misc"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_module_doc_is_named() {
        let broken = broken_rules(Path::new("a/relay.rs"), "use std::fs;\n");
        assert!(broken[0].starts_with("a/relay.rs:1: open with"), "{broken:?}");
    }

    #[test]
    fn a_word_is_no_module_doc() {
        assert_eq!(broken_rules(Path::new("a/relay.rs"), "//! Relay.\n").len(), 1);
    }

    #[test]
    fn a_name_that_says_nothing_is_refused() {
        let broken =
            broken_rules(Path::new("a/utils.rs"), "//! Moves bytes both ways until both have ended.\n");
        assert_eq!(broken.len(), 1);
    }

    #[test]
    fn a_file_as_it_should_be_passes() {
        assert!(
            broken_rules(Path::new("a/relay.rs"), "//! Moves bytes both ways until both have ended.\n")
                .is_empty()
        );
    }
}
