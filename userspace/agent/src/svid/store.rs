//! The store: one task that fetches SVIDs when the schedule says so, and publishes them.
//!
//! Who writes: owners track and forget, connections demand, the task publishes; all under one lock that is never held
//! across an await. The task lives as long as the [`Store`]: with its last clone gone, attempts are aborted and every
//! SVID is dropped. Clock and randomness are given at construction, for tests.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::UnixTime;
use signet_identity::{SpiffeId, X509Svid};
use tokio::sync::{Notify, watch};
use tokio::task::{self, AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::credentials::{Credentials, Published, Tracked};
use super::metrics::{Metrics, States};
use super::schedule::{Attempt, Job, Schedule, Tick};
use super::{Authority, CertificateView, FetchError, Status};
use crate::addr::WorkloadUid;
use crate::telemetry::Registry;

/// Keeps one SVID per tracked workload: fetch on demand ahead of background, rotate at half-life with jitter, retry with
/// capped backoff, drop with the guard. Cheap to clone; the last clone ends it.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    _task: Arc<StoreTask>,
}

/// What the task, owners and connections share.
pub(super) struct Shared {
    started: Instant,
    environment: Environment,
    inner: Mutex<Inner>,
    /// Something was tracked or demanded; awaited by the task alone.
    wake: Notify,
}

/// What a test replaces.
pub(super) struct Environment {
    /// The time that certificates are judged by.
    pub(super) now: Box<dyn Fn() -> UnixTime + Send + Sync>,
    /// A number from 0 to 1, evenly distributed.
    pub(super) random: Box<dyn Fn() -> f64 + Send + Sync>,
}

#[derive(Default)]
struct Inner {
    schedule: Schedule,
    records: HashMap<WorkloadUid, Record>,
}

struct Record {
    id: SpiffeId,
    published: watch::Sender<Published>,
}

/// What an attempt changed.
enum Change {
    Fetched {
        svid: Arc<X509Svid>,
        /// It replaced one that still served.
        rotated: bool,
    },
    Failed {
        error: FetchError,
        /// The attempt before it failed in the same way.
        again: bool,
    },
    /// Nobody tracks the workload any more.
    Void,
}

/// Ends the task and forgets everything when the last [`Store`] goes.
struct StoreTask {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Store {
    /// A store over an authority; registers `signet_svid_*` and `signet_ca_*` metrics. Call it from within the runtime.
    pub fn new<A: Authority>(authority: A, registry: &mut Registry) -> Self {
        Self::with(authority, registry, Environment::default())
    }

    pub(super) fn with<A: Authority>(
        authority: A,
        registry: &mut Registry,
        environment: Environment,
    ) -> Self {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            environment,
            inner: Mutex::default(),
            wake: Notify::new(),
        });
        let metrics = Metrics::register(registry);
        let viewed = shared.clone();
        registry.register_collector(Box::new(States(move || viewed.certificates())));
        let task = task::spawn(run(Arc::new(authority), shared.clone(), metrics)).abort_handle();
        Self { shared: shared.clone(), _task: Arc::new(StoreTask { shared, task }) }
    }

    /// Starts keeping an SVID for a workload. Tracked a second time it starts anew, and the first claim is void.
    #[must_use]
    pub fn track(&self, workload: WorkloadUid, id: SpiffeId) -> Tracked {
        let (published, receiver) = watch::channel(Published::default());
        let mut inner = self.shared.inner.lock();
        let generation = inner.schedule.track(&workload, self.shared.tick());
        inner.records.insert(workload.clone(), Record { id, published });
        drop(inner);
        self.shared.wake.notify_one();
        Tracked::new(Credentials::new(workload, generation, receiver, self.shared.clone()))
    }

    /// All that is tracked, for views; by workload.
    #[must_use]
    pub fn certificates(&self) -> Vec<CertificateView> {
        self.shared.certificates()
    }
}

impl Shared {
    /// The time that certificates are judged by.
    pub(super) fn now(&self) -> UnixTime {
        (self.environment.now)()
    }

    /// Somebody waits for this workload's SVID.
    pub(super) fn demand(&self, workload: &WorkloadUid, generation: u64) {
        self.inner.lock().schedule.demand(workload, generation, self.tick());
        self.wake.notify_one();
    }

    /// Ends a claim: the SVID is dropped here and for all who look at it.
    pub(super) fn forget(&self, workload: &WorkloadUid, generation: u64) {
        let mut inner = self.inner.lock();
        if inner.schedule.is_current(workload, generation) {
            inner.schedule.forget(workload, generation);
            inner.records.remove(workload);
        }
    }

    fn certificates(&self) -> Vec<CertificateView> {
        let (now, tick) = (self.now().as_secs(), self.tick());
        let inner = self.inner.lock();
        let mut views: Vec<_> = inner
            .records
            .iter()
            .map(|(workload, record)| {
                let wait = inner.schedule.due(workload).map(|due| due.saturating_sub(tick).as_secs());
                record.view(workload, now, wait.map(|wait| now + wait))
            })
            .collect();
        views.sort_by(|a, b| a.workload.cmp(&b.workload));
        views
    }

    fn tick(&self) -> Tick {
        self.started.elapsed()
    }

    /// Takes every attempt that is due and has room, and tells when to look again.
    fn start(&self) -> (Vec<(Job, SpiffeId)>, Option<Instant>) {
        let now = self.tick();
        let mut inner = self.inner.lock();
        let mut jobs = Vec::new();
        while let Some(job) = inner.schedule.start(now) {
            let id = inner.records[&job.workload].id.clone();
            jobs.push((job, id));
        }
        (jobs, inner.schedule.wake().map(|due| self.started + due))
    }

    /// Publishes an outcome and plans the next attempt.
    fn finish(&self, job: &Job, outcome: Result<X509Svid, FetchError>) -> Change {
        let now = self.now();
        let attempt = match &outcome {
            Ok(svid) => Attempt::Fetched(Duration::from_secs(svid.not_after().saturating_sub(now.as_secs()))),
            Err(_) => Attempt::Failed,
        };
        let random = (self.environment.random)();
        let mut inner = self.inner.lock();
        inner.schedule.finish(job, attempt, self.tick(), random);
        match inner.records.get(&job.workload) {
            Some(record) if inner.schedule.is_current(&job.workload, job.generation) => {
                record.publish(outcome, now)
            }
            _ => Change::Void,
        }
    }
}

impl Record {
    fn publish(&self, outcome: Result<X509Svid, FetchError>, now: UnixTime) -> Change {
        let old = self.published.borrow().clone();
        match outcome {
            Ok(svid) => {
                let svid = Arc::new(svid);
                self.published.send_replace(Published { svid: Some(svid.clone()), error: None });
                let rotated = old.svid.is_some_and(|old| !old.is_expired(now));
                Change::Fetched { svid, rotated }
            }
            Err(error) => {
                let again = old.error.is_some_and(|old| old.label() == error.label());
                self.published.send_modify(|published| published.error = Some(error.clone()));
                Change::Failed { error, again }
            }
        }
    }

    fn view(&self, workload: &WorkloadUid, now: u64, next_attempt: Option<u64>) -> CertificateView {
        let Published { svid, error } = &*self.published.borrow();
        let status = match (svid, error) {
            (Some(svid), _) if svid.not_after() < now => Status::Expired,
            (_, Some(_)) => Status::Failing,
            (Some(_), None) => Status::Valid,
            (None, None) => Status::Pending,
        };
        CertificateView {
            workload: workload.clone(),
            id: self.id.clone(),
            status,
            serial: svid.as_ref().map(|svid| svid.serial().to_owned()),
            not_before: svid.as_ref().map(|svid| svid.not_before()),
            not_after: svid.as_ref().map(|svid| svid.not_after()),
            next_attempt,
            error: error.as_ref().map(ToString::to_string),
            reason: error.as_ref().map(FetchError::label),
        }
    }
}

impl Drop for Record {
    /// A watch channel keeps its last value while anybody looks at it, and the key must not live that long.
    fn drop(&mut self) {
        self.published.send_replace(Published { svid: None, error: Some(FetchError::Gone) });
    }
}

impl Drop for StoreTask {
    fn drop(&mut self) {
        self.task.abort();
        // The task may be in the middle of a step, and still has attempts to account for.
        let mut inner = self.shared.inner.lock();
        inner.schedule.forget_all();
        inner.records.clear();
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self { now: Box::new(UnixTime::now), random: Box::new(rand::random) }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl fmt::Debug for StoreTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTask").finish_non_exhaustive()
    }
}

/// The store's task: ends by abort alone.
async fn run<A: Authority>(authority: Arc<A>, shared: Arc<Shared>, metrics: Metrics) {
    let mut attempts = JoinSet::new();
    let mut jobs = HashMap::new();
    loop {
        let (due, wake) = shared.start();
        for (job, id) in due {
            let attempt = attempts.spawn(fetch(authority.clone(), job.workload.clone(), id, metrics.clone()));
            jobs.insert(attempt.id(), job);
        }
        tokio::select! {
            () = shared.wake.notified() => {}
            () = until(wake) => {}
            Some(ended) = attempts.join_next_with_id() => {
                // An attempt that panicked still has its place and its workload.
                let (id, outcome) = match ended {
                    Ok((id, outcome)) => (id, outcome),
                    Err(e) => (e.id(), Err(FetchError::BrokenOff)),
                };
                let job = jobs.remove(&id).expect("every attempt was entered when it started");
                note(&job.workload, shared.finish(&job, outcome), &metrics);
            }
        }
    }
}

async fn fetch<A: Authority>(
    authority: Arc<A>,
    workload: WorkloadUid,
    id: SpiffeId,
    metrics: Metrics,
) -> Result<X509Svid, FetchError> {
    let started = Instant::now();
    let outcome = authority.fetch(&workload, &id).await;
    metrics.attempted(outcome.as_ref().err(), started.elapsed());
    outcome
}

/// One log line for each SVID, and for each fault when it begins: a CA that is down for an hour is one line a workload.
fn note(workload: &WorkloadUid, change: Change, metrics: &Metrics) {
    match change {
        Change::Fetched { svid, rotated } => {
            info!(%workload, id = %svid.id(), serial = svid.serial(), not_after = svid.not_after(), rotated, "svid");
            if rotated {
                metrics.rotated();
            }
        }
        Change::Failed { error, again: false } => warn!(%workload, %error, "no svid"),
        Change::Failed { error, again: true } => debug!(%workload, %error, "no svid"),
        Change::Void => {}
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
