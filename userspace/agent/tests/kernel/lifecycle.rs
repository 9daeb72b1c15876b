//! Enrolment, removal, restart, replacement, un-installation: what stays, what goes, and that there is no gap.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use signet_agent::kernel::{CaptureState, Cgroup, Claim, KernelError, KernelEvent, cgroup2_mount};
use tokio::time::timeout;

use crate::guards::{Node, Pod, Process};
use crate::require_root_and_ebpf;

const SERVER: &str = "10.77.0.2:80";

fn connect() -> io::Result<String> {
    TcpStream::connect(SERVER).map(|_| String::new())
}

fn is_captured(result: io::Result<String>) -> bool {
    // No engine lives.
    result.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix(cgroup2_mount().unwrap()).unwrap()
}

#[test]
fn cgroups_are_told_of_when_they_come_and_go() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("new");
    let path = relative(&pod.cgroup).to_owned();
    node.event(|event| *event == KernelEvent::CgroupMade(path.clone()));
    fs::remove_dir(&pod.cgroup).unwrap();
    node.event(|event| *event == KernelEvent::CgroupGone(path.clone()));
}

#[test]
fn events_that_found_no_room_ask_for_a_walk() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    // Nobody reads: the channel fills first, then the ring.
    for _ in 0..2500 {
        let pod = node.options.cgroup_root.join("pods/short-lived");
        fs::create_dir(&pod).unwrap();
        fs::remove_dir(&pod).unwrap();
    }
    node.event(|event| *event == KernelEvent::Overrun);
    assert!(node.metric("signet_kernel_events_lost_total") > 0);
}

#[test]
fn a_removed_workload_leaves_no_entry() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    let _engine = pod.netns.listen("127.0.0.1:15001");
    let client =
        Process::start(&pod.cgroup, &pod.netns, || TcpStream::connect(SERVER).map(|s| (s, String::new())));
    client.said().unwrap();
    assert_eq!(node.kernel.workloads().unwrap(), [pod.id()]);
    assert_eq!(node.metric("signet_bpf_map_entries{map=\"flows\"}"), 1);
    node.kernel.remove_workload(pod.id()).unwrap();
    for map in ["flows", "ports", "workloads"] {
        assert_eq!(node.metric(&format!("signet_bpf_map_entries{{map=\"{map}\"}}")), 0, "{map}");
    }
}

#[test]
fn a_cgroup_made_again_under_the_same_name_inherits_nothing() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    let _outside = pod.netns.wire();
    node.enrol(&pod);
    let before = pod.id();
    fs::remove_dir(&pod.cgroup).unwrap();
    fs::create_dir(&pod.cgroup).unwrap();
    assert_ne!(pod.id(), before);
    node.kernel.heartbeat().unwrap();
    assert_eq!(pod.run(connect).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn capture_outlives_the_engine_and_a_restart_has_no_gap() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    let outside = pod.netns.wire();
    let server = outside.listen(SERVER);
    node.put(&pod, CaptureState::Redirect);
    let folder = tempfile::tempdir().unwrap();
    let stop = folder.path().join("stop");
    let busy = Process::start(&pod.cgroup, &pod.netns, || {
        let connects = std::iter::repeat_with(connect).take_while(|_| !stop.exists());
        let escaped = connects.filter(|result| result.is_ok()).count();
        Ok(((), escaped.to_string()))
    });
    for _ in 0..RESTARTS {
        node.restart();
        assert_eq!(node.kernel.workloads().unwrap(), [pod.id()]);
    }
    fs::write(&stop, "").unwrap();
    assert_eq!(busy.said().unwrap(), "0");
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn maps_of_another_version_go_once_the_links_have_changed_hands() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let other = node.options.pin_root.join("abi-4294967295");
    fs::create_dir(&other).unwrap();
    node.restart();
    assert!(!other.exists());
}

#[test]
fn a_cgroup_root_that_was_made_again_is_attached_to() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    fs::remove_dir(node.options.cgroup_root.join("pods")).unwrap();
    fs::remove_dir(&node.options.cgroup_root).unwrap();
    fs::create_dir_all(node.options.cgroup_root.join("pods")).unwrap();
    node.restart();
    let pod = node.pod("web");
    node.put(&pod, CaptureState::Redirect);
    assert!(is_captured(pod.run(connect)));
}

#[test]
fn uninstalling_leaves_nothing_behind() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    let outside = pod.netns.wire();
    let _server = outside.listen(SERVER);
    node.put(&pod, CaptureState::Redirect);
    assert!(is_captured(pod.run(connect)));
    signet_agent::kernel::uninstall(&node.options.pin_root).unwrap();
    assert!(!node.options.pin_root.exists());
    pod.run(connect).expect("it takes its native path again");
    signet_agent::kernel::uninstall(&node.options.pin_root).expect("once more is fine");
}

#[test]
fn an_instance_has_one_engine_at_a_time() {
    require_root_and_ebpf!();
    let node = Node::start();
    let first = Claim::take(&node.options.pin_root, true).unwrap();
    let second = Claim::take(&node.options.pin_root, true).unwrap_err();
    assert!(matches!(second, KernelError::InstanceInUse { .. }), "{second}");
    drop(first);
    Claim::take(&node.options.pin_root, true).expect("the first has ended");
}

#[test]
fn an_instances_next_engine_waits_for_its_turn() {
    require_root_and_ebpf!();
    let node = Node::start();
    let pins = &node.options.pin_root;
    let first = Claim::take(pins, true).unwrap();
    node.runtime.block_on(async {
        let mut turn = pin!(Claim::await_turn(pins, true));
        assert!(timeout(Duration::from_millis(100), &mut turn).await.is_err(), "two at a time");
        // As an uninstall does before it lets go: the lock that is waited for is on a directory that nobody finds.
        signet_agent::kernel::uninstall(pins).unwrap();
        drop(first);
        let _second = timeout(Duration::from_secs(10), turn).await.expect("its turn").unwrap();
        let third = Claim::take(pins, true).unwrap_err();
        assert!(matches!(third, KernelError::InstanceInUse { .. }), "{third}");
    });
}

#[test]
fn a_cgroup_tells_its_network_namespace_once_it_has_a_process() {
    require_root_and_ebpf!();
    let node = Node::start();
    let pod = node.pod("web");
    let nested = pod.cgroup.join("container");
    fs::create_dir(&nested).unwrap();
    let cgroup = Cgroup::open(&cgroup2_mount().unwrap(), relative(&pod.cgroup)).unwrap();
    assert_eq!(cgroup.id(), pod.id());
    assert!(cgroup.netns(false).unwrap().is_none());
    let (changed, process) = node.runtime.block_on(async {
        let changed = timeout(Duration::from_secs(20), cgroup.changed());
        let start = async { Process::start(&nested, &pod.netns, || Ok(((), String::new()))) };
        tokio::join!(biased; changed, start)
    });
    changed.expect("its population changed");
    process.said().unwrap();
    let found = cgroup.netns(false).unwrap().expect("the process is in a namespace of its own");
    assert_eq!(inode(&found), inode(&pod.netns.fd));
}

fn inode(fd: &impl AsRawFd) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().ino()
}

#[test]
fn a_process_in_the_nodes_own_namespace_is_no_pods() {
    require_root_and_ebpf!();
    let node = Node::start();
    let pod: Pod = node.pod("web");
    let cgroup = Cgroup::open(&cgroup2_mount().unwrap(), relative(&pod.cgroup)).unwrap();
    let _process = Process::start_here(&pod.cgroup);
    assert!(cgroup.netns(false).unwrap().is_none());
    assert!(cgroup.netns(true).unwrap().is_some(), "a hostNetwork workload lives there");
}

const RESTARTS: usize = 5;
