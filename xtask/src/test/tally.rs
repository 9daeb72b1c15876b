//! Counts what the test harnesses print: libtest's and libtest-mimic's lines, and `SKIP <name>: <reason>`.
//!
//! A test that skips itself returns early, and its harness takes it for passed; the count here does not.

use std::collections::{BTreeMap, BTreeSet};

/// The counts so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    passed: usize,
    failures: Vec<String>,
    /// Failures that only a summary line told of.
    unnamed_failures: usize,
    /// Failures named since the last summary line.
    named: usize,
    /// Name to reason.
    skipped: BTreeMap<String, String>,
    /// Names the harness itself calls ignored.
    ignored: BTreeSet<String>,
    /// How many of the skipped ones the harness counted as passed.
    returned_early: usize,
}

impl Tally {
    /// Takes one line of a harness.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.summary(summary);
        } else if let Some((name, reason)) = skip_line(line) {
            self.skip_by_itself(name, reason);
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            self.outcome(name.trim(), outcome);
        }
    }

    /// Something that could not be tried at all.
    pub(super) fn skip(&mut self, name: &str, reason: &str) {
        self.skipped.insert(name.to_owned(), reason.to_owned());
    }

    /// A failure that no harness counted.
    pub(super) fn fail(&mut self, what: &str) {
        self.failures.push(what.to_owned());
    }

    /// How many failed.
    pub(super) fn failed(&self) -> usize {
        self.failures.len() + self.unnamed_failures
    }

    /// Nothing failed, and with `strict` nothing was skipped either.
    pub(super) fn is_success(&self, strict: bool) -> bool {
        self.failed() == 0 && self.passed() > 0 && !(strict && self.skipped() > 0)
    }

    /// Prints what failed, what was not run and why, and the counts.
    pub(super) fn report(&self, strict: bool) {
        let list = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                println!("\n{title}\n  {}", lines.join("\n  "));
            }
        };
        let title = if strict { "Could not run, which --strict forbids:" } else { "Could not run here:" };
        list("Failed:", self.failures.clone());
        list(title, self.not_run());
        println!("\n{}", self.summary_line());
    }

    fn not_run(&self) -> Vec<String> {
        let with_reason = self.skipped.iter().map(|(name, reason)| format!("{name}: {reason}"));
        let ignored = self.ignored.iter().filter(|name| !self.is_explained(name));
        with_reason.chain(ignored.map(|name| format!("{name}: ignored"))).collect()
    }

    fn summary_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed(), self.failed(), self.skipped())
    }

    fn passed(&self) -> usize {
        self.passed.saturating_sub(self.returned_early)
    }

    fn skipped(&self) -> usize {
        self.not_run().len()
    }

    fn summary(&mut self, summary: &str) {
        self.passed += count(summary, "passed");
        self.unnamed_failures += count(summary, "failed").saturating_sub(self.named);
        self.named = 0;
    }

    fn outcome(&mut self, name: &str, outcome: &str) {
        if outcome.starts_with("FAILED") {
            self.failures.push(name.to_owned());
            self.named += 1;
        } else if outcome.starts_with("ignored") {
            // A harness that knows of skipping ignores the test, and has not counted it as passed.
            if self.is_explained(name) {
                self.returned_early = self.returned_early.saturating_sub(1);
            }
            self.ignored.insert(name.to_owned());
        }
    }

    fn skip_by_itself(&mut self, name: &str, reason: &str) {
        let is_ignored = self.ignored.iter().any(|ignored| same_test(ignored, name));
        if self.skipped.insert(name.to_owned(), reason.to_owned()).is_none() && !is_ignored {
            self.returned_early += 1;
        }
    }

    fn is_explained(&self, name: &str) -> bool {
        self.skipped.keys().any(|skipped| same_test(name, skipped))
    }
}

/// Reads `SKIP <name>: <reason>`, which may stand behind libtest's unfinished `test x ... `.
fn skip_line(line: &str) -> Option<(&str, &str)> {
    let (before, rest) = line.split_once("SKIP ")?;
    let at_start = before.is_empty() || before.ends_with(" ... ");
    rest.split_once(": ").filter(|(name, _)| at_start && !name.contains(' '))
}

/// A test knows its function's name, the harness the path to it.
fn same_test(full: &str, short: &str) -> bool {
    full == short || full.ends_with(&format!("::{short}"))
}

/// Reads `3` of `ok. 3 passed; 0 failed; …`.
fn count(summary: &str, what: &str) -> usize {
    let part = summary.split([';', '.']).find_map(|part| part.trim().strip_suffix(what));
    part.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.line(line));
        tally
    }

    #[test]
    fn several_harnesses_add_up() {
        let seen = tally(&[
            "test a ... ok",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test b::c ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        ]);
        assert_eq!(seen.summary_line(), "15 passed, 1 failed, 0 skipped");
        assert!(!seen.is_success(false));
    }

    #[test]
    fn a_test_that_skipped_itself_has_not_passed() {
        let seen = tally(&["SKIP steers: needs root", "test result: ok. 2 passed; 0 failed; 0 ignored"]);
        assert_eq!(seen.summary_line(), "1 passed, 0 failed, 1 skipped");
        assert!(seen.is_success(false) && !seen.is_success(true));
    }

    #[test]
    fn an_ignored_test_with_a_reason_counts_once() {
        for lines in [
            ["SKIP steers: needs root", "test net::steers ... ignored"],
            ["test net::steers ... ignored", "SKIP steers: needs root"],
        ] {
            let mut seen = tally(&lines);
            seen.line("test result: ok. 2 passed; 0 failed; 1 ignored");
            assert_eq!(seen.summary_line(), "2 passed, 0 failed, 1 skipped");
        }
    }

    #[test]
    fn a_skip_behind_an_unfinished_line_is_seen() {
        let seen =
            tally(&["test net::steers ... SKIP steers: needs root", "test result: ok. 2 passed; 0 failed;"]);
        assert_eq!(seen.summary_line(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_summary_that_names_no_test_still_fails() {
        let seen = tally(&["test result: FAILED. 0 passed; 2 failed; 0 ignored"]);
        assert_eq!(seen.failed(), 2);
    }

    #[test]
    fn nothing_run_is_no_success() {
        assert!(!tally(&[]).is_success(false));
    }
}
