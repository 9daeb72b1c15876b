//! Connects of enrolled workloads: what reaches the engine, with which record, and what the application sees.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Uid, setresuid};
use signet_agent::addr::OriginalDst;
use signet_agent::kernel::{CaptureState, Origin};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::guards::{Node, POD_V4, POD_V6, Pod, Process, eventually, ip};
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
    let (_stream, client) = listener.accept().unwrap();
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

fn socket_address(text: &str) -> SocketAddr {
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
        assert_eq!(origin.destination, OriginalDst::new(socket_address(to)));
    }
}

/// The two families, each with the engine's listener and a destination.
const FAMILIES: [(&str, &str); 2] = [("127.0.0.1:15001", "10.9.9.9:80"), ("[::1]:15001", "[fd99::9]:80")];

/// Asserts that a socket opened by `open` is captured, with the pod's origin, and sees its destination as its peer.
fn is_captured(open: fn(SocketAddr) -> io::Result<Socket>) {
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    for (listener, to) in FAMILIES {
        let (said, origin) = capture(&node, &pod, listener, || {
            let socket = open(to.parse().unwrap())?;
            let peer = socket.peer_addr()?.as_socket().unwrap().to_string();
            Ok((socket, peer))
        });
        assert_eq!(said, to);
        let destination = OriginalDst::new(socket_address(to));
        assert_eq!(origin, Some(Origin { cgroup: pod.id(), destination, choice: None }));
    }
}

fn stream_socket(to: SocketAddr, protocol: Option<Protocol>) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, protocol)
}

/// Begins a connect without waiting for its end.
fn begin(to: SocketAddr) -> io::Result<(Socket, String)> {
    let socket = stream_socket(to, None)?;
    socket.set_nonblocking(true)?;
    let _ = socket.connect(&to.into());
    Ok((socket, String::new()))
}

#[test]
fn a_non_blocking_connect_is_captured() {
    require_root_and_ebpf!();
    is_captured(|to| {
        let socket = stream_socket(to, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&to.into()) {
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            other => other?,
        }
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        poll(&mut polled, PollTimeout::from(10_000_u16))?;
        socket.take_error()?.map_or(Ok(()), Err)?;
        Ok(socket)
    });
}

#[test]
fn tcp_fast_open_by_sendto_is_captured() {
    require_root_and_ebpf!();
    is_captured(|to| {
        let socket = stream_socket(to, None)?;
        socket.send_to_with_flags(b"hello", &to.into(), libc::MSG_FASTOPEN)?;
        Ok(socket)
    });
}

#[test]
fn an_mptcp_socket_is_captured() {
    require_root_and_ebpf!();
    is_captured(|to| {
        let socket = stream_socket(to, Some(Protocol::MPTCP))?;
        socket.connect(&to.into())?;
        Ok(socket)
    });
}

#[test]
fn a_connect_by_io_uring_is_captured() {
    require_root_and_ebpf!();
    is_captured(|to| {
        let socket = stream_socket(to, None)?;
        let address = SockAddr::from(to);
        let mut ring = IoUring::new(2)?;
        let connect =
            opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len());
        // SAFETY: the socket and the address outlive the operation, since its completion is waited for below.
        unsafe { ring.submission().push(&connect.build()) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        match ring.completion().next().expect("one was waited for").result() {
            0 => Ok(socket),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    });
}

#[test]
fn a_socket_bound_to_an_address_first_is_captured() {
    require_root_and_ebpf!();
    is_captured(|to| {
        let socket = stream_socket(to, None)?;
        let own: IpAddr = if to.is_ipv4() { POD_V4 } else { POD_V6 }.parse().unwrap();
        socket.bind(&SocketAddr::new(own, 0).into())?;
        socket.connect(&to.into())?;
        Ok(socket)
    });
}

#[test]
fn a_socket_bound_to_a_device_first_is_captured() {
    require_root_and_ebpf!();
    is_captured(|to| {
        let socket = stream_socket(to, None)?;
        socket.bind_device(Some(b"pod0"))?;
        socket.connect(&to.into())?;
        Ok(socket)
    });
}

#[test]
fn a_device_that_may_not_be_unbound_is_a_denial() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    for (_, to) in FAMILIES {
        let refused = pod.run(|| {
            let to: SocketAddr = to.parse().unwrap();
            let socket = stream_socket(to, None)?;
            setresuid(NOBODY, NOBODY, NOBODY)?;
            socket.bind_device(Some(b"pod0"))?;
            socket.connect(&to.into()).map(|()| String::new())
        });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
    assert_eq!(node.metric("signet_capture_faults_total{fault=\"bound_to_device\"}"), 2);
}

#[test]
fn a_process_in_a_nested_cgroup_keeps_its_workloads_identity() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    let nested = pod.cgroup.join("made/by/itself");
    std::fs::create_dir_all(&nested).unwrap();
    let listener = pod.netns.listen("127.0.0.1:15001");
    let process = Process::start(&nested, &pod.netns, connect_and_name_peer("10.9.9.9:80"));
    process.said().unwrap();
    let (_stream, client) = listener.accept().unwrap();
    let origin = node.kernel.origins().lookup(pod.netns.cookie, client, listener.local_addr().unwrap());
    assert_eq!(origin.map(|o| o.cgroup), Some(pod.id()));
}

#[test]
fn what_stays_in_the_namespace_is_left_alone() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    let _application = pod.netns.listen("[::]:9090");
    for to in ["127.0.0.1:9090", "[::1]:9090", "0.0.0.0:9090", "10.77.0.1:9090", "[fd77::1]:9090"] {
        let process = Process::start(&pod.cgroup, &pod.netns, connect_and_name_peer(to));
        let peer = process.said().unwrap();
        assert!(peer.ends_with(":9090"), "{to}: {peer}");
    }
    assert_eq!(node.metric("signet_bpf_map_entries{map=\"flows\"}"), 0);
}

#[test]
fn a_connect_straight_to_the_engine_has_no_record() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    for listener in ["127.0.0.1:15001", "[::1]:15001"] {
        let (_, origin) = capture(&node, &pod, listener, connect_and_name_peer(listener));
        assert_eq!(origin, None);
    }
}

#[test]
fn a_process_that_routes_the_engine_away_reaches_nobody() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    let outside = pod.netns.wire();
    let impostor = outside.listen("0.0.0.0:15001");
    node.enrol(&pod);
    // 127.0.0.1 is now at the other end of the wire, and answers.
    outside.enter(|| std::fs::write("/proc/sys/net/ipv4/conf/wire0/route_localnet", "1")).unwrap();
    pod.netns.enter(|| {
        std::fs::write("/proc/sys/net/ipv4/conf/pod0/route_localnet", "1").unwrap();
        ip("route del local 127.0.0.1 table local");
        ip("route del local 127.0.0.0/8 table local");
        ip("route add 127.0.0.1/32 via 10.77.0.2 dev pod0");
    });
    let _waiting = Process::start(&pod.cgroup, &pod.netns, || begin(socket_address("10.9.9.9:80")));
    eventually("a packet was dropped", || node.metric("signet_capture_faults_total{fault=\"diverted\"}") > 0);
    impostor.set_nonblocking(true).unwrap();
    assert_eq!(impostor.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn every_connection_takes_its_record_with_it() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    let flows = "signet_bpf_map_entries{map=\"flows\"}";
    let listener = pod.netns.listen("127.0.0.1:15001");
    let engine = std::thread::spawn(move || {
        // Three ways to end: the engine closes first, the client does, a reset.
        for number in 0..CONNECTIONS {
            let (stream, _) = listener.accept().unwrap();
            match number % 3 {
                0 => drop(stream),
                1 => drop(io::copy(&mut &stream, &mut io::sink())),
                _ => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
            }
        }
    });
    let connect = || {
        for number in 0..CONNECTIONS {
            let stream = match TcpStream::connect("10.9.9.9:80") {
                // On a busy machine it overtakes the connect that it is about.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && number % 3 == 2 => continue,
                connected => connected?,
            };
            if number % 3 != 1 {
                // The end of the file, or the reset.
                let _ = io::copy(&mut &stream, &mut io::sink());
            }
        }
        Ok(String::new())
    };
    pod.run(connect).unwrap();
    engine.join().unwrap();
    eventually("all records are gone", || node.metric(flows) == 0);
    assert_eq!(node.metric(REDIRECTS), u64::from(CONNECTIONS));
}

#[test]
fn a_client_that_writes_and_goes_is_still_known_when_the_engine_accepts() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    let flows = "signet_bpf_map_entries{map=\"flows\"}";
    for (listener, to) in FAMILIES {
        let listener = pod.netns.listen(listener);
        let to = socket_address(to);
        pod.run(|| io::Write::write_all(&mut TcpStream::connect(to)?, b"metric 1\n").map(|()| String::new()))
            .unwrap();
        let (stream, client) = listener.accept().unwrap();
        let local = listener.local_addr().unwrap();
        let origin = node.kernel.origins().lookup(pod.netns.cookie, client, local);
        assert_eq!(origin.map(|o| o.destination), Some(OriginalDst::new(to)));
        assert_eq!(io::read_to_string(&stream).unwrap(), "metric 1\n");
        drop(stream);
        eventually("the record is gone", || node.metric(flows) == 0);
    }
}

#[test]
fn a_refused_and_an_abandoned_connect_leave_no_record() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    let flows = "signet_bpf_map_entries{map=\"flows\"}";
    let refused = Process::start(&pod.cgroup, &pod.netns, connect_and_name_peer("10.9.9.9:80"));
    eventually("it waits for the engine", || node.metric(flows) == 1);
    // It leaves the mesh meanwhile: nobody will come to listen for it.
    node.put(&pod, CaptureState::Bypass);
    assert_eq!(refused.said().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    eventually("the refused one is gone", || node.metric(flows) == 0);
    node.enrol(&pod);
    // Loopback is down, so the SYN is never answered, and the process gives up.
    pod.netns.enter(|| ip("link set lo down"));
    let abandoned = Process::start(&pod.cgroup, &pod.netns, || begin(socket_address("10.9.9.9:80")));
    abandoned.said().unwrap();
    drop(abandoned);
    eventually("the abandoned one is gone", || node.metric(flows) == 0);
    assert_eq!(node.metric(REDIRECTS), 2);
}

const CONNECTIONS: u32 = 1000;
const REDIRECTS: &str = "signet_capture_verdicts_total{verdict=\"redirect\",reason=\"outbound\"}";
const NOBODY: Uid = Uid::from_raw(65534);

#[test]
fn a_port_that_the_engine_has_in_time_wait_connects_again() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("web");
    node.enrol(&pod);
    let listener = pod.netns.listen("127.0.0.1:15001");
    for _ in 0..2 {
        let client = Process::start(&pod.cgroup, &pod.netns, || {
            let to = socket_address("10.9.9.9:80");
            let socket = stream_socket(to, None)?;
            socket.bind(&socket_address("0.0.0.0:40001").into())?;
            socket.connect(&to.into())?;
            io::read_to_string(&socket).map(|said| ((), said))
        });
        // It closes first, and so has the connection in TIME_WAIT.
        drop(listener.accept().unwrap());
        client.said().unwrap();
    }
}
