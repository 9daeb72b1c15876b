//! When to fetch whose SVID: on demand ahead of background, at half-life, with backoff. Pure.
//!
//! Time is a duration since some start and randomness is a number; both are arguments, so a day of rotations is tested
//! in microseconds and without sleeping. Two ordered queues hold what waits, so that each step costs O(log n) with ten
//! thousand workloads. It holds no SVID and calls nothing: `store` drives it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::addr::WorkloadUid;

/// Time since the store's start.
pub(super) type Tick = Duration;

/// Whose turn it is. The generation tells a workload from one that was tracked under the same uid before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) workload: WorkloadUid,
    pub(super) generation: u64,
    /// It was started because somebody waits.
    pub(super) urgent: bool,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// An SVID came, and lives for that long from now.
    Fetched(Duration),
    /// None came.
    Failed,
}

/// All tracked workloads and their next attempts.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    entries: HashMap<WorkloadUid, Entry>,
    urgent: BTreeSet<(Tick, WorkloadUid)>,
    background: BTreeSet<(Tick, WorkloadUid)>,
    running: Running,
    generations: u64,
}

/// How many attempts run now, those of workloads that are gone included.
#[derive(Debug, Default)]
struct Running {
    all: usize,
    background: usize,
}

#[derive(Debug)]
struct Entry {
    generation: u64,
    failures: u32,
    /// The end of the last attempt.
    attempted: Option<Tick>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { due: Tick, urgent: bool },
    Running,
}

impl Schedule {
    /// Adds a workload, due at once in the background. One that is tracked already starts anew.
    pub(super) fn track(&mut self, workload: &WorkloadUid, now: Tick) -> u64 {
        self.dequeue(workload);
        self.generations += 1;
        let generation = self.generations;
        let state = State::Waiting { due: now, urgent: false };
        self.entries.insert(workload.clone(), Entry { generation, failures: 0, attempted: None, state });
        self.enqueue(workload);
        generation
    }

    /// Forgets a workload, unless it has been tracked anew since. An attempt that runs goes on and counts for nothing.
    pub(super) fn forget(&mut self, workload: &WorkloadUid, generation: u64) {
        if self.is_current(workload, generation) {
            self.dequeue(workload);
            self.entries.remove(workload);
        }
    }

    /// Forgets all workloads; attempts that run still count as running.
    pub(super) fn forget_all(&mut self) {
        self.entries.clear();
        self.urgent.clear();
        self.background.clear();
    }

    /// Somebody waits for this workload's SVID: it goes ahead of the background, at once or, after a failure, no sooner
    /// than [`DEMAND_SPACING`] after it.
    pub(super) fn demand(&mut self, workload: &WorkloadUid, generation: u64, now: Tick) {
        if !self.is_current(workload, generation) {
            return;
        }
        self.dequeue(workload);
        let entry = self.entries.get_mut(workload).expect("checked to be current");
        if let State::Waiting { due, .. } = entry.state {
            let soonest = entry.attempted.map_or(now, |end| now.max(end + DEMAND_SPACING));
            entry.state = State::Waiting { due: due.min(soonest), urgent: true };
        }
        self.enqueue(workload);
    }

    /// The next attempt to start now, if there is one and room for it. The caller reports its end by
    /// [`finish`](Self::finish), whatever happens.
    pub(super) fn start(&mut self, now: Tick) -> Option<Job> {
        let (workload, urgent) = self.next_due(now)?;
        self.dequeue(&workload);
        let entry = self.entries.get_mut(&workload).expect("what is queued is tracked");
        entry.state = State::Running;
        self.running.all += 1;
        self.running.background += usize::from(!urgent);
        Some(Job { generation: entry.generation, workload, urgent })
    }

    /// Notes the end of an attempt and plans the next. `jitter` is a random number from 0 to 1.
    pub(super) fn finish(&mut self, job: &Job, attempt: Attempt, now: Tick, jitter: f64) {
        self.running.all -= 1;
        self.running.background -= usize::from(!job.urgent);
        if !self.is_current(&job.workload, job.generation) {
            return;
        }
        let entry = self.entries.get_mut(&job.workload).expect("checked to be current");
        entry.attempted = Some(now);
        let wait = match attempt {
            Attempt::Fetched(lifetime) => {
                entry.failures = 0;
                rotation(lifetime, jitter)
            }
            Attempt::Failed => {
                entry.failures = entry.failures.saturating_add(1);
                backoff(entry.failures, jitter)
            }
        };
        entry.state = State::Waiting { due: now + wait, urgent: false };
        self.enqueue(&job.workload);
    }

    /// When [`start`](Self::start) will have something to say, if nothing else happens before.
    pub(super) fn wake(&self) -> Option<Tick> {
        let urgent = self.urgent.first().filter(|_| self.running.all < MAX_RUNNING);
        let background = self.background.first().filter(|_| self.has_background_room());
        urgent.into_iter().chain(background).map(|(due, _)| *due).min()
    }

    /// When a workload's next attempt is due; `None` while one runs.
    pub(super) fn due(&self, workload: &WorkloadUid) -> Option<Tick> {
        match self.entries.get(workload)?.state {
            State::Waiting { due, .. } => Some(due),
            State::Running => None,
        }
    }

    /// The generation is the one that is tracked now.
    pub(super) fn is_current(&self, workload: &WorkloadUid, generation: u64) -> bool {
        self.entries.get(workload).is_some_and(|entry| entry.generation == generation)
    }

    fn next_due(&self, now: Tick) -> Option<(WorkloadUid, bool)> {
        if self.running.all >= MAX_RUNNING {
            return None;
        }
        let first = |queue: &BTreeSet<(Tick, WorkloadUid)>| {
            queue.first().filter(|(due, _)| *due <= now).map(|(_, workload)| workload.clone())
        };
        if let Some(workload) = first(&self.urgent) {
            return Some((workload, true));
        }
        first(&self.background).filter(|_| self.has_background_room()).map(|workload| (workload, false))
    }

    /// One place is kept free, so that a connection which waits is never behind slow background attempts.
    fn has_background_room(&self) -> bool {
        self.running.all < MAX_RUNNING && self.running.background < MAX_RUNNING - 1
    }

    fn enqueue(&mut self, workload: &WorkloadUid) {
        match self.entries.get(workload).map(|entry| entry.state) {
            Some(State::Waiting { due, urgent: true }) => self.urgent.insert((due, workload.clone())),
            Some(State::Waiting { due, urgent: false }) => self.background.insert((due, workload.clone())),
            _ => false,
        };
    }

    fn dequeue(&mut self, workload: &WorkloadUid) {
        match self.entries.get(workload).map(|entry| entry.state) {
            Some(State::Waiting { due, urgent: true }) => self.urgent.remove(&(due, workload.clone())),
            Some(State::Waiting { due, urgent: false }) => self.background.remove(&(due, workload.clone())),
            _ => false,
        };
    }
}

/// Half of the lifetime, give or take a tenth, so that SVIDs fetched together are not rotated together. The half counts
/// from now: an authority that hands out the same SVID again (files) is asked again at half of what is left.
fn rotation(lifetime: Duration, jitter: f64) -> Duration {
    lifetime.mul_f64(0.5 * (0.9 + 0.2 * jitter)).max(MIN_ROTATION)
}

/// Doubles from [`FIRST_BACKOFF`] to [`MAX_BACKOFF`], of which it takes between half and all.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(MAX_BACKOFF).mul_f64(0.5 + 0.5 * jitter)
}

/// Attempts at a time: enough to keep a CA busy, few enough for a thousand nodes that start together.
pub(super) const MAX_RUNNING: usize = 4;

/// An application that retries its connection in a loop must not become a flood of requests to the CA.
const DEMAND_SPACING: Duration = Duration::from_secs(1);

const MIN_ROTATION: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
