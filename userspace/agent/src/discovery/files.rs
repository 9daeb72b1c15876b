//! The `files` source: a directory of manifests, watched.
//!
//! `Synced` waits for the first pass in which no policy can be missing: with a broken file at start, nobody knows what it
//! would have forbidden. Such a file is told by its text, so that a broken Pod holds nobody up. Once synced, a broken
//! file keeps its last good content.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use signet_manifests::{Directory, Document, Fault, ObjectKey, OpenError, Snapshot, WatchError};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::discovery::known::{Change, Known};
use crate::discovery::{DiscoveryOptions, faults};
use crate::drain::Watch;
use crate::state::Event;
use crate::telemetry::Registry;

/// The `files` source: a directory of manifests, watched.
#[derive(Debug)]
pub struct Files {
    watch: signet_manifests::Watch,
    differences: Differences,
    known: Known,
    synced: bool,
    /// The faults that the log has already told.
    logged: BTreeSet<String>,
    faults: Gauge,
}

impl Files {
    /// Opens and watches the directory; call it within the runtime. Nothing is read yet.
    ///
    /// # Errors
    /// The directory cannot be read or watched: a mistake in the configuration, to be told at start.
    pub fn open(
        directory: PathBuf,
        options: DiscoveryOptions,
        registry: &mut Registry,
    ) -> Result<Self, OpenError> {
        let watch = Directory::open(directory)?.watch()?;
        let faults = faults::register(registry);
        Ok(Self {
            watch,
            differences: Differences::default(),
            known: Known::new(options),
            synced: false,
            logged: BTreeSet::new(),
            faults,
        })
    }

    /// Sends everything, then `Synced`, then changes as they happen, until the drain begins or nobody listens. A broken
    /// file is an error in the log and a metric, and leaves what was known of it in force.
    ///
    /// # Errors
    /// The watch broke; what was sent stays in force, but nothing new will come.
    pub async fn run(mut self, events: mpsc::Sender<Event>, drain: Watch) -> Result<(), WatchError> {
        let forward = async {
            loop {
                let snapshot = self.watch.next().await?;
                for event in self.pass(&snapshot) {
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
            }
        };
        tokio::select! {
            result = forward => result,
            () = drain.stopped() => Ok(()),
        }
    }

    fn pass(&mut self, snapshot: &Snapshot) -> Vec<Event> {
        let mut events = self.known.update(self.differences.since_last(snapshot));
        let files = snapshot.faults.iter().map(|fault| fault.error.to_string());
        self.log_faults(files.chain(self.known.faults().map(ToString::to_string)).collect());
        events.iter().for_each(log_warnings);
        if !self.synced && is_complete(snapshot) {
            self.synced = true;
            events.push(Event::Synced);
        }
        events
    }

    /// Each fault is told once when it comes and once when it goes.
    fn log_faults(&mut self, faults: BTreeSet<String>) {
        for fault in faults.difference(&self.logged) {
            error!(fault, "manifest not taken");
        }
        for fault in self.logged.difference(&faults) {
            info!(fault, "manifest fault ended");
        }
        self.faults.set(i64::try_from(faults.len()).unwrap_or(i64::MAX));
        self.logged = faults;
    }
}

/// From a directory's snapshots to what has changed between them.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    last: HashMap<ObjectKey, Arc<Document>>,
}

impl Differences {
    /// A document that was not read anew is the same `Arc`.
    pub(crate) fn since_last(&mut self, snapshot: &Snapshot) -> Vec<Change> {
        let mut before = std::mem::take(&mut self.last);
        let mut changes = Vec::new();
        for document in &snapshot.documents {
            let known = before.remove(document.key());
            if known.is_none_or(|known| !Arc::ptr_eq(&known, document)) {
                changes.push(Change::Put(document.clone()));
            }
            self.last.insert(document.key().clone(), document.clone());
        }
        changes.extend(before.into_keys().map(Change::Gone));
        changes
    }
}

/// Whether every policy of the directory is known, or stood in for.
fn is_complete(snapshot: &Snapshot) -> bool {
    let missing = |fault: &&Fault| !fault.last_good && POLICY_KINDS.iter().any(|kind| fault.may_hold(kind));
    match snapshot.faults.iter().find(missing) {
        None => true,
        Some(fault) => {
            error!(fault = %fault.error, "waiting for a file that may hold a policy: mend or remove it");
            false
        }
    }
}

/// Says what of a policy is not kept.
pub(crate) fn log_warnings(event: &Event) {
    let (namespace, name, warnings) = match event {
        Event::Authorization(policy) => (&policy.namespace, &policy.name, &policy.warnings),
        Event::PeerAuthentication(policy) => (&policy.namespace, &policy.name, &policy.warnings),
        _ => return,
    };
    for warning in warnings {
        warn!(policy = %format_args!("{namespace}/{name}"), warning, "policy not fully applied");
    }
}

const POLICY_KINDS: [&str; 2] = ["AuthorizationPolicy", "PeerAuthentication"];

#[cfg(test)]
mod tests;
