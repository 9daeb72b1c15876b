//! Pods whose cgroup kubelet makes: found by uid, before or after the pod is told of, and never shared.

use super::*;
use crate::state::CgroupName;

const PLACE: &str = "kubepods/besteffort/pod11111111-2222";

fn pod() -> Workload {
    Workload { cgroup: Some(CgroupName::Pod("11111111-2222".into())), ..web() }
}

fn make(scene: &Scene, place: &str) {
    std::fs::create_dir_all(scene.mount.path().join(place)).unwrap();
}

#[tokio::test]
async fn a_pod_that_is_told_of_after_its_cgroup_is_captured_at_once() {
    let mut scene = Scene::new();
    make(&scene, PLACE);
    scene.tell(pod());
    scene.hear(Event::Synced);
    assert_eq!(scene.phase(), Some(Phase::Captured));
}

#[tokio::test]
async fn a_pod_that_is_told_of_before_its_cgroup_is_captured_when_that_is_made() {
    let mut scene = Scene::synced(pod());
    assert_eq!(scene.phase(), Some(Phase::WaitingForCgroup));
    make(&scene, PLACE);
    scene.reconciler.on_kernel(KernelEvent::CgroupMade(PLACE.into()));
    assert_eq!(scene.phase(), Some(Phase::Captured));
}

#[tokio::test]
async fn a_pod_out_of_the_mesh_is_let_through_from_its_cgroup_on() {
    let mut scene = Scene::synced(Workload { enrolled: false, ..pod() });
    make(&scene, PLACE);
    scene.reconciler.on_kernel(KernelEvent::CgroupMade(PLACE.into()));
    assert_eq!(scene.phase(), Some(Phase::Bypassed));
}

#[tokio::test]
async fn a_cgroup_that_a_container_names_like_another_pods_is_not_taken_for_it() {
    let mut scene = Scene::synced(pod());
    let forged = "kubepods/burstable/pod3333/container/pod11111111-2222";
    make(&scene, forged);
    scene.reconciler.on_kernel(KernelEvent::CgroupMade(forged.into()));
    assert_eq!(scene.phase(), Some(Phase::WaitingForCgroup));
}

#[tokio::test]
async fn a_second_object_that_claims_a_pods_cgroup_gets_nothing_and_takes_nothing_away() {
    let mut scene = Scene::new();
    make(&scene, PLACE);
    scene.tell(pod());
    scene.hear(Event::Synced);
    let forger = Workload { uid: WorkloadUid::new("uid-zz"), enrolled: false, ..pod() };
    scene.tell(forger.clone());
    assert!(matches!(scene.phase(), Some(Phase::Failed(error)) if error.contains("uid-web")));
    scene.hear(Event::WorkloadGone(forger.uid));
    let cgroup = Cgroup::open(scene.mount.path(), Path::new(PLACE)).unwrap().id();
    assert_eq!(scene.world.lock().entries.get(&cgroup), Some(&CaptureState::Redirect));
}
