//! cargo-deny: licences, bans and sources always; advisories only with a database, which lives on the net.

use std::process::Command;

use super::Verdict;
use crate::setup::tools;
use crate::{step, workspace};

/// `deny.toml` against the lock file.
pub(super) fn rules() -> Verdict {
    step::run("cargo deny", deny().args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
        .into()
}

/// Known vulnerabilities, as far as the database can be had.
pub(super) fn advisories() -> Verdict {
    if let Err(error) = step::run("cargo deny fetch", deny().args(["fetch", "db"])) {
        let last = error.to_string().lines().rev().nth(1).unwrap_or_default().trim().to_owned();
        return Verdict::NotRun(format!("the advisory database cannot be fetched: {last}"));
    }
    step::run("cargo deny advisories", deny().args(["check", "--disable-fetch", "advisories"])).into()
}

/// Git must neither ask for a password nor wait for ever for a host that does not answer.
fn deny() -> Command {
    let mut command = Command::new("timeout");
    command.arg("120").arg(tools::cargo_deny()).args(["--color", "never", "--workspace"]);
    command.current_dir(workspace::root()).env("GIT_TERMINAL_PROMPT", "0");
    command
}
