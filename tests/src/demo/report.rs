//! What the demo says while it runs, and at its end.
//!
//! Progress goes to standard error, so that standard output holds the checks alone: lines for people, or one JSON
//! object.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// One promise, and what was seen of it.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The promise.
    pub name: String,
    /// It was kept.
    pub ok: bool,
    /// The evidence, or what went wrong.
    pub detail: String,
}

/// All of them.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Every promise was kept, and there were some.
    pub ok: bool,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    #[serde(skip)]
    json: bool,
    #[serde(skip)]
    started: Instant,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { ok: false, checks: Vec::new(), json, started: Instant::now() }
    }

    /// Tells what is being done.
    pub(super) fn progress(&self, what: &str) {
        eprintln!("[{:5.1}s] {what}", self.started.elapsed().as_secs_f32());
    }

    /// Tries one promise; a failure is written down and does not end the demo.
    pub(super) fn check(&mut self, name: &str, try_it: impl FnOnce() -> Result<String>) {
        self.progress(&format!("{name} ..."));
        let (ok, detail) = match try_it() {
            Ok(evidence) => (true, evidence),
            Err(error) => (false, format!("{error:#}")),
        };
        if !self.json {
            println!("{} {name}", if ok { "ok    " } else { "FAILED" });
            detail.lines().for_each(|line| println!("         {line}"));
        }
        self.checks.push(Check { name: name.to_owned(), ok, detail });
        self.ok = self.checks.iter().all(|check| check.ok);
    }

    /// Prints text for people, whatever standard output is for.
    pub(super) fn note(&self, text: &str) {
        if self.json { eprintln!("{text}") } else { println!("{text}") }
    }

    /// Prints the end.
    pub(super) fn finish(&self) {
        if self.json {
            println!("{}", serde_json::to_string_pretty(self).expect("texts and booleans are JSON"));
            return;
        }
        let failed = self.checks.iter().filter(|check| !check.ok).count();
        let seconds = self.started.elapsed().as_secs();
        println!("\n{} of {} checks passed in {seconds} s", self.checks.len() - failed, self.checks.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_promise_makes_the_whole_report_fail() {
        let mut report = Report::new(true);
        assert!(!report.ok, "a report without checks proves nothing");
        report.check("a", || Ok("seen".into()));
        assert!(report.ok);
        report.check("b", || anyhow::bail!("not seen"));
        report.check("c", || Ok("seen".into()));
        assert!(!report.ok);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][1]["detail"], "not seen");
        assert_eq!(json.as_object().unwrap().len(), 2);
    }
}
