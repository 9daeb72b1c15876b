//! A step that fails leaves the workload where the kernel denies, and is retried.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_failed_step_leaves_the_kernel_denying_and_is_retried() {
    for broken in ["put NotReady", "listen", "put Redirect"] {
        let mut scene = Scene::new();
        scene.hear(Event::Synced);
        scene.world.lock().broken = Some(broken);
        scene.tell(web());
        assert!(matches!(scene.phase(), Some(Phase::Failed(_))), "{broken}: {:?}", scene.phase());
        let denying = (broken != "put NotReady").then_some(CaptureState::NotReady);
        assert_eq!(scene.entry(), denying, "{broken}");
        scene.retry().await;
        assert_eq!(scene.entry(), denying, "{broken}, again");
        scene.world.lock().broken = None;
        scene.retry().await;
        assert_eq!(scene.phase(), Some(Phase::Captured), "{broken}");
        assert_eq!(scene.entry(), Some(CaptureState::Redirect), "{broken}");
    }
}

#[tokio::test]
async fn an_entry_that_could_not_be_removed_goes_with_a_later_heartbeat() {
    let mut scene = Scene::synced(web());
    scene.world.lock().broken = Some("remove");
    scene.hear(Event::WorkloadGone(web().uid));
    assert_eq!(scene.entry(), Some(CaptureState::Redirect));
    scene.world.lock().broken = None;
    scene.reconciler.heartbeat();
    assert_eq!(scene.entry(), None);
}

#[tokio::test(start_paused = true)]
async fn a_workload_whose_connects_wait_is_not_kept_waiting_by_earlier_failures() {
    let mut scene = Scene::new();
    scene.hear(Event::Synced);
    scene.world.lock().broken = Some("listen");
    scene.tell(web());
    for _ in 0..10 {
        scene.retry().await;
    }
    let left = |scene: &Scene| scene.reconciler.next_retry().unwrap() - Instant::now();
    assert!(left(&scene) > Duration::from_secs(4));
    let cgroup = scene.web();
    scene.reconciler.on_kernel(KernelEvent::Awaited(cgroup));
    assert!(left(&scene) < Duration::from_millis(50));
}
