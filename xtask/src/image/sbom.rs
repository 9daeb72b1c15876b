//! The bill of materials of an image, as CycloneDX JSON: every crate that is linked into its programs, with the checksum
//! of the lock file, and every Debian package that a library is from.
//!
//! Build scripts and test dependencies are not in the image and not in the bill. It has no time and no serial number, so
//! that the same image has the same bill.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::debian::Package;
use crate::workspace;

/// The bill for the programs of some packages of the workspace, and of the eBPF crate where `signetd` is among them.
///
/// # Errors
/// cargo does not know a package, or a lock file cannot be read.
pub(super) fn of(name: &str, packages: &[&str], debian: &BTreeSet<Package>) -> Result<String> {
    let root = workspace::root();
    let mut crates = BTreeSet::new();
    for package in packages {
        crates.extend(linked(&root.join("Cargo.toml"), package)?);
    }
    if packages.contains(&"signet-agent") {
        crates.extend(linked(&root.join("ebpf/Cargo.toml"), "signet-ebpf")?);
    }
    let mut checksums = checksums(&fs::read_to_string(root.join("ebpf/Cargo.lock"))?);
    checksums.extend(checksums_of(&root.join("Cargo.lock"))?);
    let of_crates = crates.iter().map(|linked| component(linked, &checksums));
    let components: Vec<Value> = of_crates.chain(debian.iter().map(library)).collect();
    let bill = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": VERSION}},
        "components": components,
    });
    Ok(serde_json::to_string_pretty(&bill)? + "\n")
}

/// A crate that is linked into a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Linked {
    name: String,
    version: String,
    licence: String,
}

fn linked(manifest: &Path, package: &str) -> Result<BTreeSet<Linked>> {
    let mut command = workspace::cargo();
    command.args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--no-dedupe"]);
    command.args(["--format", "{p}|{l}", "--package", package, "--manifest-path"]).arg(manifest);
    let output = command.output().context("cannot run cargo tree")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "cargo tree of {package}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(Linked::parse).collect())
}

impl Linked {
    /// Reads `aya v0.14.0|MIT OR Apache-2.0`, and leaves out the path of a crate of the workspace.
    fn parse(line: &str) -> Option<Self> {
        let (package, licence) = line.split_once('|')?;
        let mut words = package.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        Some(Self { name: name.to_owned(), version: version.to_owned(), licence: licence.to_owned() })
    }
}

fn component(linked: &Linked, checksums: &BTreeMap<(String, String), String>) -> Value {
    let purl = format!("pkg:cargo/{}@{}", linked.name, linked.version);
    let mut component = json!({
        "type": "library", "bom-ref": purl, "name": linked.name, "version": linked.version, "purl": purl,
    });
    // Some manifests still separate licences by a slash, which is no SPDX expression.
    if !linked.licence.is_empty() {
        component["licenses"] = json!([{"expression": linked.licence.replace('/', " OR ")}]);
    }
    if let Some(checksum) = checksums.get(&(linked.name.clone(), linked.version.clone())) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

fn library(package: &Package) -> Value {
    let purl = format!("pkg:deb/debian/{}@{}", package.name, package.version);
    json!({"type": "library", "bom-ref": purl, "name": package.name, "version": package.version, "purl": purl})
}

fn checksums_of(lock: &Path) -> Result<BTreeMap<(String, String), String>> {
    let text = fs::read_to_string(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    Ok(checksums(&text))
}

/// Checksums by name and version. cargo writes a lock file one field a line, in this order.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |entry: &str, name: &str| {
        let start = format!("{name} = \"");
        let value = entry.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix('"'));
        value.map(str::to_owned)
    };
    let entries = lock.split("[[package]]");
    entries
        .filter_map(|entry| {
            Some(((field(entry, "name")?, field(entry, "version")?), field(entry, "checksum")?))
        })
        .collect()
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_of_the_workspace_is_listed_without_its_path() {
        let linked =
            Linked::parse("signet-agent v0.1.0 (/home/me/signet/userspace/agent)|Apache-2.0").unwrap();
        assert_eq!((linked.name.as_str(), linked.version.as_str()), ("signet-agent", "0.1.0"));
    }

    #[test]
    fn a_checksum_is_found_by_name_and_version() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n\n[[package]]\nname = \"b\"\nversion = \"2.0.0\"\n";
        let found = checksums(lock);
        assert_eq!(found.get(&("a".to_owned(), "1.0.0".to_owned())).map(String::as_str), Some("ab"));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn the_bill_of_signetd_names_what_is_linked_and_nothing_that_only_builds() {
        let bill = of("signetd", &["signet-agent"], &BTreeSet::new()).unwrap();
        assert!(bill.contains("pkg:cargo/rustls@") && bill.contains("pkg:cargo/aya-ebpf@"), "{bill}");
        assert!(!bill.contains("tonic-prost-build") && !bill.contains("proptest"), "{bill}");
        assert_eq!(bill, of("signetd", &["signet-agent"], &BTreeSet::new()).unwrap());
    }
}
