//! Workloads whose cgroup is not known: they are told of, and what may be theirs is kept.

use super::*;

#[tokio::test]
async fn an_enrolled_workload_without_a_cgroup_says_what_is_missing() {
    let scene = Scene::synced(Workload { cgroup: None, ..web() });
    assert_eq!(scene.phase(), Some(Phase::CgroupUnknown));
    assert!(Phase::CgroupUnknown.missing().unwrap().contains("signet.dev/cgroup"));
}

#[tokio::test]
async fn one_of_another_node_or_not_enrolled_is_none_of_ours() {
    for changed in [Workload { node: "n2".into(), ..web() }, Workload { enrolled: false, ..web() }] {
        let scene = Scene::synced(Workload { cgroup: None, ..changed });
        assert_eq!(scene.phase(), None);
    }
}

#[tokio::test]
async fn a_captured_workload_that_loses_its_annotation_stays_captured_until_it_is_gone() {
    let mut scene = Scene::synced(web());
    scene.tell(Workload { cgroup: None, ..web() });
    assert_eq!(scene.phase(), Some(Phase::Captured));
    assert_eq!(scene.entry(), Some(CaptureState::Redirect));
    assert!(!scene.steps().iter().any(|step| step == "remove" || step == "leave sandbox"));
    scene.hear(Event::WorkloadGone(web().uid));
    assert_eq!((scene.phase(), scene.entry()), (None, None));
}

#[tokio::test]
async fn an_annotation_that_comes_late_captures() {
    let mut scene = Scene::synced(Workload { cgroup: None, ..web() });
    scene.tell(web());
    assert_eq!(scene.phase(), Some(Phase::Captured));
}

#[tokio::test(start_paused = true)]
async fn while_a_cgroup_cannot_be_opened_no_entry_is_removed() {
    let mut scene = Scene::new();
    let path: PathBuf = scene.mount.path().join("late");
    // A link is refused: an error that is not "does not exist".
    std::os::unix::fs::symlink(scene.mount.path().join("web"), &path).unwrap();
    scene.world.lock().entries.insert(STALE, CaptureState::Redirect);
    scene.tell(Workload { cgroup: Some("late".into()), ..web() });
    scene.hear(Event::Synced);
    assert!(matches!(scene.phase(), Some(Phase::Failed(_))));
    assert!(scene.world.lock().entries.contains_key(&STALE), "it may be that workload's");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    scene.retry().await;
    assert_eq!(scene.phase(), Some(Phase::Captured));
    assert!(!scene.world.lock().entries.contains_key(&STALE));
}

#[tokio::test]
async fn while_a_cgroup_is_not_named_no_entry_is_removed() {
    let mut scene = Scene::new();
    scene.world.lock().entries.insert(STALE, CaptureState::Redirect);
    scene.tell(Workload { cgroup: None, ..web() });
    scene.hear(Event::Synced);
    assert!(scene.world.lock().entries.contains_key(&STALE));
}

#[tokio::test]
async fn a_cgroup_that_does_not_exist_has_no_entry_to_keep() {
    let mut scene = Scene::new();
    scene.world.lock().entries.insert(STALE, CaptureState::Redirect);
    scene.tell(Workload { cgroup: Some("later".into()), ..web() });
    scene.hear(Event::Synced);
    assert_eq!(scene.phase(), Some(Phase::WaitingForCgroup));
    assert!(!scene.world.lock().entries.contains_key(&STALE));
}
