//! What is written where, and when.

use super::*;

struct Planned {
    plan: Plan,
    now: Instant,
}

impl Planned {
    /// Both kinds are listed: namespace `a`, and what its ConfigMap holds.
    fn with(held: Held) -> Self {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.listing(Subject::Namespaces);
        plan.listing(Subject::Maps);
        plan.namespace("a", true, now);
        plan.map("a", held, now);
        assert_eq!(plan.due(), None, "not all is known");
        plan.listed(Subject::Namespaces, now);
        assert_eq!(plan.due(), None, "not all is known");
        plan.listed(Subject::Maps, now);
        Self { plan, now }
    }

    fn next(&mut self) -> Option<Step> {
        self.plan.next(self.now).map(|(_, step)| step)
    }

    fn map(&mut self, held: Held) {
        self.plan.map("a", held, self.now);
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn what_is_missing_is_made_and_what_is_other_is_put_back() {
    for (held, step) in [
        (Held::Nothing, Some(Step::Create)),
        (Held::Others, Some(Step::PutBack)),
        (Held::Roots, None),
        (Held::Istios, None),
    ] {
        let mut planned = Planned::with(held);
        assert_eq!(planned.plan.unpublished(), usize::from(held != Held::Roots));
        assert_eq!(planned.next(), step, "{held:?}");
        assert_eq!(planned.plan.due(), None);
    }
}

#[test]
fn a_new_namespace_gets_it_and_one_that_ends_does_not() {
    let mut planned = Planned::with(Held::Roots);
    planned.plan.namespace("b", true, planned.now);
    assert_eq!(planned.next(), Some(Step::Create));
    planned.plan.namespace("c", true, planned.now);
    planned.plan.namespace("c", false, planned.now);
    assert_eq!(planned.next(), None);
}

#[test]
fn an_edit_is_put_back_and_a_deletion_too() {
    let mut planned = Planned::with(Held::Roots);
    planned.map(Held::Others);
    assert_eq!(planned.next(), Some(Step::PutBack));
    planned.plan.done("a", Step::PutBack, planned.now);
    planned.later(120);
    planned.map(Held::Nothing);
    assert_eq!(planned.next(), Some(Step::Create));
}

#[test]
fn whoever_changes_it_each_time_waits_longer_each_time() {
    let mut planned = Planned::with(Held::Others);
    let mut waited = 0;
    for _ in 0..12 {
        while planned.plan.due().is_some_and(|due| due > planned.now) {
            planned.later(1);
            waited += 1;
        }
        assert_eq!(planned.next(), Some(Step::PutBack));
        planned.plan.done("a", Step::PutBack, planned.now);
        planned.map(Held::Roots);
        planned.map(Held::Others);
    }
    assert!(waited > 1000, "{waited}");
}

#[test]
fn what_failed_is_tried_again_after_a_pause() {
    let mut planned = Planned::with(Held::Nothing);
    assert_eq!(planned.next(), Some(Step::Create));
    planned.plan.failed("a", planned.now);
    assert_eq!(planned.next(), None);
    planned.later(1);
    assert_eq!(planned.next(), Some(Step::Create));
}

#[test]
fn what_a_new_list_does_not_have_is_gone() {
    let mut planned = Planned::with(Held::Roots);
    planned.plan.listing(Subject::Maps);
    planned.plan.listed(Subject::Maps, planned.now);
    assert_eq!(planned.next(), Some(Step::Create));
    planned.plan.listing(Subject::Namespaces);
    planned.plan.listed(Subject::Namespaces, planned.now);
    assert_eq!((planned.next(), planned.plan.unpublished()), (None, 0));
}

#[test]
fn what_the_watch_told_before_the_write_was_done_counts() {
    let mut planned = Planned::with(Held::Nothing);
    assert_eq!(planned.next(), Some(Step::Create));
    planned.map(Held::Others);
    planned.plan.done("a", Step::Create, planned.now);
    assert_eq!(planned.next(), Some(Step::PutBack));
}
