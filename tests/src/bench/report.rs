//! What a run has found, in files: tables and charts for people, one JSON array for programs.

use std::fs;

use anyhow::{Context, Result};

use super::machine::Machine;
use super::{Options, Row, chart, table, target};

/// What it found.
#[derive(Debug)]
pub struct Report {
    /// One per measure of a contender on a path.
    pub rows: Vec<Row>,
    /// What did not work.
    pub failures: Vec<String>,
    /// When, where and how.
    circumstances: String,
}

impl Report {
    pub(super) fn of(machine: Machine, options: &Options, rows: Vec<Row>, failures: Vec<String>) -> Self {
        let Options { rounds, window, .. } = options;
        let circumstances = format!(
            "{machine}.\n\nMedians of {rounds} rounds of {} s for each load; ratios are medians of the rounds' own. \
             Engine CPU is of all engines between client and server, user and kernel, from their cgroups' `cpu.stat`; \
             the kernel's work for a packet counts for whoever it interrupts.",
            window.as_secs_f64()
        );
        Self { rows, failures, circumstances }
    }

    /// Tables of medians and ratios, and of what is to be reached, in Markdown.
    #[must_use]
    pub fn overview(&self) -> String {
        format!(
            "{}\n\n{}\n**Targets**\n\n{}",
            self.circumstances,
            table::overview(&self.rows),
            table::markdown(&target::table(&self.rows))
        )
    }

    /// All rows as one JSON array.
    ///
    /// # Panics
    /// Never: rows are texts and numbers.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(&self.rows).expect("texts and numbers are JSON")
    }

    /// Writes `bench.md`, `bench.json` and the charts.
    pub(super) fn write(&self, options: &Options) -> Result<()> {
        let output = &options.output;
        fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
        let charts = chart::all(&self.rows);
        let mut files = vec![("bench.json".to_owned(), self.json() + "\n")];
        let pictures: Vec<String> =
            charts.iter().map(|chart| format!("![{}]({})\n", chart.title, chart.file)).collect();
        files.extend(charts.into_iter().map(|chart| (chart.file, chart.svg)));
        let markdown = format!(
            "# Benchmark\n\n{}\n{}\n**Every figure**\n\n{}",
            self.overview(),
            pictures.join("\n"),
            table::details(&self.rows)
        );
        files.push(("bench.md".to_owned(), markdown));
        for (name, text) in files {
            let path = output.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
