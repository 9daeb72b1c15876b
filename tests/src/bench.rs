//! The benchmark: every contender on one stage, in alternation, and what each costs.
//!
//! `cargo xtask bench` runs it. Within a round each load goes to every contender before the next load's turn, so that a
//! machine that is busy with other things is busy for all of them; figures are compared within a round. It never judges
//! a figure: it fails only where something did not work. All parts share this machine's processors, which is what makes
//! an engine's cost visible in its users' figures.

mod chart;
mod contender;
mod machine;
mod measure;
mod memory;
mod precedence;
mod progress;
mod report;
mod rivals;
mod scale;
mod setting;
mod stage;
mod statistics;
mod table;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::load::{self, Window};
use crate::need::Need;
use contender::Contender;
use machine::Machine;
use measure::{Figure, MEASURES, Measure};
use precedence::Precedence;
use progress::Progress;
use stage::Stage;
use statistics::Sample;

pub use report::Report;
pub use statistics::Row;

/// What the benchmark is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often everything is measured.
    pub rounds: usize,
    /// How long each load counts, after its warm-up.
    pub window: Duration,
    /// So many idle connections, in ascending order; fewer where this machine has no files for them.
    pub idle: Vec<usize>,
    /// Only measures whose names contain one of these; all where there are none.
    pub only: Vec<String>,
    /// Only these contenders; all where there are none.
    pub contenders: Vec<String>,
    /// Where tables, charts and `bench.json` go.
    pub output: PathBuf,
}

/// Runs all of it; progress goes to standard error.
///
/// # Errors
/// This machine lacks something, the stage could not be set, or the files could not be written.
pub fn run(options: &Options) -> Result<Report> {
    let unmet: Vec<String> = NEEDS.iter().filter_map(|need| need.unmet()).collect();
    if !unmet.is_empty() {
        bail!("the benchmark cannot run here: {}", unmet.join("; "));
    }
    let options = &Options { idle: within(load::raise_file_limit()?, &options.idle), ..options.clone() };
    let _precedence = Precedence::take();
    let machine = Machine::here();
    let progress = Progress::start();
    progress.say(&format!("{machine}"));
    progress.say("nodes with their engines, a CA, pods, two pairs of Envoys, one of HAProxys");
    let stage = Stage::set()?;
    let mut contenders = stage.contenders()?;
    contenders.retain(|contender| options.has(contender.name));
    let mut bench = Bench { options, stage: &stage, progress, samples: Vec::new(), failures: Vec::new() };
    bench.run(&contenders);
    let report = Report::of(machine, options, statistics::rows(&bench.samples), bench.failures);
    report.write(options)?;
    Ok(report)
}

impl Options {
    fn has(&self, contender: &str) -> bool {
        self.contenders.is_empty() || self.contenders.iter().any(|name| name == contender)
    }
}

struct Bench<'a> {
    options: &'a Options,
    stage: &'a Stage,
    progress: Progress,
    samples: Vec<Sample>,
    failures: Vec<String>,
}

impl Bench<'_> {
    fn run(&mut self, contenders: &[Contender<'_>]) {
        let loads = MEASURES.into_iter().filter(|load| self.wants(&load.name())).collect::<Vec<_>>();
        let turns = |load: &Measure| contenders.iter().filter(|contender| load.is_for(contender)).count();
        self.progress.expect(self.options.rounds * loads.iter().map(turns).sum::<usize>());
        let memory = if self.wants("memory") { self.memory(contenders) } else { Vec::new() };
        self.rehearse(contenders);
        self.progress.begin();
        for round in 0..self.options.rounds {
            loads.iter().for_each(|load| self.load(*load, round, contenders));
            self.others(round);
        }
        // Told last: not every contender has it.
        self.samples.extend(memory);
        if self.wants("memory") {
            self.memory_after_loads(contenders);
        }
    }

    fn wants(&self, measure: &str) -> bool {
        let only = &self.options.only;
        only.is_empty() || only.iter().any(|part| measure.contains(part.as_str()))
    }

    /// Before any load, since an engine is fresh only once; and so across the nodes alone, where every engine is.
    fn memory(&mut self, contenders: &[Contender<'_>]) -> Vec<Sample> {
        let with_memory = || contenders.iter().filter(|contender| contender.has_memory());
        memory::wait_until_settled(with_memory());
        for contender in with_memory() {
            let taken = memory::measure(contender, &self.options.idle);
            let shown = self.keep("memory", 0, contender.name, contender.path, taken);
            self.progress.say(&format!("memory: {shown}"));
        }
        std::mem::take(&mut self.samples)
    }

    /// What only a first connection costs is in no round: between workloads of one node it goes through the engine.
    fn rehearse(&mut self, contenders: &[Contender<'_>]) {
        for contender in contenders {
            let taken = Measure::Request { connections: 1 }.take(contender, REHEARSAL);
            if let Err(error) = taken {
                let Contender { name, path, .. } = contender;
                self.failures.push(format!("the rehearsal of {name} ({path}): {error:#}"));
            }
        }
    }

    fn memory_after_loads(&mut self, contenders: &[Contender<'_>]) {
        for contender in contenders.iter().filter(|contender| contender.has_memory()) {
            let taken = memory::after_loads(contender);
            self.keep("memory after the loads", 0, contender.name, contender.path, taken);
        }
    }

    fn load(&mut self, load: Measure, round: usize, contenders: &[Contender<'_>]) {
        let mut shown = Vec::new();
        for at in order(contenders.len(), round) {
            let contender = &contenders[at];
            if load.is_for(contender) {
                let taken = load.take(contender, self.options.window);
                shown.push(self.keep(&load.name(), round, contender.name, contender.path, taken));
            }
        }
        self.progress.done(shown.len());
        let of = self.options.rounds;
        self.progress.say(&format!("round {}/{of} {}: {}", round + 1, load.name(), shown.join(", ")));
    }

    /// What is measured beside the ways from a client to a server.
    fn others(&mut self, round: usize) {
        let mut shown = Vec::new();
        if self.wants("svids") {
            shown.push(self.keep("SVIDs", round, "signet-ca", "ca", self.svids()));
        }
        if ["inventory", "lookup", "policy"].iter().any(|measure| self.wants(measure)) {
            shown.push(self.keep("scale", round, "signetd", "in-process", scale::measure()));
        }
        self.progress.say(&format!("round {}/{}: {}", round + 1, self.options.rounds, shown.join(", ")));
    }

    fn svids(&self) -> Result<Vec<Figure>> {
        let (ca, asked) = self.stage.ca()?;
        let window = Window::new(self.options.window, vec![ca.cgroup()?]);
        let issued = load::issue(ca, &asked, SVIDS_AT_A_TIME, &window)?;
        Ok(measure::of_exchanges(&format!("svids_{SVIDS_AT_A_TIME}"), measure::OTHERS, &issued))
    }

    /// Keeps what was measured, or why it was not, and returns the words to show.
    fn keep(
        &mut self,
        what: &str,
        round: usize,
        contender: &'static str,
        path: &'static str,
        taken: Result<Vec<Figure>>,
    ) -> String {
        match taken {
            Ok(figures) => {
                let first = figures.first().map(|first| format!("{:.1} {}", first.value, first.unit));
                self.samples.extend(figures.into_iter().map(|Figure { measure, unit, value }| Sample {
                    contender,
                    path,
                    measure,
                    unit,
                    round,
                    value,
                }));
                format!("{contender} ({path}) {}", first.unwrap_or_default())
            }
            Err(error) => {
                self.failures.push(format!("{what} of {contender} ({path}), round {}: {error:#}", round + 1));
                format!("{contender} ({path}) FAILED")
            }
        }
    }
}

/// As many idle connections as proxies, which have two files for each, may have files for.
fn within(files: u64, idle: &[usize]) -> Vec<usize> {
    let most = usize::try_from(files.saturating_sub(FILES_OF_ITS_OWN) / 2).unwrap_or(usize::MAX);
    let mut idle: Vec<usize> = idle.iter().map(|count| *count.min(&most)).collect();
    idle.dedup();
    idle
}

/// Whose turn it is in a round, one after the other: each round begins with another one, and every other round goes
/// backwards, so that none always follows the same.
fn order(contenders: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..contenders).map(move |at| {
        let at = (at + round) % contenders;
        if round.is_multiple_of(2) { at } else { contenders - 1 - at }
    })
}

const NEEDS: [Need; 4] = [Need::Nodes, Need::Engine, Need::Tool("envoy"), Need::Program("haproxy")];
/// What a proxy has open besides, generously.
const FILES_OF_ITS_OWN: u64 = 1_000;
/// A node that starts asks for some at a time.
const SVIDS_AT_A_TIME: usize = 16;
/// A few requests on one connection.
const REHEARSAL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_few_files_has_fewer_idle_connections() {
        assert_eq!(within(65_536, &[1_000, 10_000]), [1_000, 10_000]);
        assert_eq!(within(20_000, &[1_000, 10_000]), [1_000, 9_500]);
        assert_eq!(within(2_000, &[1_000, 10_000]), [500]);
    }

    #[test]
    fn every_round_has_everybody_once_and_begins_with_another() {
        let rounds: Vec<Vec<usize>> = (0..5).map(|round| order(5, round).collect()).collect();
        for round in &rounds {
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert_eq!((&rounds[0], &rounds[1]), (&vec![0, 1, 2, 3, 4], &vec![3, 2, 1, 0, 4]));
        assert!(rounds.windows(2).all(|pair| pair[0][0] != pair[1][0]));
    }
}
