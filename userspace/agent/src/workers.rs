//! The threads that serve connections, each with a runtime and an event loop of its own.
//!
//! A connection is served by one worker from accept to end, with every socket that it uses: no lock is shared, nobody is
//! woken up to share work, and what a thread keeps warm (blocks, ciphers, the cache) is warm for the connection's next
//! bytes. So a worker that is busy is not helped by one that is not; new connections go where there are fewest, and a native
//! tunnel, whenever it is used, goes on with others of its peer's thread.
//! Everything else (discovery, SVIDs, admin) stays on the runtime that the process began with, and cannot delay bytes.

mod metrics;

use std::cell::Cell;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// All workers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Workers {
    all: Arc<[Arc<Worker>]>,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Of the connections that have a [`Place`] and do not rest.
    connections: AtomicUsize,
}

/// The workers' threads. Dropping it ends them, and with them every task that still runs there.
#[derive(Debug)]
pub struct Threads {
    stop: CancellationToken,
    running: Vec<JoinHandle<()>>,
}

/// A connection's place at a worker, until it is dropped.
#[derive(Debug)]
pub struct Place {
    worker: Arc<Worker>,
    rests: bool,
}

/// Which worker a task runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(usize);

impl WorkerId {
    /// The calling thread's. All threads that are no workers are one.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Its lane, as it tells peers.
    #[must_use]
    pub fn lane(self) -> u8 {
        self.0 as u8
    }
}

impl Workers {
    /// Starts `count` of them.
    ///
    /// # Errors
    /// The kernel gives no thread, or no event loop.
    pub fn start(count: NonZeroUsize) -> io::Result<(Self, Threads)> {
        let mut threads = Threads { stop: CancellationToken::new(), running: Vec::new() };
        let all = (0..count.get()).map(|id| threads.start(WorkerId(id))).collect::<io::Result<_>>()?;
        Ok((Self { all }, threads))
    }

    /// The calling runtime as the only worker, for tests and tools.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn here() -> Self {
        Self { all: Arc::new([Arc::new(Worker::new(Handle::current()))]) }
    }

    /// A place for a connection that the calling worker has accepted: there, unless another one has fewer.
    #[must_use]
    pub fn place(&self) -> Place {
        let own = self.all.get(WorkerId::current().0);
        let least = self.all.iter().min_by_key(|worker| worker.load()).unwrap_or(&self.all[0]);
        Place::at(own.filter(|own| own.load() <= least.load()).unwrap_or(least))
    }

    /// A place that suits a connection better which was at rest and is used: `None` where it is best off at its own.
    ///
    /// That is with the others of its lane: what a thread of the peer's sends in one go wakes one worker here, which answers
    /// in one go. Unless that worker has more than others by [`SLACK`]: then where there are fewest.
    #[must_use]
    pub fn better(&self, place: &Place, lane: u8) -> Option<Place> {
        let others = |worker: &Arc<Worker>| worker.load() - usize::from(Arc::ptr_eq(worker, &place.worker));
        let least = self.all.iter().min_by_key(|worker| others(worker))?;
        let of_lane = &self.all[usize::from(lane) % self.all.len()];
        let best = if others(of_lane) <= others(least) + SLACK { of_lane } else { least };
        (!Arc::ptr_eq(best, &place.worker)).then(|| Place::at(best))
    }

    /// The runtimes.
    pub fn runtimes(&self) -> impl Iterator<Item = &Handle> {
        self.all.iter().map(|worker| &worker.runtime)
    }

    /// The runtime of the worker that is next in turn for `number`, whatever that counts.
    #[must_use]
    pub fn in_turn(&self, number: u64) -> &Handle {
        let at = number % self.all.len() as u64;
        &self.all[at as usize].runtime
    }
}

impl Worker {
    fn new(runtime: Handle) -> Self {
        Self { runtime, connections: AtomicUsize::new(0) }
    }

    fn load(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Place {
    fn at(worker: &Arc<Worker>) -> Self {
        worker.connections.fetch_add(1, Ordering::Relaxed);
        Self { worker: Arc::clone(worker), rests: false }
    }

    /// Nothing is done for the connection until it is used again.
    pub fn rest(&mut self) {
        if !std::mem::replace(&mut self.rests, true) {
            self.worker.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// It is used again.
    pub fn resume(&mut self) {
        if std::mem::replace(&mut self.rests, false) {
            self.worker.connections.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The worker's runtime.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.worker.runtime
    }

    /// What is registered meanwhile is the worker's.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.worker.runtime.enter()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Threads {
    fn start(&mut self, id: WorkerId) -> io::Result<Arc<Worker>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let worker = Worker::new(runtime.handle().clone());
        let (stop, name) = (self.stop.clone(), format!("worker-{}", id.0));
        let work = move || work(&runtime, id, &stop);
        self.running.push(std::thread::Builder::new().name(name).spawn(work)?);
        Ok(Arc::new(worker))
    }
}

fn work(runtime: &Runtime, id: WorkerId, stop: &CancellationToken) {
    CURRENT.set(id);
    runtime.block_on(stop.cancelled());
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.running.drain(..) {
            // A worker's tasks catch their panics; one outside of them has been reported by the hook.
            let _ = thread.join();
        }
    }
}

/// By how many connections a lane's worker may be ahead.
const SLACK: usize = 4;

thread_local! {
    /// Which worker this thread is; set once, when it begins.
    static CURRENT: Cell<WorkerId> = const { Cell::new(WorkerId(usize::MAX)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Workers, Threads) {
        Workers::start(NonZeroUsize::new(2).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_connection_stays_where_it_was_accepted_unless_another_worker_has_fewer() {
        let (workers, _threads) = two();
        let handle = workers.in_turn(1).clone();
        let placing = workers.clone();
        let placed = handle.spawn(async move {
            let places: Vec<_> = (0..4).map(|_| placing.place()).collect();
            (places[0].runtime().id(), places[1].runtime().id(), places[2].runtime().id())
        });
        let (first, second, third) = placed.await.unwrap();
        assert_eq!((first, third), (handle.id(), handle.id()));
        assert_eq!(second, workers.in_turn(0).id());
        assert!(workers.all.iter().all(|worker| worker.load() == 0), "places were given back");
    }

    #[tokio::test]
    async fn who_rests_is_not_counted_and_goes_on_with_its_lane_unless_that_has_many() {
        let (workers, _threads) = two();
        let mut places: Vec<_> = (0..8).map(|_| Place::at(&workers.all[0])).collect();
        places.iter_mut().for_each(Place::rest);
        assert_eq!(workers.all[0].load(), 0);
        let loads = || workers.all.iter().map(|worker| worker.load()).collect::<Vec<_>>();
        let mut at = Vec::new();
        for mut place in places {
            place.resume();
            at.push(workers.better(&place, 3).unwrap_or(place));
            if at.len() == 1 + SLACK {
                assert_eq!(loads(), [0, 1 + SLACK]);
            }
        }
        assert_eq!(loads(), [2, 6]);
        assert!(workers.better(&at[0], 3).is_none(), "it is there");
        drop(at);
        assert_eq!(loads(), [0, 0]);
    }

    #[tokio::test]
    async fn a_task_knows_its_worker() {
        let (workers, _threads) = two();
        for at in [0, 1] {
            let id = workers.in_turn(at).spawn(async { WorkerId::current() }).await.unwrap();
            assert_eq!(id, WorkerId(at as usize));
        }
        assert_eq!(WorkerId::current(), WorkerId(usize::MAX));
    }

    #[tokio::test]
    async fn what_runs_there_ends_with_the_threads() {
        let (workers, threads) = two();
        let endless = workers.in_turn(0).spawn(std::future::pending::<()>());
        drop(threads);
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
