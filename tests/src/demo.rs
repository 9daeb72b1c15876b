//! The demo: Istio's three tiers on two nodes, each promise shown with its evidence.
//!
//! `cargo xtask demo` runs it; with `--kubernetes` the nodes are those of a real cluster, and Signet comes by helm. Every check looks from outside (curl's answer, the captured link, the daemons' logs and
//! views) and each can fail: a capture that shall not hold the payload is compared with one, taken before the mesh was
//! started, that does.

mod checks;
mod kubernetes;
mod report;
mod stage;

use anyhow::Result;

use crate::need::Need;
use crate::{cluster, testbed};

pub use report::{Check, Report};

/// What the demo may be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// One JSON object on standard output instead of text.
    pub json: bool,
    /// Leave everything up at the end.
    pub keep: bool,
    /// On a Kubernetes cluster.
    pub kubernetes: bool,
}

/// Runs the demo; what it found is in the report.
///
/// # Errors
/// This machine lacks something, or the stage could not be set.
pub fn run(options: Options) -> Result<Report> {
    let needs = if options.kubernetes { &ON_A_CLUSTER[..] } else { &NEEDS[..] };
    for need in needs {
        if let Some(reason) = need.unmet() {
            anyhow::bail!("the demo cannot run here: {reason}");
        }
    }
    let mut report = Report::new(options.json);
    if options.kubernetes {
        kubernetes::run(&mut report, options.keep)?;
    } else {
        let stage = checks::run(&mut report)?;
        if options.keep {
            stage.keep(&report)?;
        }
    }
    report.finish();
    Ok(report)
}

/// Takes down what `--keep` has left up, and names it.
///
/// # Errors
/// Something of the cluster could not be removed.
pub fn take_down() -> Result<Vec<String>> {
    let mut taken = testbed::take_down_kept();
    if cluster::exists(KEPT)? {
        cluster::take_down(KEPT)?;
        taken.push(format!("cluster {KEPT}"));
    }
    Ok(taken)
}

/// The name of the cluster that `--keep` leaves.
const KEPT: &str = "demo";
const ON_A_CLUSTER: [Need; 3] = [Need::Cluster, Need::Engine, Need::Program("tcpdump")];
const NEEDS: [Need; 5] =
    [Need::Nodes, Need::Engine, Need::Program("nginx"), Need::Program("curl"), Need::Program("tcpdump")];
