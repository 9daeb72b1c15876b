//! The store over a scripted CA, in paused time: hours pass in milliseconds, and certificates are judged by that time.

use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use prometheus_client::encoding::text::encode;
use signet_identity::testing::{TestCa, from_now, unix_from_now};
use tokio::time::{advance, sleep, timeout};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// What the CA does for a workload.
#[derive(Clone)]
enum Does {
    /// Signs, for that long.
    Sign(Duration),
    Fail(FetchError),
    Hang,
    Panic,
}

type Script = Arc<Mutex<Box<dyn FnMut(&WorkloadUid) -> Does + Send>>>;

struct ScriptedCa {
    ca: TestCa,
    started: Instant,
    script: Script,
    attempts: Arc<Mutex<Vec<WorkloadUid>>>,
}

impl Authority for ScriptedCa {
    async fn fetch(&self, workload: &WorkloadUid, id: &SpiffeId) -> Result<X509Svid, FetchError> {
        self.attempts.lock().push(workload.clone());
        let does = (self.script.lock())(workload);
        match does {
            Does::Sign(lifetime) => Ok(self.sign(id, lifetime)),
            Does::Fail(error) => Err(error),
            Does::Hang => std::future::pending().await,
            Does::Panic => panic!("scripted"),
        }
    }
}

impl ScriptedCa {
    fn sign(&self, id: &SpiffeId, lifetime: Duration) -> X509Svid {
        let passed = i64::try_from(self.started.elapsed().as_secs()).unwrap();
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap();
        let issued = self.ca.issue(id.as_str(), |leaf| leaf.not_after = from_now(passed + lifetime));
        X509Svid::new(id, issued.chain, issued.key, self.ca.bundles(), unix_from_now(passed)).unwrap()
    }
}

/// A store, its script and its metrics.
struct Bench {
    store: Store,
    script: Script,
    attempts: Arc<Mutex<Vec<WorkloadUid>>>,
    registry: Registry,
}

impl Bench {
    fn new(script: impl FnMut(&WorkloadUid) -> Does + Send + 'static) -> Self {
        let started = Instant::now();
        let script: Script = Arc::new(Mutex::new(Box::new(script)));
        let attempts = Arc::default();
        let ca = ScriptedCa {
            ca: TestCa::new("td"),
            started,
            script: script.clone(),
            attempts: Arc::clone(&attempts),
        };
        let start = UnixTime::now();
        let environment = Environment {
            now: Box::new(move || {
                UnixTime::since_unix_epoch(Duration::from_secs(start.as_secs()) + started.elapsed())
            }),
            random: Box::new(|| 0.5),
        };
        let mut registry = Registry::default();
        let store = Store::with(ca, &mut registry, environment);
        Self { store, script, attempts, registry }
    }

    fn now_does(&self, script: impl FnMut(&WorkloadUid) -> Does + Send + 'static) {
        *self.script.lock() = Box::new(script);
    }

    fn track(&self, name: &str) -> Tracked {
        let id = SpiffeId::parse(&format!("spiffe://td/ns/a/sa/{name}")).unwrap();
        self.store.track(WorkloadUid::new(name), id)
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }
}

fn unreachable() -> FetchError {
    FetchError::Unreachable { address: "https://ca:1".into(), reason: "refused".into() }
}

fn refused() -> FetchError {
    FetchError::File { path: "/token".into(), reason: "it is empty".into() }
}

#[tokio::test(start_paused = true)]
async fn a_tracked_workload_gets_an_svid_of_its_own() {
    let bench = Bench::new(|_| Does::Sign(HOUR));
    let (a, b) = (bench.track("a"), bench.track("b"));
    let (a, b) = (a.credentials().get().await.unwrap(), b.credentials().get().await.unwrap());
    assert_eq!((a.id().path(), b.id().path()), ("/ns/a/sa/a", "/ns/a/sa/b"));
    assert_ne!(a.chain(), b.chain());
}

#[tokio::test(start_paused = true)]
async fn an_svid_is_rotated_at_half_life_under_its_users() {
    let bench = Bench::new(|_| Does::Sign(HOUR));
    let tracked = bench.track("a");
    let mut credentials = tracked.credentials();
    let first = credentials.get().await.unwrap();
    sleep(HOUR / 2 - Duration::from_secs(5)).await;
    assert_eq!(credentials.get().await.unwrap().serial(), first.serial());
    sleep(Duration::from_secs(10)).await;
    assert_ne!(credentials.get().await.unwrap().serial(), first.serial());
    assert!(bench.metrics().contains("signet_svid_rotations_total 1"), "{}", bench.metrics());
}

#[tokio::test(start_paused = true)]
async fn an_old_svid_serves_until_it_expires_and_not_a_second_longer() {
    let bench = Bench::new(|_| Does::Sign(HOUR));
    let tracked = bench.track("a");
    let mut credentials = tracked.credentials();
    let first = credentials.get().await.unwrap();
    bench.now_does(|_| Does::Fail(refused()));
    sleep(HOUR - Duration::from_secs(5)).await;
    assert_eq!(credentials.get().await.unwrap().serial(), first.serial());
    assert_eq!(bench.store.certificates()[0].status, Status::Failing);
    sleep(Duration::from_secs(10)).await;
    assert!(matches!(credentials.get().await, Err(FetchError::File { .. })));
    assert_eq!(bench.store.certificates()[0].status, Status::Expired);
    assert!(bench.metrics().contains("signet_svids{status=\"expired\"} 1"), "{}", bench.metrics());
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_through_an_outage_and_not_through_a_refusal() {
    let bench = Bench::new(|_| Does::Fail(unreachable()));
    let tracked = bench.track("a");
    let mut credentials = tracked.credentials();
    timeout(Duration::from_secs(60), credentials.get()).await.unwrap_err();
    assert!(matches!(credentials.last_error(), Some(FetchError::Unreachable { .. })));
    bench.now_does(|_| Does::Fail(refused()));
    assert!(matches!(credentials.get().await, Err(FetchError::File { .. })));
    bench.now_does(|_| Does::Sign(HOUR));
    credentials.get().await.unwrap();
    assert!(credentials.last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_down_for_an_hour_is_asked_now_and_then() {
    let bench = Bench::new(|_| Does::Fail(unreachable()));
    let tracked = bench.track("a");
    sleep(HOUR).await;
    let attempts = bench.attempts.lock().len();
    assert!((100..200).contains(&attempts), "{attempts}");
    bench.now_does(|_| Does::Sign(HOUR));
    tracked.credentials().get().await.unwrap();
    assert!(bench.metrics().contains("signet_ca_requests_total{result=\"unreachable\"}"));
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_somebody_waits_for_goes_ahead_of_a_hundred_others() {
    let slow = Arc::new(AtomicUsize::new(0));
    let count = slow.clone();
    let bench = Bench::new(move |_| {
        count.fetch_add(1, SeqCst);
        Does::Hang
    });
    let others: Vec<_> = (0..100).map(|n| bench.track(&format!("other-{n}"))).collect();
    sleep(Duration::from_secs(1)).await;
    let running = slow.load(SeqCst);
    bench.now_does(|_| Does::Sign(HOUR));
    let tracked = bench.track("wanted");
    tracked.credentials().get().await.unwrap();
    assert_eq!(bench.attempts.lock().last().unwrap().as_str(), "wanted");
    assert_eq!((running, others.len()), (3, 100));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_claim_takes_the_key_with_it() {
    let bench = Bench::new(|_| Does::Sign(HOUR));
    let tracked = bench.track("a");
    let mut credentials = tracked.credentials();
    let svid: Weak<X509Svid> = Arc::downgrade(&credentials.get().await.unwrap());
    assert!(svid.upgrade().is_some());
    assert!(bench.metrics().contains("signet_svid_expiry_seconds{workload=\"a\""));
    drop(tracked);
    assert!(svid.upgrade().is_none());
    assert!(matches!(credentials.get().await, Err(FetchError::Gone)));
    assert!(!bench.metrics().contains("workload=\"a\""));
    assert!(bench.store.certificates().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_connection_learns_that_its_workload_is_gone() {
    let bench = Bench::new(|_| Does::Hang);
    let tracked = bench.track("a");
    let mut credentials = tracked.credentials();
    let waiting = tokio::spawn(async move { credentials.get().await });
    sleep(Duration::from_secs(1)).await;
    drop(tracked);
    assert!(matches!(waiting.await.unwrap(), Err(FetchError::Gone)));
}

#[tokio::test(start_paused = true)]
async fn a_workload_tracked_anew_is_not_ended_by_its_old_claim() {
    let bench = Bench::new(|_| Does::Sign(HOUR));
    let old = bench.track("a");
    let mut first = old.credentials();
    first.get().await.unwrap();
    let new = bench.track("a");
    drop(old);
    assert!(matches!(first.get().await, Err(FetchError::Gone)));
    new.credentials().get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_last_store_takes_every_svid_with_it() {
    let bench = Bench::new(|_| Does::Sign(HOUR));
    let tracked = bench.track("a");
    let mut credentials = tracked.credentials();
    let svid = Arc::downgrade(&credentials.get().await.unwrap());
    drop(bench);
    assert!(svid.upgrade().is_none());
    assert!(matches!(credentials.get().await, Err(FetchError::Gone)));
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_panics_is_reported_and_tried_again() {
    let mut panicked = false;
    let bench = Bench::new(move |_| match std::mem::replace(&mut panicked, true) {
        false => Does::Panic,
        true => Does::Sign(HOUR),
    });
    let tracked = bench.track("a");
    assert!(matches!(tracked.credentials().get().await, Err(FetchError::BrokenOff)));
    tracked.credentials().get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn views_tell_what_is_there_and_when_the_next_attempt_is() {
    let bench = Bench::new(|_| Does::Sign(HOUR));
    let tracked = bench.track("a");
    assert_eq!(bench.store.certificates()[0].status, Status::Pending);
    let svid = tracked.credentials().get().await.unwrap();
    let view = bench.store.certificates().remove(0);
    assert_eq!((view.status, view.serial.as_deref()), (Status::Valid, Some(svid.serial())));
    let until_rotation = view.next_attempt.unwrap() - UnixTime::now().as_secs();
    assert!((1795..=1805).contains(&until_rotation), "{until_rotation}");
    bench.now_does(|_| Does::Fail(refused()));
    advance(HOUR / 2 + Duration::from_secs(5)).await;
    sleep(Duration::from_millis(1)).await;
    let view = bench.store.certificates().remove(0);
    assert_eq!(view.status, Status::Failing);
    assert!(view.error.unwrap().contains("/token"));
}
