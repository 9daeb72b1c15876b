//! When SVIDs are fetched, with time as an argument.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn uid(name: impl ToString) -> WorkloadUid {
    WorkloadUid::new(name.to_string())
}

/// A schedule that tracks `names` since time 0.
fn tracking(names: &[&str]) -> Schedule {
    let mut schedule = Schedule::default();
    for name in names {
        schedule.track(&uid(name), Tick::ZERO);
    }
    schedule
}

/// The workloads of all attempts that may start now.
fn started(schedule: &mut Schedule, now: Tick) -> Vec<Job> {
    std::iter::from_fn(|| schedule.start(now)).collect()
}

fn names(jobs: &[Job]) -> Vec<&str> {
    jobs.iter().map(|job| job.workload.as_str()).collect()
}

#[test]
fn a_new_workload_is_due_at_once_and_starts_once() {
    let mut schedule = tracking(&["a"]);
    assert_eq!(schedule.wake(), Some(Tick::ZERO));
    assert_eq!(names(&started(&mut schedule, Tick::ZERO)), ["a"]);
    assert_eq!((schedule.start(HOUR), schedule.wake()), (None, None));
}

#[test]
fn an_svid_is_rotated_at_half_of_its_life_give_or_take_a_tenth() {
    for (jitter, due) in [(0.0, 0.45), (0.5, 0.5), (1.0, 0.55)] {
        let mut schedule = tracking(&["a"]);
        let job = schedule.start(Tick::ZERO).unwrap();
        schedule.finish(&job, Attempt::Fetched(24 * HOUR), SECOND, jitter);
        let due = SECOND + (24 * HOUR).mul_f64(due);
        assert_eq!(schedule.wake(), Some(due));
        assert_eq!(schedule.start(due - SECOND), None);
        assert!(schedule.start(due).is_some());
    }
}

#[test]
fn an_svid_that_is_about_to_expire_is_asked_for_once_a_second_at_most() {
    let mut schedule = tracking(&["a"]);
    let job = schedule.start(Tick::ZERO).unwrap();
    schedule.finish(&job, Attempt::Fetched(Duration::ZERO), Tick::ZERO, 0.5);
    assert_eq!(schedule.wake(), Some(SECOND));
}

#[test]
fn failures_back_off_to_thirty_seconds_and_an_svid_ends_that() {
    let mut schedule = tracking(&["a"]);
    let mut now = Tick::ZERO;
    let mut waits = Vec::new();
    for _ in 0..100 {
        let job = schedule.start(now).unwrap();
        schedule.finish(&job, Attempt::Failed, now, 1.0);
        let due = schedule.wake().unwrap();
        waits.push((due - now).as_millis());
        now = due;
    }
    assert_eq!(waits[..8], [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    assert_eq!(waits[99], 30_000);
    let job = schedule.start(now).unwrap();
    schedule.finish(&job, Attempt::Fetched(HOUR), now, 0.5);
    now = schedule.wake().unwrap();
    let job = schedule.start(now).unwrap();
    schedule.finish(&job, Attempt::Failed, now, 0.0);
    assert_eq!(schedule.wake().unwrap() - now, Duration::from_millis(250));
}

#[test]
fn a_demand_goes_ahead_of_the_background() {
    let mut schedule = Schedule::default();
    for name in 0..100 {
        schedule.track(&uid(name), Tick::ZERO);
    }
    let generation = schedule.track(&uid("late"), Tick::ZERO);
    schedule.demand(&uid("late"), generation, Tick::ZERO);
    assert_eq!(schedule.start(Tick::ZERO).unwrap().workload, uid("late"));
}

#[test]
fn a_demand_finds_a_free_place_where_the_background_is_slow() {
    let mut schedule = Schedule::default();
    for name in 0..100 {
        schedule.track(&uid(name), Tick::ZERO);
    }
    assert_eq!(started(&mut schedule, Tick::ZERO).len(), MAX_RUNNING - 1);
    assert_eq!(schedule.wake(), None);
    let generation = schedule.track(&uid("late"), SECOND);
    schedule.demand(&uid("late"), generation, SECOND);
    assert_eq!(schedule.wake(), Some(SECOND));
    assert_eq!(names(&started(&mut schedule, SECOND)), ["late"]);
}

#[test]
fn no_more_than_four_attempts_run_however_many_are_demanded() {
    let mut schedule = Schedule::default();
    for name in 0..100 {
        let generation = schedule.track(&uid(name), Tick::ZERO);
        schedule.demand(&uid(name), generation, Tick::ZERO);
    }
    let jobs = started(&mut schedule, Tick::ZERO);
    assert_eq!(jobs.len(), MAX_RUNNING);
    schedule.finish(&jobs[0], Attempt::Failed, Tick::ZERO, 0.5);
    assert_eq!(started(&mut schedule, Tick::ZERO).len(), 1);
}

#[test]
fn a_demand_cuts_a_backoff_short_but_never_below_a_second() {
    let mut schedule = Schedule::default();
    let generation = schedule.track(&uid("a"), Tick::ZERO);
    let mut now = Tick::ZERO;
    for _ in 0..10 {
        let job = schedule.start(now).unwrap();
        schedule.finish(&job, Attempt::Failed, now, 1.0);
        now = schedule.wake().unwrap();
    }
    let job = schedule.start(now).unwrap();
    schedule.finish(&job, Attempt::Failed, now, 1.0);
    for _ in 0..1000 {
        schedule.demand(&uid("a"), generation, now);
    }
    assert_eq!(schedule.wake(), Some(now + SECOND));
    // A later demand finds the second over.
    schedule.demand(&uid("a"), generation, now + 5 * SECOND);
    assert!(schedule.start(now + 5 * SECOND).is_some());
}

#[test]
fn a_demand_never_delays_what_was_due_sooner() {
    let mut schedule = Schedule::default();
    let generation = schedule.track(&uid("a"), Tick::ZERO);
    let job = schedule.start(Tick::ZERO).unwrap();
    schedule.finish(&job, Attempt::Failed, Tick::ZERO, 0.0);
    schedule.demand(&uid("a"), generation, Tick::ZERO);
    assert_eq!(schedule.wake(), Some(Duration::from_millis(250)));
}

#[test]
fn a_forgotten_workload_is_never_started_and_its_attempt_counts_for_nothing() {
    let mut schedule = Schedule::default();
    let first = schedule.track(&uid("a"), Tick::ZERO);
    let job = schedule.start(Tick::ZERO).unwrap();
    schedule.forget(&uid("a"), first);
    assert_eq!(schedule.wake(), None);
    let second = schedule.track(&uid("a"), SECOND);
    schedule.finish(&job, Attempt::Fetched(HOUR), SECOND, 0.5);
    assert_eq!(schedule.start(SECOND).unwrap().generation, second);
    // The old claim's end does not end the new one.
    schedule.forget(&uid("a"), first);
    assert!(schedule.is_current(&uid("a"), second));
}

#[test]
fn places_come_back_after_attempts_of_forgotten_workloads() {
    let mut schedule = tracking(&["a", "b", "c", "d"]);
    let jobs = started(&mut schedule, Tick::ZERO);
    schedule.forget_all();
    for job in &jobs {
        schedule.finish(job, Attempt::Failed, SECOND, 0.5);
    }
    for name in ["e", "f", "g", "h"] {
        schedule.track(&uid(name), SECOND);
    }
    assert_eq!(started(&mut schedule, SECOND).len(), MAX_RUNNING - 1);
}

mod simulation {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Track(u8),
        Forget(u8),
        Demand(u8),
        Finish(bool, f64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12u8).prop_map(Step::Track),
            (0..12u8).prop_map(Step::Forget),
            (0..12u8).prop_map(Step::Demand),
            (any::<bool>(), 0.0..1.0f64).prop_map(|(good, jitter)| Step::Finish(good, jitter)),
            (0..40_000u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_bound_is_broken(steps in prop::collection::vec(step(), 0..200)) {
            let mut schedule = Schedule::default();
            let mut generations = HashMap::new();
            let mut running: Vec<Job> = Vec::new();
            let mut now = Tick::ZERO;
            for step in steps {
                match step {
                    Step::Track(n) => { generations.insert(n, schedule.track(&uid(n), now)); }
                    Step::Forget(n) => if let Some(g) = generations.remove(&n) { schedule.forget(&uid(n), g) },
                    Step::Demand(n) => if let Some(g) = generations.get(&n) { schedule.demand(&uid(n), *g, now) },
                    Step::Finish(good, jitter) => if let Some(job) = running.pop() {
                        let attempt = if good { Attempt::Fetched(HOUR) } else { Attempt::Failed };
                        schedule.finish(&job, attempt, now, jitter);
                    },
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                }
                running.extend(started(&mut schedule, now));
                prop_assert!(running.len() <= MAX_RUNNING);
                prop_assert!(schedule.wake().is_none_or(|wake| wake > now));
                for (n, generation) in &generations {
                    let runs = running.iter().any(|j| j.workload == uid(n) && j.generation == *generation);
                    prop_assert_eq!(schedule.due(&uid(n)).is_none(), runs);
                }
            }
        }
    }
}
