//! Connects of enrolled workloads: what reaches the engine, with which record, and what the application sees.

use std::io;
use std::net::{SocketAddr, TcpStream};

use crate::guards::{Node, Pod, socket_address};
use crate::require_root_and_ebpf;

/// The engine's end of one redirected connection.
struct Captured {
    origin: Option<signet_agent::kernel::Origin>,
}

/// Lets the pod connect by `work` while the test plays the engine on `listener`.
fn capture(
    node: &Node,
    pod: &Pod,
    listener: &str,
    work: impl FnOnce() -> io::Result<String>,
) -> (io::Result<String>, Captured) {
    let listener = pod.netns.listen(listener);
    let local = listener.local_addr().unwrap();
    let said = pod.run(work);
    listener.set_nonblocking(true).unwrap();
    let origin = match listener.accept() {
        Ok((_, client)) => node.kernel.origins().lookup(pod.netns.cookie, client, local),
        Err(_) => None,
    };
    (said, Captured { origin })
}

fn connect_and_name_peer(to: &str) -> impl FnOnce() -> io::Result<String> {
    let to: SocketAddr = socket_address(to);
    move || TcpStream::connect(to)?.peer_addr().map(|peer| peer.to_string())
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
        let (said, captured) = capture(&node, &pod, listener, connect_and_name_peer(to));
        assert_eq!(said.unwrap(), seen, "the application sees where it wanted to go");
        let origin = captured.origin.expect("there is a record");
        assert_eq!(origin.cgroup, pod.id());
        assert_eq!(origin.destination.socket(), signet_agent::addr::canonical(socket_address(to)));
    }
}
