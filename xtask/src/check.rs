//! `cargo xtask check`: everything a reviewer should not have to look for.
//!
//! Each check ends in one line of a table; what a failed one printed stands above it, with what to do. A check that
//! this machine cannot make is `not run`, with the reason, and never `ok`.

mod deny;
mod floors;
mod lexer;
mod sources;

use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Purpose};
use crate::toolchain::Compiler;
use crate::{ebpf, step, workspace};

/// How one check ended.
pub(crate) enum Verdict {
    /// As it should be; the detail is for the table.
    Ok(String),
    /// Not as it should be; each line says what to do.
    Failed(Vec<String>),
    /// Could not be looked at, and why.
    NotRun(String),
}

/// Runs every check, whatever the ones before it said.
///
/// # Errors
/// A tool could not be installed.
pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure(Purpose::Check)?;
    let results: Vec<(&str, Verdict)> = CHECKS.iter().map(|check| (check.name, (check.run)())).collect();
    for (name, verdict) in &results {
        print_failure(name, verdict);
    }
    println!();
    for (name, verdict) in &results {
        print_row(name, verdict);
    }
    let failed = results.iter().any(|(_, verdict)| matches!(verdict, Verdict::Failed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl From<Result<()>> for Verdict {
    fn from(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::Ok(String::new()),
            Err(error) => Self::Failed(format!("{error:#}").lines().map(str::to_owned).collect()),
        }
    }
}

/// One line of the table.
struct Check {
    name: &'static str,
    run: fn() -> Verdict,
}

/// The cheap ones first.
const CHECKS: [Check; 10] = [
    Check { name: "floors", run: floors::check },
    Check { name: "sources", run: sources::check },
    Check { name: "format", run: format_workspace },
    Check { name: "format ebpf", run: format_ebpf },
    Check { name: "ebpf", run: ebpf_object },
    Check { name: "clippy", run: clippy_workspace },
    Check { name: "clippy ebpf", run: clippy_ebpf },
    Check { name: "rustdoc", run: rustdoc },
    Check { name: "cargo-deny", run: deny::rules },
    Check { name: "advisories", run: deny::advisories },
];

fn format_workspace() -> Verdict {
    step::run("cargo fmt", workspace::cargo().args(["fmt", "--all", "--check"])).into()
}

fn format_ebpf() -> Verdict {
    let mut command = workspace::cargo();
    command.current_dir(workspace::root().join("ebpf")).args(["fmt", "--check"]);
    step::run("cargo fmt ebpf", &mut command).into()
}

/// Before clippy, which reads the node engine with the object inside.
fn ebpf_object() -> Verdict {
    ebpf::build().map(|_| ()).into()
}

fn clippy_workspace() -> Verdict {
    let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step::run("cargo clippy", workspace::cargo().args(arguments)).into()
}

fn clippy_ebpf() -> Verdict {
    let Some(mut command) = Compiler::detect().as_ref().and_then(ebpf::clippy) else {
        return Verdict::NotRun("the compiler for eBPF has no clippy".into());
    };
    step::run("cargo clippy ebpf", command.args(["--", "-D", "warnings"])).into()
}

fn rustdoc() -> Verdict {
    let mut command = workspace::cargo();
    command.args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
    // The documentation is for those who read the code: it may point at private items.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    step::run("cargo doc", command.env("RUSTDOCFLAGS", flags)).into()
}

fn print_failure(name: &str, verdict: &Verdict) {
    if let Verdict::Failed(lines) = verdict {
        println!("\n{name}:\n  {}", lines.join("\n  "));
    }
}

fn print_row(name: &str, verdict: &Verdict) {
    let (word, detail) = match verdict {
        Verdict::Ok(detail) => ("ok", detail.clone()),
        Verdict::Failed(_) => ("FAILED", "see above".to_owned()),
        Verdict::NotRun(reason) => ("not run", reason.clone()),
    };
    println!("{}", format!("{name:<12}  {word:<7}  {detail}").trim_end());
}
