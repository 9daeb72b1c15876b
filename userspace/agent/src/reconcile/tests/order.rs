//! The ladder up and down.

use super::*;

#[tokio::test]
async fn at_enrolment_the_kernel_denies_first_and_redirects_last() {
    let mut scene = Scene::synced(Workload { enrolled: false, ..web() });
    scene.tell(web());
    let climbed = ["put NotReady", "listen", "open sandbox", "enter sandbox", "put Redirect", "captured"];
    // Once when it leaves its old terms, which is where it stays until it has climbed.
    assert_eq!(scene.steps(), [&["forget", "put NotReady"], &climbed[..]].concat());
    assert_eq!(scene.phase(), Some(Phase::Captured));
}

#[tokio::test]
async fn until_the_source_has_told_all_a_workload_is_denied() {
    let mut scene = Scene::new();
    scene.tell(web());
    assert_eq!(scene.steps(), ["put NotReady"]);
    assert_eq!(scene.phase(), Some(Phase::WaitingForSource));
}

#[tokio::test]
async fn once_the_source_has_told_all_it_climbs_then_sweeps_then_attaches() {
    let mut scene = Scene::new();
    scene.world.lock().entries.insert(STALE, CaptureState::Redirect);
    scene.world.lock().links.push(NetnsCookie(99));
    scene.tell(web());
    scene.steps();
    scene.hear(Event::Synced);
    let climbed = ["listen", "open sandbox", "enter sandbox", "put Redirect"];
    // Before the programs are attached nobody is captured.
    let rest = ["remove", "unsteer", "heartbeat", "attach", "captured"];
    assert_eq!(scene.steps(), [&climbed[..], &rest[..]].concat());
    assert_eq!(scene.world.lock().links, [COOKIE]);
    assert!(!scene.world.lock().entries.contains_key(&STALE));
}

#[tokio::test]
async fn a_restart_adopts_the_entry_of_a_workload_that_is_still_there() {
    let mut scene = Scene::new();
    let cgroup = scene.web();
    scene.world.lock().entries.insert(cgroup, CaptureState::Redirect);
    scene.tell(web());
    scene.hear(Event::Synced);
    assert!(!scene.steps().contains(&"remove".to_owned()));
    assert_eq!(scene.entry(), Some(CaptureState::Redirect));
}

#[tokio::test]
async fn at_unenrolment_the_sandbox_closes_before_the_kernel_lets_go() {
    let mut scene = Scene::synced(web());
    scene.tell(Workload { enrolled: false, ..web() });
    let down =
        ["forget", "put NotReady", "leave sandbox", "unsteer", "close sandbox", "restore", "put Bypass"];
    assert_eq!(scene.steps(), down);
    assert_eq!(scene.phase(), Some(Phase::Bypassed));
}

#[tokio::test]
async fn a_deleted_workload_leaves_the_kernel_first_and_nothing_behind() {
    let mut scene = Scene::synced(web());
    scene.hear(Event::WorkloadGone(web().uid));
    let down = ["remove", "leave sandbox", "unsteer", "close sandbox", "restore", "forget"];
    assert_eq!(scene.steps(), down);
    assert!(scene.phase().is_none() && scene.entry().is_none());
    assert!(scene.world.lock().links.is_empty());
}
