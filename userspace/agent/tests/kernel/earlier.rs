//! Connections that a pod has open when it is captured: which are found, whose they are, and that they can be ended.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use signet_agent::kernel::{CaptureState, EarlierSocket, Owner, Role};

use crate::guards::{Netns, Node, POD_V4, POD_V6, Pod, Process, eventually};
use crate::inbound::{Engine, pod_at, steered_pod};
use crate::require_root_and_ebpf;

/// What is there of a pod.
fn found(node: &Node, pod: &Pod) -> Vec<EarlierSocket> {
    let owner = Owner {
        cgroup: pod.id(),
        addresses: vec![POD_V4.parse().unwrap(), POD_V6.parse().unwrap()],
        host_network: false,
    };
    node.kernel.earlier().unwrap().find(pod.netns.cookie, &[owner]).unwrap()
}

fn dial(from: &Netns, to: SocketAddr) -> TcpStream {
    let stream = from.enter(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Either call may be the first to hear of it.
fn is_reset(mut stream: TcpStream) -> bool {
    let talk = stream.write_all(b"?").and_then(|()| stream.read(&mut [0]));
    talk.is_err_and(|e| matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
}

/// A process of a pod that listens on a port and accepts nothing; where `deferred`, the kernel waits for a connection's first
/// bytes.
fn serve(pod: &Pod, at: SocketAddr, deferred: bool) -> Process {
    Process::start(&pod.cgroup, &pod.netns, || {
        let listener = TcpListener::bind(at)?;
        if deferred {
            defer_accept(&listener)?;
        }
        Ok((listener, String::new()))
    })
}

fn defer_accept(listener: &TcpListener) -> io::Result<()> {
    let seconds: libc::c_int = 60;
    // SAFETY: the option's value is one integer, as long as said.
    let result = unsafe {
        let value = (&raw const seconds).cast();
        let option = libc::TCP_DEFER_ACCEPT;
        libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, option, value, 4)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn what_a_pod_has_open_when_it_is_captured_is_found_and_can_be_ended() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("server");
    node.put(&pod, CaptureState::Bypass);
    let outside = pod.netns.wire();
    let (v4, v6, waiting) = (pod_at(POD_V4, 8080), pod_at(POD_V6, 8081), pod_at(POD_V4, 8082));
    let serving = [serve(&pod, v4, false), serve(&pod, v6, false), serve(&pod, waiting, true)];
    serving.iter().for_each(|process| drop(process.said().unwrap()));
    let beyond = outside.listen("10.77.0.2:9000");
    let connecting = Process::start(&pod.cgroup, &pod.netns, || {
        let stream = TcpStream::connect("10.77.0.2:9000")?;
        Ok(((stream.try_clone()?, TcpStream::connect(v4)?), stream.local_addr()?.to_string()))
    });
    let own: SocketAddr = connecting.said().unwrap().parse().unwrap();
    let accepted = [v4, v6, waiting].map(|to| dial(&outside, to));
    node.enrol(&pod);
    let engine = Engine::start(&pod.netns);
    engine.steer(&mut node, &pod.netns, false);
    let mut wanted: Vec<_> = accepted
        .iter()
        .map(|stream| (Role::Server, stream.peer_addr().unwrap(), stream.local_addr().unwrap()))
        .collect();
    wanted.push((Role::Client, own, beyond.local_addr().unwrap()));
    let key = |(_, local, remote): &(Role, SocketAddr, SocketAddr)| (*local, *remote);
    wanted.sort_by_key(key);
    let seen = found(&node, &pod);
    let mut ends: Vec<_> = seen.iter().map(|socket| (socket.role, socket.local, socket.remote)).collect();
    ends.sort_by_key(key);
    // Not the one that the pod has to itself.
    assert_eq!(ends, wanted);
    assert!(seen.iter().all(|socket| socket.owner == pod.id()));
    node.kernel.earlier().unwrap().end(pod.netns.cookie, &seen).unwrap();
    assert!(accepted.into_iter().all(is_reset));
    eventually("nothing is left", || found(&node, &pod).is_empty());
}

#[test]
fn what_others_have_open_in_the_pods_namespace_is_not_its() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    // The engine's end of a connection in clear has the application's own address and port.
    let _client = dial(&outside, pod_at(POD_V4, 8080));
    let (_accepted, _) = engine.plaintext.accept().unwrap();
    let stranger = node.cgroup("stranger");
    let _beyond = outside.listen("10.77.0.2:9000");
    let connecting =
        Process::start(&stranger, &pod.netns, || Ok((TcpStream::connect("10.77.0.2:9000")?, String::new())));
    connecting.said().unwrap();
    assert_eq!(found(&node, &pod), []);
}

#[test]
fn a_namespace_that_is_not_served_is_not_found() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, ..) = steered_pod(&mut node);
    node.kernel.unsteer(pod.netns.cookie).unwrap();
    let error = node.kernel.earlier().unwrap().find(pod.netns.cookie, &[]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}
