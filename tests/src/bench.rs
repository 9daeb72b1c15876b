//! The benchmark: every contender on one stage, in alternation, and what each costs.
//!
//! `cargo xtask bench` runs it. Within a round each load goes to every contender before the next load's turn, so that a
//! machine that is busy with other things is busy for all of them; figures are compared within a round. It never judges
//! a figure: it fails only where something did not work. All parts share this machine's processors, which is what makes
//! an engine's cost visible in its users' figures.

mod contender;
mod measure;
mod proc;
mod stage;
mod statistics;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::need::Need;
use contender::Contender;
use measure::{Figure, MEASURES};
use stage::Stage;
use statistics::Sample;

pub use statistics::Row;

/// What the benchmark is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often everything is measured.
    pub rounds: usize,
    /// How long each load counts, after its warm-up.
    pub window: Duration,
    /// Where `bench.json` and `bench.md` go.
    pub output: PathBuf,
}

/// What it found.
#[derive(Debug)]
pub struct Report {
    /// One per measure of a contender on a path.
    pub rows: Vec<Row>,
    /// What did not work.
    pub failures: Vec<String>,
}

/// Runs all of it; progress goes to standard error.
///
/// # Errors
/// This machine lacks something, the stage could not be set, or the files could not be written.
pub fn run(options: &Options) -> Result<Report> {
    for need in NEEDS {
        if let Some(reason) = need.unmet() {
            bail!("the benchmark cannot run here: {reason}");
        }
    }
    let mut bench = Bench { started: Instant::now(), samples: Vec::new(), failures: Vec::new() };
    bench.progress("two nodes with their engines, a CA, six pods, two Envoys");
    let stage = Stage::set()?;
    let contenders = stage.contenders()?;
    bench.memory(&contenders);
    // Told last: not every contender has it.
    let memory = std::mem::take(&mut bench.samples);
    for round in 0..options.rounds {
        bench.round(round, options, &contenders);
    }
    bench.samples.extend(memory);
    let report = Report { rows: statistics::rows(&bench.samples), failures: bench.failures };
    report.write(options)?;
    Ok(report)
}

impl Report {
    /// Tables of medians and ratios, in Markdown.
    #[must_use]
    pub fn overview(&self) -> String {
        table::overview(&self.rows)
    }

    /// All rows as one JSON array.
    ///
    /// # Panics
    /// Never: rows are texts and numbers.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(&self.rows).expect("texts and numbers are JSON")
    }

    fn write(&self, options: &Options) -> Result<()> {
        let Options { rounds, window, output } = options;
        let markdown = format!(
            "# Benchmark\n\nMedians of {rounds} rounds of {} s each.\n\n{}\n**Every figure**\n\n{}",
            window.as_secs_f64(),
            self.overview(),
            table::details(&self.rows)
        );
        fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
        for (name, text) in [("bench.md", markdown), ("bench.json", self.json() + "\n")] {
            let path = output.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

struct Bench {
    started: Instant,
    samples: Vec<Sample>,
    failures: Vec<String>,
}

impl Bench {
    /// Before any load, since an engine is fresh only once; and so across the nodes alone, where every engine is.
    fn memory(&mut self, contenders: &[Contender<'_>]) {
        let across =
            contenders.iter().filter(|contender| contender.has_engines() && contender.path == "across");
        for contender in across {
            let shown = self.keep("memory", 0, contender, measure::memory(contender));
            self.progress(&format!("memory: {shown}"));
        }
    }

    fn round(&mut self, round: usize, options: &Options, contenders: &[Contender<'_>]) {
        for measure in MEASURES {
            let mut shown = Vec::new();
            // Each round begins with another one, so that none always follows the same.
            for at in 0..contenders.len() {
                let contender = &contenders[(at + round) % contenders.len()];
                let taken = measure.take(contender, options.window);
                shown.push(self.keep(&measure.name(), round, contender, taken));
            }
            self.progress(&format!(
                "round {}/{} {}: {}",
                round + 1,
                options.rounds,
                measure.name(),
                shown.join(", ")
            ));
        }
    }

    /// Keeps what was measured, or why it was not, and returns the words to show.
    fn keep(
        &mut self,
        what: &str,
        round: usize,
        contender: &Contender<'_>,
        taken: Result<Vec<Figure>>,
    ) -> String {
        let Contender { name, path, .. } = *contender;
        match taken {
            Ok(figures) => {
                let first = figures.first().map(|first| format!("{:.1} {}", first.value, first.unit));
                self.samples.extend(figures.into_iter().map(|Figure { measure, unit, value }| Sample {
                    contender: name,
                    path,
                    measure,
                    unit,
                    round,
                    value,
                }));
                format!("{name} ({path}) {}", first.unwrap_or_default())
            }
            Err(error) => {
                self.failures.push(format!("{what} of {name} ({path}), round {}: {error:#}", round + 1));
                format!("{name} ({path}) FAILED")
            }
        }
    }

    fn progress(&self, what: &str) {
        eprintln!("[{:5.1}s] {what}", self.started.elapsed().as_secs_f32());
    }
}

const NEEDS: [Need; 3] = [Need::Nodes, Need::Engine, Need::Tool("envoy")];
