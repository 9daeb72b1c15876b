//! The demo: Istio's three tiers on two nodes, each promise shown with its evidence.
//!
//! `cargo xtask demo` runs it. Every check looks from outside (curl's answer, the captured link, the daemons' logs and
//! views) and each can fail: a capture that shall not hold the payload is compared with one, taken before the mesh was
//! started, that does.

mod checks;
mod report;
mod stage;

use anyhow::Result;

use crate::need::Need;
use crate::testbed;

pub use report::{Check, Report};

/// What the demo may be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// One JSON object on standard output instead of text.
    pub json: bool,
    /// Leave everything up at the end.
    pub keep: bool,
}

/// Runs the demo; what it found is in the report.
///
/// # Errors
/// This machine lacks something, or the stage could not be set.
pub fn run(options: Options) -> Result<Report> {
    for need in NEEDS {
        if let Some(reason) = need.unmet() {
            anyhow::bail!("the demo cannot run here: {reason}");
        }
    }
    let mut report = Report::new(options.json);
    let stage = checks::run(&mut report)?;
    if options.keep {
        stage.keep(&report)?;
    }
    report.finish();
    Ok(report)
}

/// Takes down what `--keep` has left up.
#[must_use]
pub fn take_down() -> Vec<String> {
    testbed::take_down_kept()
}

const NEEDS: [Need; 5] =
    [Need::Nodes, Need::Engine, Need::Program("nginx"), Need::Program("curl"), Need::Program("tcpdump")];
