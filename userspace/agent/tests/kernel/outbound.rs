//! Connects of enrolled workloads: what reaches the engine, with which record, and what the application sees.

use std::io;
use std::net::{SocketAddr, TcpStream};

use signet_agent::addr::OriginalDst;
use signet_agent::kernel::Origin;

use crate::guards::{Node, Pod, Process};
use crate::require_root_and_ebpf;

/// Lets a process of the pod open a connection by `work` while the test plays the engine on `listener`: what the
/// process says, and the origin of its connection.
fn capture<T>(
    node: &Node,
    pod: &Pod,
    listener: &str,
    work: impl FnOnce() -> io::Result<(T, String)>,
) -> (String, Option<Origin>) {
    let listener = pod.netns.listen(listener);
    let local = listener.local_addr().unwrap();
    let process = Process::start(&pod.cgroup, &pod.netns, work);
    let said = process.said().unwrap();
    let (_, client) = listener.accept().unwrap();
    (said, node.kernel.origins().lookup(pod.netns.cookie, client, local))
}

fn connect_and_name_peer(to: &str) -> impl FnOnce() -> io::Result<(TcpStream, String)> {
    let to: SocketAddr = to.parse().unwrap();
    move || {
        let stream = TcpStream::connect(to)?;
        let peer = stream.peer_addr()?.to_string();
        Ok((stream, peer))
    }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_connect_reaches_the_engine_with_its_origin() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    for (listener, to, seen) in [
        ("127.0.0.1:15001", "10.9.9.9:80", "10.9.9.9:80"),
        ("[::1]:15001", "[fd99::9]:8080", "[fd99::9]:8080"),
        ("127.0.0.1:15001", "[::ffff:10.9.9.9]:443", "[::ffff:10.9.9.9]:443"),
    ] {
        let (said, origin) = capture(&node, &pod, listener, connect_and_name_peer(to));
        assert_eq!(said, seen, "the application sees where it wanted to go");
        let origin = origin.expect("there is a record");
        assert_eq!(origin.cgroup, pod.id());
        assert_eq!(origin.destination, OriginalDst::new(socket(to)));
    }
}
