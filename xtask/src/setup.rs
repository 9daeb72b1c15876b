//! `cargo xtask setup`: finds what a purpose needs, says what is missing, installs it.
//!
//! A plan first, then the work: nothing is installed that was not announced. Every part asks the machine itself whether
//! it is there, so a second run does nothing. Without root or apt it ends with the list of what to install by hand.

mod apt;
mod compiler;
mod definitions;
mod go;
mod gotools;
mod kernels;
mod need;
pub(crate) mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use need::Need;

/// Options of `setup`.
#[derive(Args)]
pub(crate) struct Options {
    /// What for
    #[arg(long = "for", value_enum, default_value = "all")]
    purpose: Purpose,
    /// Say what would be installed, and stop
    #[arg(long)]
    dry_run: bool,
}

/// What one wants to do; each needs what the ones it includes need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// Compile
    Build,
    /// Run the demo
    Demo,
    /// Run a cluster
    Cluster,
    /// Run a cluster with Istio's control plane
    Istiod,
    /// Run every test
    Test,
    /// Measure
    Bench,
    /// Run the checks
    Check,
    /// All of it
    All,
}

/// The command itself.
///
/// # Errors
/// Something could not be installed; the error says how to do it by hand.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.dry_run {
        announce(&missing(options.purpose));
    } else {
        ensure(options.purpose)?;
    }
    if missing(options.purpose).is_empty() {
        eprintln!("setup: everything is here");
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what a purpose needs and this machine lacks. Silent where there is nothing to do.
///
/// # Errors
/// Something could not be installed; the error says how to do it by hand.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    let missing = missing(purpose);
    announce(&missing);
    let packages = need::packages(&missing);
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    for need in &missing {
        need.install()?;
    }
    confirm(&missing)
}

/// What of a purpose this machine lacks.
pub(crate) fn missing(purpose: Purpose) -> Vec<Need> {
    need::of(purpose).into_iter().filter(|need| !need.is_met()).collect()
}

fn announce(missing: &[Need]) {
    if missing.is_empty() {
        return;
    }
    eprintln!("setup: will install");
    for need in missing {
        eprintln!("  {need}");
    }
}

fn confirm(installed: &[Need]) -> Result<()> {
    let still: Vec<String> = installed.iter().filter(|need| !need.is_met()).map(Need::to_string).collect();
    if !still.is_empty() {
        bail!("installed without an error, and yet not found: {}", still.join("; "));
    }
    Ok(())
}
