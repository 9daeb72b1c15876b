//! cargo-deny: licences, bans and sources always; advisories only with a database, which lives on the net.

use std::process::Command;

use super::Verdict;
use crate::setup::tools;
use crate::{step, workspace};

/// `deny.toml` against both lock files: the workspace's, and the eBPF crate's.
pub(super) fn rules() -> Verdict {
    let check = |title, manifest| {
        let mut command = deny(manifest);
        step::run(title, command.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
    };
    check("cargo deny", "Cargo.toml").and_then(|()| check("cargo deny ebpf", "ebpf/Cargo.toml")).into()
}

/// Known vulnerabilities, as far as the database can be had.
pub(super) fn advisories() -> Verdict {
    if let Err(error) = step::run("cargo deny fetch", deny("Cargo.toml").args(["fetch", "db"])) {
        let text = error.to_string();
        let fatal = text.lines().rev().find(|line| line.starts_with("fatal")).unwrap_or("see the log");
        return Verdict::NotRun(format!("the advisory database cannot be fetched: {fatal}"));
    }
    step::run("cargo deny advisories", deny("Cargo.toml").args(["check", "--disable-fetch", "advisories"]))
        .into()
}

/// Git must neither ask for a password nor wait for ever for a host that does not answer.
fn deny(manifest: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg("120").arg(tools::cargo_deny()).args([
        "--color",
        "never",
        "--manifest-path",
        manifest,
        "--config",
        "deny.toml",
    ]);
    command.current_dir(workspace::root()).env("GIT_TERMINAL_PROMPT", "0");
    command
}
