//! Probes of the kubelet reach the application of a steered pod; the same from anybody else on the node does not.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::Path;

use signet_agent::kernel::CaptureState;

use crate::guards::{Netns, Node, POD_V4, POD_V6, Process, eventually};
use crate::inbound::{accept, accepted, pod_at, steered_pod};
use crate::require_root_and_ebpf;

/// A connection to the pod from a process of `cgroup` in `netns`.
fn connect(cgroup: &Path, netns: &Netns, ip: &str) -> (Process, io::Result<String>) {
    let to = pod_at(ip, 8080);
    let process = Process::start(cgroup, netns, || Ok((TcpStream::connect(to)?, String::new())));
    let said = process.said();
    (process, said)
}

#[test]
fn a_probe_reaches_the_application_and_the_same_from_another_process_does_not() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    let application = pod.netns.listen("[::]:8080");
    let (kubelet, login) = (node.cgroup("kubelet"), node.cgroup("login"));
    node.kernel.heartbeat().unwrap();
    for ip in [POD_V4, POD_V6] {
        let probe = connect(&kubelet, &outside, ip);
        probe.1.unwrap();
        accept(&application);
        assert_eq!(accepted(&engine.plaintext), None);
        let other = connect(&login, &outside, ip);
        other.1.unwrap();
        accept(&engine.plaintext);
        assert_eq!(accepted(&application), None);
    }
    eventually("the records have gone with the sockets", || {
        node.metric("signet_bpf_map_entries{map=\"flows\"}") == 0
    });
}

#[test]
fn a_kubelet_that_is_restarted_has_another_cgroup_and_is_known_again() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    let application = pod.netns.listen("[::]:8080");
    for _ in 0..2 {
        let kubelet = node.cgroup("kubelet");
        node.kernel.heartbeat().unwrap();
        let probe = connect(&kubelet, &outside, POD_V4);
        probe.1.unwrap();
        accept(&application);
        assert_eq!(accepted(&engine.plaintext), None);
        drop(probe.0);
        eventually("its cgroup is gone", || fs::remove_dir(&kubelet).is_ok());
        node.kernel.heartbeat().unwrap();
    }
}

#[test]
fn a_pods_cgroup_that_is_named_like_the_kubelets_is_a_pods() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    let application = pod.netns.listen("[::]:8080");
    node.cgroup("kubelet");
    node.kernel.heartbeat().unwrap();
    let liar = node.pod("liar");
    node.put(&liar, CaptureState::Bypass);
    let named = node.cgroup("pods/liar/kubelet");
    let connection = connect(&named, &outside, POD_V4);
    connection.1.unwrap();
    accept(&engine.plaintext);
    assert_eq!(accepted(&application), None);
}
