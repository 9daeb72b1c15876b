//! Which ConfigMap to write next, and when: pure, with the time as an argument.
//!
//! Nothing is done before both kinds have been listed once. What fails is tried again after a pause that grows, and so is
//! what somebody else changes as often as it is put back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use signet_apiserver::Seen;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// Namespaces.
    Namespaces,
    /// ConfigMaps of the one name.
    Maps,
}

/// What a namespace's ConfigMap holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Held {
    /// There is none.
    #[default]
    Nothing,
    /// Our roots.
    Roots,
    /// Something else.
    Others,
    /// Something else, and it is Istio's.
    Istios,
}

/// What to do in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the ConfigMap.
    Create,
    /// Give it our roots again.
    PutBack,
}

/// What is known, and what is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    /// Lists that run now, with what they have had so far.
    lists: BTreeMap<Subject, Seen>,
    listed: BTreeSet<Subject>,
    /// When which namespace's turn is.
    queue: BTreeSet<(Instant, Arc<str>)>,
}

#[derive(Debug, Default)]
struct Namespace {
    /// It is there and stays.
    lives: bool,
    held: Held,
    /// Its place in the queue.
    due: Option<Instant>,
    /// What went wrong in a row: faults, and writes that somebody undid.
    troubles: u32,
    written: Option<Instant>,
}

impl Plan {
    /// A list begins.
    pub(super) fn listing(&mut self, subject: Subject) {
        self.lists.insert(subject, Seen::default());
    }

    /// A list is complete: what it did not have is gone.
    pub(super) fn listed(&mut self, subject: Subject, now: Instant) {
        if let Some(seen) = self.lists.remove(&subject) {
            let names: Vec<Arc<str>> =
                self.namespaces.keys().filter(|name| !seen.has(&&***name)).cloned().collect();
            for name in names {
                match subject {
                    Subject::Namespaces => self.namespace(&name, false, now),
                    Subject::Maps => self.map(&name, Held::Nothing, now),
                }
            }
        }
        if self.listed.insert(subject) {
            let names: Vec<Arc<str>> = self.namespaces.keys().cloned().collect();
            names.iter().for_each(|name| self.look_at(name, now));
        }
    }

    /// A namespace is there, or is on its way out.
    pub(super) fn namespace(&mut self, name: &str, lives: bool, now: Instant) {
        self.note(Subject::Namespaces, name);
        let name: Arc<str> = name.into();
        self.namespaces.entry(name.clone()).or_default().lives = lives;
        self.look_at(&name, now);
    }

    /// A ConfigMap holds this.
    pub(super) fn map(&mut self, namespace: &str, held: Held, now: Instant) {
        if held != Held::Nothing {
            self.note(Subject::Maps, namespace);
        }
        let name: Arc<str> = namespace.into();
        let of = self.namespaces.entry(name.clone()).or_default();
        let undone = of.held == Held::Roots && held != Held::Roots;
        let soon = of.written.is_some_and(|written| now.duration_since(written) < SOON);
        (of.held, of.troubles) = (held, if undone && soon { of.troubles + 1 } else { of.troubles });
        self.look_at(&name, now);
    }

    /// When the next step is to be taken.
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// The next step, where it is time for one.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Arc<str>, Step)> {
        let (due, _) = self.queue.first()?;
        if *due > now {
            return None;
        }
        let (_, name) = self.queue.pop_first()?;
        let of = self.namespaces.get_mut(&name)?;
        of.due = None;
        Some((name, of.step()?))
    }

    /// It was taken, by us or by another replica; the watch will tell.
    pub(super) fn done(&mut self, namespace: &str, step: Step, now: Instant) {
        let Some(of) = self.namespaces.get_mut(namespace) else { return };
        of.written = Some(now);
        // Unless the watch has told already.
        if of.step() == Some(step) {
            of.held = Held::Roots;
        }
    }

    /// It was not.
    pub(super) fn failed(&mut self, namespace: &str, now: Instant) {
        let Some(of) = self.namespaces.get_mut(namespace) else { return };
        of.troubles += 1;
        self.look_at(&namespace.into(), now);
    }

    /// Namespaces without our roots.
    pub(super) fn unpublished(&self) -> usize {
        self.namespaces.values().filter(|of| of.lives && of.held != Held::Roots).count()
    }

    fn note(&mut self, subject: Subject, name: &str) {
        if let Some(seen) = self.lists.get_mut(&subject) {
            seen.note(&name);
        }
    }

    /// Puts a namespace into the queue or takes it out, and forgets what is gone.
    fn look_at(&mut self, name: &Arc<str>, now: Instant) {
        let ready = self.listed.len() == 2;
        let Some(of) = self.namespaces.get_mut(name) else { return };
        let wanted = (ready && of.step().is_some()).then(|| now + pause(of.troubles));
        match (of.due, wanted) {
            (None, Some(due)) => {
                of.due = Some(due);
                self.queue.insert((due, name.clone()));
            }
            (Some(due), None) => {
                of.due = None;
                self.queue.remove(&(due, name.clone()));
            }
            _ => {}
        }
        if of.held == Held::Roots && of.written.is_none_or(|written| now.duration_since(written) >= SOON) {
            of.troubles = 0;
        }
        if !of.lives && of.held == Held::Nothing {
            self.namespaces.remove(name);
        }
    }
}

impl Namespace {
    fn step(&self) -> Option<Step> {
        match self.held {
            _ if !self.lives => None,
            Held::Nothing => Some(Step::Create),
            Held::Others => Some(Step::PutBack),
            Held::Roots | Held::Istios => None,
        }
    }
}

/// At once, then after 1 s, doubling to 10 minutes.
fn pause(troubles: u32) -> Duration {
    match troubles.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => Duration::from_secs(1 << doublings.min(10)).min(LONGEST),
    }
}

const LONGEST: Duration = Duration::from_secs(600);
/// What is undone so soon is undone by somebody who watches as we do.
const SOON: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
