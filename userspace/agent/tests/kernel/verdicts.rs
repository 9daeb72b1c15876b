//! Who may connect: not ready, unknown, outside, bypassed, nested; and what cannot be protected.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use signet_agent::config::{UnknownPods, Unprotected};
use signet_agent::kernel::{CaptureState, CapturedWorkload, KernelEvent};
use socket2::{Domain, Protocol, Socket, Type};

use crate::guards::{Netns, Node, POD_V4, Pod, Process, eventually};
use crate::require_root_and_ebpf;

/// Where a connect that passes is served: outside of the pod.
const SERVER: &str = "10.77.0.2:80";

/// A pod with a server at the other end of its wire.
fn pod_and_server(node: &Node) -> (Pod, Netns, TcpListener) {
    let pod = node.pod("web");
    let outside = pod.netns.wire();
    let server = outside.listen(SERVER);
    (pod, outside, server)
}

fn connect() -> io::Result<String> {
    TcpStream::connect(SERVER).map(|_| String::new())
}

fn is_denied(result: io::Result<String>) -> bool {
    result.is_err_and(|e| e.raw_os_error() == Some(libc::EPERM))
}

/// What a denied TCP connect fails with.
fn is_refused(result: io::Result<String>) -> bool {
    result.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

fn verdicts(verdict: &str, reason: &str) -> String {
    format!("signet_capture_verdicts_total{{verdict=\"{verdict}\",reason=\"{reason}\"}}")
}

#[test]
fn a_workload_that_is_not_ready_is_told_of_and_its_connects_wait() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, _outside, server) = pod_and_server(&node);
    node.kernel.heartbeat().unwrap();
    node.put(&pod, CaptureState::NotReady);
    let engine = pod.netns.listen("127.0.0.1:15001");
    [&server, &engine].into_iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
    let process = Process::start(&pod.cgroup, &pod.netns, || connect().map(|said| ((), said)));
    node.event(|event| *event == KernelEvent::Awaited(pod.id()));
    eventually("its SYN is sent again", || pod.netns.enter(syns_sent_again) >= 2);
    assert!(server.accept().is_err() && engine.accept().is_err(), "nobody hears of it");
    assert_eq!(node.metric(&verdicts("redirect", "not_ready")), 1);

    node.enrol(&pod);
    eventually("it reaches the engine", || engine.accept().is_ok());
    process.said().unwrap();
    assert!(server.accept().is_err());
}

#[test]
fn a_connect_waits_for_an_engine_that_is_started_again_and_keeps_its_record() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, _outside, server) = pod_and_server(&node);
    node.enrol(&pod);
    let process = Process::start(&pod.cgroup, &pod.netns, || connect().map(|said| ((), said)));
    eventually("its SYN is sent again", || pod.netns.enter(syns_sent_again) >= 2);
    node.restart();
    assert_eq!(node.metric("signet_bpf_map_entries{map=\"flows\"}"), 0, "a new engine removes all records");
    let engine = pod.netns.listen("127.0.0.1:15001");
    let (stream, client) = engine.accept().unwrap();
    process.said().unwrap();
    let origin = node.kernel.origins().lookup(pod.netns.cookie, client, stream.local_addr().unwrap());
    assert_eq!(origin.map(|origin| origin.cgroup), Some(pod.id()));
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err());
}

#[test]
fn an_engine_that_hangs_is_not_waited_for_and_one_that_is_gone_not_for_ever() {
    require_root_and_ebpf!();
    let mut node = Node::start_impatient();
    let (pod, _outside, _server) = pod_and_server(&node);
    node.enrol(&pod);
    let hanging = pod.netns.listen("127.0.0.1:15001");
    eventually("its heartbeat is too old", || is_refused(pod.run(connect)));
    assert_ne!(node.metric(&verdicts("deny", "engine_gone")), 0);
    drop(hanging);
    node.kernel.heartbeat().unwrap();
    assert!(is_refused(pod.run(connect)), "held at first, then let go");
}

#[test]
fn a_workload_that_is_not_ready_is_refused_without_an_engine() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, _outside, _server) = pod_and_server(&node);
    node.put(&pod, CaptureState::NotReady);
    assert!(is_refused(pod.run(connect)));
    assert_eq!(node.metric(&verdicts("deny", "engine_gone")), 1);
    let _local = pod.netns.listen("127.0.0.1:9090");
    pod.run(|| TcpStream::connect("127.0.0.1:9090").map(|_| String::new())).expect("it may talk to itself");
}

/// `TCPSynRetrans` of the calling thread's network namespace.
fn syns_sent_again() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "TCPSynRetrans").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

#[test]
fn a_pod_nobody_knows_is_denied_and_told_of_while_the_engine_lives() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, _outside, _server) = pod_and_server(&node);
    node.kernel.heartbeat().unwrap();
    assert!(is_refused(pod.run(connect)));
    node.event(|event| *event == KernelEvent::Awaited(pod.id()));
    assert_eq!(node.metric(&verdicts("deny", "unknown_pod")), 1);
}

#[test]
fn without_an_engine_configuration_decides_for_a_pod_nobody_knows() {
    require_root_and_ebpf!();
    for (unknown, verdict) in [(UnknownPods::Pass, "bypass"), (UnknownPods::Deny, "deny")] {
        let node = Node::start_with(unknown, Unprotected::Pass);
        let (pod, _outside, _server) = pod_and_server(&node);
        assert_eq!(is_refused(pod.run(connect)), verdict == "deny");
        assert_eq!(node.metric(&verdicts(verdict, "unknown_pod_engine_gone")), 1);
    }
}

#[test]
fn what_is_not_below_the_pods_root_is_left_alone() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, _outside, _server) = pod_and_server(&node);
    node.kernel.heartbeat().unwrap();
    let system = node.options.cgroup_root.join("system.slice");
    std::fs::create_dir(&system).unwrap();
    Process::start(&system, &pod.netns, || connect().map(|said| ((), said))).said().unwrap();
}

#[test]
fn a_pods_root_made_after_the_start_is_found() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    std::fs::remove_dir(node.options.cgroup_root.join("pods")).unwrap();
    node.restart();
    std::fs::create_dir(node.options.cgroup_root.join("pods")).unwrap();
    let (pod, _outside, _server) = pod_and_server(&node);
    node.kernel.heartbeat().unwrap();
    assert!(is_refused(pod.run(connect)));
}

#[test]
fn the_nearest_entry_decides() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, _outside, _server) = pod_and_server(&node);
    node.put(&pod, CaptureState::Redirect);
    let inner = Pod { cgroup: pod.cgroup.join("inner"), netns: pod.netns };
    std::fs::create_dir(&inner.cgroup).unwrap();
    assert!(is_refused(inner.run(connect)));
    assert_eq!(node.metric(&verdicts("deny", "engine_gone")), 1);
    node.put(&inner, CaptureState::Bypass);
    inner.run(connect).unwrap();
}

#[test]
fn udp_is_counted_and_passes_or_is_denied_as_configured() {
    require_root_and_ebpf!();
    for (unprotected, action) in [(Unprotected::Pass, "pass"), (Unprotected::Deny, "deny")] {
        let mut node = Node::start_with(UnknownPods::Pass, unprotected);
        let (pod, _outside, _server) = pod_and_server(&node);
        node.enrol(&pod);
        let send = |from: &'static str, to: &'static str| {
            pod.run(move || {
                let socket = UdpSocket::bind(from)?;
                socket.send_to(b"x", to.parse::<SocketAddr>().unwrap())?;
                socket.connect(to).map(|()| String::new())
            })
        };
        assert_eq!(is_denied(send("0.0.0.0:0", "10.77.0.2:53")), action == "deny");
        assert_eq!(is_denied(send("[::]:0", "[fd77::2]:53")), action == "deny");
        send("127.0.0.1:0", "127.0.0.1:53").expect("loopback stays");
        let counted =
            node.metric(&format!("signet_unprotected_sockets_total{{protocol=\"udp\",action=\"{action}\"}}"));
        assert_eq!(
            counted,
            if action == "deny" { 2 } else { 4 },
            "each sendto and each connect that was tried"
        );
    }
}

#[test]
fn raw_sockets_are_counted_and_denied_as_configured() {
    require_root_and_ebpf!();
    for (unprotected, action) in [(Unprotected::Pass, "pass"), (Unprotected::Deny, "deny")] {
        let mut node = Node::start_with(UnknownPods::Pass, unprotected);
        let (pod, _outside, _server) = pod_and_server(&node);
        node.enrol(&pod);
        let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).map(|_| String::new());
        assert_eq!(is_denied(pod.run(raw)), action == "deny");
        let ping = || Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).map(|_| String::new());
        assert_eq!(is_denied(pod.run(ping)), action == "deny");
        let counter = format!("signet_unprotected_sockets_total{{protocol=\"raw\",action=\"{action}\"}}");
        assert_eq!(node.metric(&counter), 2);
    }
}

/// Two hostNetwork workloads, `a` listening on port 8080 and `b` on port 8081, both at [`POD_V4`].
fn neighbours(node: &mut Node, shared: &Netns) -> (Pod, Process, Process) {
    let (a, b) = (node.pod("a"), node.pod("b"));
    for pod in [&a, &b] {
        let workload = CapturedWorkload {
            cgroup: pod.id(),
            addresses: vec![POD_V4.parse().unwrap()],
            host_network: true,
            capture: CaptureState::Redirect,
        };
        shared.enter(|| node.kernel.put_workload(&workload)).unwrap();
    }
    let listen = |cgroup: &Path, port: u16| {
        let process = Process::start(cgroup, shared, || {
            TcpListener::bind(("0.0.0.0", port)).map(|listener| (listener, String::new()))
        });
        process.said().unwrap();
        process
    };
    let listeners = (listen(&a.cgroup, 8080), listen(&b.cgroup, 8081));
    (a, listeners.0, listeners.1)
}

#[test]
fn at_a_shared_address_only_a_workloads_own_port_is_its_own() {
    require_root_and_ebpf!();
    let shared = Netns::new();
    let mut node = Node::start_in(&shared);
    let (a, _own, _neighbours) = neighbours(&mut node, &shared);
    let connect = |port: u16| {
        Process::start(&a.cgroup, &shared, || TcpStream::connect((POD_V4, port)).map(|_| ((), String::new())))
            .said()
    };
    connect(8080).expect("its own port stays local");
    assert_eq!(
        connect(8081).unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused,
        "captured, and no engine"
    );
}
