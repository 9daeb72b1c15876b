//! Direct flows: who is let past the engine, by which servers, and what the kernel says of it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signet_agent::kernel::{
    CaptureState, CapturedWorkload, DirectEnd, DirectFlow, DirectRoute, DirectServer, DirectService,
    KernelEvent, SteeredListeners,
};
use signet_agent::policy::{Flow, Permit, PolicySet};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::mpsc::Receiver;

use crate::guards::{Netns, Node, Pod, Process, eventually, ip};
use crate::require_root_and_ebpf;

const CLIENT: [&str; 2] = ["10.77.0.2", "fd77::2"];
const SERVER: [&str; 2] = ["10.77.0.1", "fd77::1"];
const TO: [&str; 2] = ["10.77.0.1:8080", "[fd77::1]:8080"];

/// A client pod, wired to a server pod whose SYNs are steered to an engine that nobody plays.
struct Scene {
    client: Pod,
    server: Pod,
    application: TcpListener,
    plaintext: TcpListener,
    _hbone: TcpListener,
    ends: Receiver<Vec<DirectEnd>>,
    /// Dropped last.
    node: Node,
}

impl Scene {
    fn start() -> Self {
        let mut scene = Self::without_engine();
        scene.node.kernel.heartbeat().unwrap();
        scene
    }

    /// Nobody has stamped the heartbeat since the machine has started.
    fn without_engine() -> Self {
        let mut node = Node::start();
        let server = node.pod("server");
        let mut client = node.pod("client");
        client.netns = server.netns.wire();
        client.netns.enter(|| {
            ip("route add default dev wire0");
            ip("-6 route add default dev wire0");
        });
        for (pod, addresses) in [(&client, CLIENT), (&server, SERVER)] {
            put(&mut node, pod, &addresses, false);
        }
        let (plaintext, hbone) = (server.netns.listen("[::]:15006"), server.netns.listen("[::]:15008"));
        let to = SteeredListeners { plaintext: plaintext.as_fd(), hbone: hbone.as_fd() };
        node.steer(&server.netns, false, to);
        // Of the client's namespace only the door is needed: it keeps it, to look its sockets up.
        let nobody = client.netns.listen("[::]:15006");
        let to = SteeredListeners { plaintext: nobody.as_fd(), hbone: nobody.as_fd() };
        node.steer(&client.netns, false, to);
        let application = server.netns.listen("[::]:8080");
        let ends = node.kernel.take_ends().unwrap();
        Self { client, server, application, plaintext, _hbone: hbone, ends, node }
    }

    fn permit(&mut self, to: &str) {
        let permit = permit();
        let route = self.route(to);
        let server =
            DirectServer { cgroup: self.server.id(), netns: self.server.netns.cookie, host_network: false };
        self.node.kernel.direct().set_epoch(permit.epoch()).unwrap();
        self.node.kernel.direct().permit(route, server, &permit).unwrap();
    }

    fn route(&self, to: &str) -> DirectRoute {
        DirectRoute { client: self.client.id(), to: to.parse().unwrap() }
    }

    /// A process of the client that opens a connection by `work` and keeps it.
    fn open<T>(&self, work: impl FnOnce() -> io::Result<(T, String)>) -> Process {
        Process::start(&self.client.cgroup, &self.client.netns, work)
    }

    fn live(&mut self) -> Vec<DirectFlow> {
        self.node.kernel.direct().live().unwrap()
    }

    /// The one live flow.
    #[track_caller]
    fn flow(&mut self) -> DirectFlow {
        let live = self.live();
        assert_eq!(live.len(), 1, "{live:?}");
        live[0]
    }

    /// The next end that is told of.
    #[track_caller]
    fn end(&mut self) -> DirectEnd {
        let ends = &mut self.ends;
        let next = self.node.runtime.block_on(async { tokio::time::timeout(DEADLINE, ends.recv()).await });
        let batch = next.expect("an end is told of").expect("the kernel side lives");
        assert_eq!(batch.len(), 1, "{batch:?}");
        batch[0]
    }

    fn stray(&mut self) -> DirectFlow {
        match self.node.event(|event| matches!(event, KernelEvent::DirectStray(_))) {
            KernelEvent::DirectStray(flow) => flow,
            other => panic!("{other:?}"),
        }
    }
}

fn put(node: &mut Node, pod: &Pod, addresses: &[&str], host_network: bool) {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let workload =
        CapturedWorkload { cgroup: pod.id(), addresses, host_network, capture: CaptureState::Redirect };
    node.kernel.put_workload(&workload).unwrap();
}

/// Nothing is denied where there is no policy.
fn permit() -> Permit {
    let labels = std::collections::BTreeMap::new();
    let address = SERVER[0].parse().unwrap();
    let flow = Flow {
        identity: None,
        source_ip: address,
        remote_ip: address,
        namespace: "ns",
        labels: &labels,
        destination_ip: address,
        destination_port: 8080,
    };
    PolicySet::new("istio-system").authorize(&flow).unwrap()
}

fn socket(to: &str, protocol: Option<Protocol>) -> io::Result<(Socket, SockAddr)> {
    let to: SocketAddr = to.parse().unwrap();
    Ok((Socket::new(Domain::for_address(to), Type::STREAM, protocol)?, to.into()))
}

/// Connects, says what getpeername says, and keeps the connection.
fn connect(to: &str) -> impl FnOnce() -> io::Result<(TcpStream, String)> {
    let to: SocketAddr = to.parse().unwrap();
    move || {
        let stream = TcpStream::connect(to)?;
        let peer = stream.peer_addr()?.to_string();
        Ok((stream, peer))
    }
}

/// The connection that the application gets, after which nobody waits for it.
#[track_caller]
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    eventually("a connection arrives", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, peer) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    (stream, signet_agent::addr::canonical(peer))
}

fn is_idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_permitted_connection_reaches_the_application_itself() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    for (to, own) in TO.into_iter().zip(CLIENT) {
        scene.permit(to);
        let client = scene.open(connect(to));
        assert_eq!(client.said().unwrap(), to);
        let (_stream, peer) = accept(&scene.application);
        assert_eq!(peer.ip().to_string(), own);
        let flow = scene.flow();
        assert_eq!((flow.client, flow.server), (scene.client.id(), scene.server.id()));
        assert_eq!((flow.source, flow.destination.to_string()), (peer, to.to_owned()));
        assert!(flow.established && flow.netns == scene.client.netns.cookie);
        drop(client);
        assert_eq!(scene.end().flow.source, peer);
        assert!(scene.live().is_empty());
    }
    assert!(is_idle(&scene.plaintext));
    assert_eq!(
        scene.node.metric("signet_capture_verdicts_total{verdict=\"direct\",reason=\"permitted\"}"),
        2
    );
}

#[test]
fn every_kind_of_connect_is_let_past() {
    require_root_and_ebpf!();
    type Open = fn(&str) -> io::Result<Socket>;
    let kinds: [(&str, Open); 7] = [
        ("non-blocking", |to| {
            let (socket, to) = socket(to, None)?;
            socket.set_nonblocking(true)?;
            match socket.connect(&to) {
                Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
                other => other?,
            }
            poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(10_000_u16))?;
            socket.take_error()?.map_or(Ok(socket), Err)
        }),
        ("fast open", |to| {
            let (socket, to) = socket(to, None)?;
            socket.send_to_with_flags(b"hello", &to, libc::MSG_FASTOPEN)?;
            Ok(socket)
        }),
        ("mptcp", |to| {
            let (socket, to) = socket(to, Some(Protocol::MPTCP))?;
            socket.connect(&to)?;
            Ok(socket)
        }),
        ("io_uring", |to| {
            let (socket, to) = socket(to, None)?;
            let mut ring = io_uring::IoUring::new(2)?;
            let fd = io_uring::types::Fd(socket.as_raw_fd());
            let connect = io_uring::opcode::Connect::new(fd, to.as_ptr().cast(), to.len());
            // SAFETY: the socket and the address outlive the operation, since its completion is waited for below.
            unsafe { ring.submission().push(&connect.build()) }.map_err(io::Error::other)?;
            ring.submit_and_wait(1)?;
            match ring.completion().next().expect("one was waited for").result() {
                0 => Ok(socket),
                error => Err(io::Error::from_raw_os_error(-error)),
            }
        }),
        ("bound to an address", |to| {
            let (socket, to) = socket(to, None)?;
            let own = if to.is_ipv4() { CLIENT[0] } else { CLIENT[1] };
            socket.bind(&SocketAddr::new(own.parse().unwrap(), 0).into())?;
            socket.connect(&to)?;
            Ok(socket)
        }),
        ("bound to a port", |to| {
            let (socket, to) = socket(to, None)?;
            let any = if to.is_ipv4() { "0.0.0.0:4444" } else { "[::]:4445" };
            socket.bind(&any.parse::<SocketAddr>().unwrap().into())?;
            socket.connect(&to)?;
            Ok(socket)
        }),
        ("bound to a device", |to| {
            let (socket, to) = socket(to, None)?;
            socket.bind_device(Some(b"wire0"))?;
            socket.connect(&to)?;
            Ok(socket)
        }),
    ];
    let mut scene = Scene::start();
    for (name, open) in kinds {
        for to in TO {
            scene.permit(to);
            let client = scene.open(|| {
                let socket = open(to)?;
                let peer = socket.peer_addr()?.as_socket().unwrap().to_string();
                Ok((socket, peer))
            });
            assert_eq!(client.said().unwrap_or_else(|e| panic!("{name}: {e}")), to, "{name}");
            let (stream, peer) = accept(&scene.application);
            assert_eq!(scene.flow().source, peer, "{name}");
            drop(stream);
            drop(client);
            assert_eq!(scene.end().flow.source, peer, "{name}");
        }
    }
    // An IPv4 address in its mapped form is the same.
    let client = scene.open(connect("[::ffff:10.77.0.1]:8080"));
    assert_eq!(client.said().unwrap(), "[::ffff:10.77.0.1]:8080");
    accept(&scene.application);
    assert_eq!(scene.flow().destination.to_string(), TO[0]);
    assert!(is_idle(&scene.plaintext));
}

#[test]
fn without_a_permit_that_holds_the_engine_is_asked() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    let engine = scene.client.netns.listen("127.0.0.1:15001");
    let asked = |scene: &Scene| {
        let client = scene.open(connect(TO[0]));
        assert_eq!(client.said().unwrap(), TO[0]);
        accept(&engine);
    };
    asked(&scene);
    scene.permit(TO[0]);
    scene.node.kernel.direct().set_epoch(1).unwrap();
    asked(&scene);
    let route = scene.route(TO[0]);
    assert!(!scene.node.kernel.direct().is_used(route));
    scene.permit(TO[0]);
    scene.node.kernel.direct().forbid(route).unwrap();
    asked(&scene);
    scene.permit("10.77.0.1:8081");
    asked(&scene);
    assert!(is_idle(&scene.application));
    scene.permit(TO[0]);
    let client = scene.open(connect(TO[0]));
    client.said().unwrap();
    accept(&scene.application);
    assert!(scene.node.kernel.direct().is_used(route));
}

#[test]
fn a_restarted_engine_has_permitted_nothing_and_finds_the_live_flows() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    scene.permit(TO[0]);
    let client = scene.open(|| {
        let mut stream = TcpStream::connect(TO[0])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok((stream, String::new()))
    });
    let (mut stream, peer) = accept(&scene.application);
    scene.node.restart();
    assert_eq!(scene.flow().source, peer);
    stream.write_all(b"!").unwrap();
    client.said().expect("the connection goes on");
    scene.node.kernel.heartbeat().unwrap();
    scene.node.kernel.direct().set_epoch(0).unwrap();
    let engine = scene.client.netns.listen("127.0.0.1:15001");
    let captured = scene.open(connect(TO[0]));
    engine.accept().unwrap();
    captured.said().unwrap();
    assert!(is_idle(&scene.application));
}

#[test]
fn without_a_living_engine_nothing_new_is_direct() {
    require_root_and_ebpf!();
    let mut scene = Scene::without_engine();
    scene.permit(TO[0]);
    let refused = scene.client.run(|| TcpStream::connect(TO[0]).map(|_| String::new()));
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert!(is_idle(&scene.application));
    let gone = "signet_capture_verdicts_total{verdict=\"deny\",reason=\"engine_gone\"}";
    assert_eq!(scene.node.metric(gone), 1);
}

#[test]
fn a_server_in_another_namespace_than_permitted_lets_nobody_in() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    let permit = permit();
    let (route, cgroup) = (scene.route(TO[0]), scene.server.id());
    // The address had another owner when the permit was made.
    let server = DirectServer { cgroup, netns: scene.client.netns.cookie, host_network: false };
    scene.node.kernel.direct().set_epoch(permit.epoch()).unwrap();
    scene.node.kernel.direct().permit(route, server, &permit).unwrap();
    let client = scene.open(|| {
        let mut stream = TcpStream::connect(TO[0])?;
        stream.write_all(b"for the server's eyes only")?;
        Ok((stream, String::new()))
    });
    client.said().unwrap();
    let flow = scene.stray();
    assert!(scene.node.kernel.direct().destroy(&flow).unwrap());
    // Not even the end of the handshake has left the client's namespace.
    let faults = scene.node.metric("signet_capture_faults_total{fault=\"stray\"}");
    assert!(faults >= 3, "{faults}: the answer, the acknowledgement and the data");
    assert!(is_idle(&scene.application) && is_idle(&scene.plaintext));
    assert_eq!(scene.node.metric("signet_bpf_map_entries{map=\"direct\"}"), 0);
}

#[test]
fn nobody_gets_in_with_the_ends_of_somebody_elses_flow() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    scene.permit(TO[0]);
    let client = scene.open(connect(TO[0]));
    client.said().unwrap();
    let (_stream, peer) = accept(&scene.application);
    let engine = scene.client.netns.listen("127.0.0.1:15001");
    // A stranger in the client's namespace, which the kernel does not capture: another port, then the flow's own.
    let _other = scene.client.netns.enter(|| TcpStream::connect(TO[0]).unwrap());
    accept(&scene.plaintext);
    assert!(is_idle(&engine));
    let syns = "signet_capture_verdicts_total{verdict=\"bypass\",reason=\"direct_syn\"}";
    let before = scene.node.metric(syns);
    scene.client.netns.enter(|| forge_syn(peer, TO[0].parse().unwrap())).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(scene.node.metric(syns), before, "the record had let its one connection in");
    assert!(is_idle(&scene.application));
}

/// Sends a SYN from an address and port that is not the sender's.
fn forge_syn(from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("IPv4") };
    let mut syn = Vec::new();
    syn.extend(from.port().to_be_bytes());
    syn.extend(to.port().to_be_bytes());
    syn.extend([0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, 6, 0, 20], &syn].concat();
    let sum: u32 = pseudo.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    syn[16..18].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    raw.bind(&SocketAddr::new((*from.ip()).into(), 0).into())?;
    raw.send_to(&syn, &SocketAddr::new((*to.ip()).into(), 0).into()).map(drop)
}

#[test]
fn a_source_that_is_not_known_to_be_the_workloads_is_not_let_past() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    scene.client.netns.enter(|| ip("addr add 10.77.0.3/24 dev wire0"));
    scene.permit(TO[0]);
    let client = scene.open(|| {
        let (socket, to) = socket(TO[0], None)?;
        socket.bind(&"10.77.0.3:0".parse::<SocketAddr>().unwrap().into())?;
        socket.connect(&to)?;
        Ok((socket, String::new()))
    });
    client.said().unwrap();
    scene.stray();
    assert!(is_idle(&scene.application) && is_idle(&scene.plaintext));
    assert!(scene.node.metric("signet_capture_faults_total{fault=\"foreign_source\"}") > 0);
}

#[test]
fn a_flow_is_destroyed_whatever_its_owner_has_bound_it_to() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    for (to, device) in [(TO[0], None), (TO[1], None), (TO[0], Some(b"wire0")), (TO[1], Some(b"wire0"))] {
        scene.permit(to);
        let client = scene.open(|| {
            let (socket, to) = socket(to, None)?;
            socket.connect(&to)?;
            socket.bind_device(device.map(|device| &device[..]))?;
            let answer = (&socket).read(&mut [0]);
            Ok((socket, answer.expect_err("nobody writes").kind().to_string()))
        });
        let (mut stream, _) = accept(&scene.application);
        let flow = scene.flow();
        assert!(scene.node.kernel.direct().destroy(&flow).unwrap(), "{device:?}");
        assert_eq!(client.said().unwrap(), "connection aborted");
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(scene.end().flow.socket, flow.socket);
        assert!(!scene.node.kernel.direct().destroy(&flow).unwrap(), "it has ended");
    }
}

#[test]
fn bytes_are_the_applications_own_however_a_flow_ends() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    scene.permit(TO[0]);
    type End = fn(TcpStream);
    let waits: End = |mut stream| drop(stream.read(&mut [0]));
    let half_closes: End = |mut stream| {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0]);
    };
    let resets: End = |stream| socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    let endings = [
        ("the client first", half_closes, waits),
        ("the server first", waits, half_closes),
        ("both at once", half_closes, half_closes),
        ("a reset by the client", resets, waits),
        ("a reset by the server", waits, resets),
    ];
    for (name, at_client, at_server) in endings {
        let client = scene.open(|| {
            let mut stream = TcpStream::connect(TO[0])?;
            stream.write_all(&[7; 1000])?;
            stream.read_exact(&mut [0; 3000])?;
            at_client(stream);
            Ok(((), String::new()))
        });
        let (mut stream, _) = accept(&scene.application);
        stream.read_exact(&mut [0; 1000]).unwrap();
        // Before the answer: a client that has it may have ended the flow already.
        let flow = scene.flow();
        stream.write_all(&[9; 3000]).unwrap();
        eventually("all is acknowledged", || {
            let carried = scene.node.kernel.direct().flows().bytes(&[flow]);
            carried.get(&flow.socket).is_none_or(|bytes| bytes.received == 3000)
        });
        at_server(stream);
        client.said().unwrap();
        let end = scene.end();
        assert_eq!((end.bytes.sent, end.bytes.received), (1000, 3000), "{name}");
        assert!(end.flow.established);
    }
}

#[test]
fn what_a_live_flow_has_carried_is_told() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    for to in TO {
        scene.permit(to);
        let client = scene.open(|| {
            let mut stream = TcpStream::connect(to)?;
            stream.write_all(b"twelve bytes")?;
            Ok((stream, String::new()))
        });
        let (mut stream, _) = accept(&scene.application);
        stream.read_exact(&mut [0; 12]).unwrap();
        client.said().unwrap();
        let flow = scene.flow();
        eventually("they are acknowledged", || {
            let carried = scene.node.kernel.direct().flows().bytes(&[flow]);
            carried.get(&flow.socket).is_some_and(|bytes| bytes.sent == 12 && bytes.received == 0)
        });
        drop(client);
        scene.end();
    }
}

#[test]
fn a_refused_and_an_abandoned_connect_are_told_of_and_leave_no_record() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    scene.permit("10.77.0.1:8081");
    let refused = scene.client.run(|| TcpStream::connect("10.77.0.1:8081").map(|_| String::new()));
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert!(!scene.end().flow.established);
    scene.server.netns.enter(|| ip("link set pod0 down"));
    scene.permit(TO[0]);
    let abandoned = scene.open(|| {
        let (socket, to) = socket(TO[0], None)?;
        socket.set_nonblocking(true)?;
        let _ = socket.connect(&to);
        Ok((socket, String::new()))
    });
    abandoned.said().unwrap();
    drop(abandoned);
    assert!(!scene.end().flow.established);
    assert!(scene.live().is_empty());
}

#[test]
fn many_short_connections_leave_nothing_and_lose_nothing() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    scene.permit(TO[0]);
    let application = scene.application.try_clone().unwrap();
    let echo = std::thread::spawn(move || {
        for _ in 0..SHORT {
            let (mut stream, _) = application.accept().unwrap();
            let mut text = [0; 5];
            stream.read_exact(&mut text).unwrap();
            stream.write_all(&text).unwrap();
        }
    });
    let work = || {
        for _ in 0..SHORT {
            let mut stream = TcpStream::connect(TO[0])?;
            stream.write_all(b"hello")?;
            stream.read_exact(&mut [0; 5])?;
        }
        Ok(String::new())
    };
    scene.client.run(work).unwrap();
    echo.join().unwrap();
    let mut told = 0;
    while told < SHORT {
        let ends = &mut scene.ends;
        let next = scene.node.runtime.block_on(async { tokio::time::timeout(DEADLINE, ends.recv()).await });
        let batch = next.expect("every end is told of").unwrap();
        assert!(batch.iter().all(|end| (end.bytes.sent, end.bytes.received) == (5, 5)), "{batch:?}");
        told += batch.len();
    }
    assert!(scene.live().is_empty());
    assert_eq!(scene.node.metric("signet_direct_ends_lost_total"), 0);
}

#[test]
fn a_service_leads_to_its_endpoints_and_the_client_does_not_notice() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    for (vip, endpoint) in [("10.96.0.1:80", TO[0]), ("[fd96::1]:80", TO[1])] {
        let service = DirectService { affinity: false, backends: vec![endpoint.parse().unwrap()] };
        assert!(scene.node.kernel.direct().put_service(vip.parse().unwrap(), &service).unwrap());
        scene.permit(endpoint);
        for protocol in [None, Some(Protocol::MPTCP)] {
            let client = scene.open(|| {
                let (socket, to) = socket(vip, protocol)?;
                socket.connect(&to)?;
                let peer = socket.peer_addr()?.as_socket().unwrap().to_string();
                Ok((socket, peer))
            });
            assert_eq!(client.said().unwrap(), vip);
            accept(&scene.application);
            let flow = scene.flow();
            assert_eq!(flow.destination.to_string(), endpoint);
            assert_eq!(flow.asked.to_string(), vip);
            drop(client);
            scene.end();
        }
    }
}

#[test]
fn a_choice_that_is_not_permitted_goes_to_the_engine_with_the_connection() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    let engine = scene.client.netns.listen("127.0.0.1:15001");
    let (vip, backend): (SocketAddr, SocketAddr) =
        ("10.96.0.1:80".parse().unwrap(), "10.88.0.9:9999".parse().unwrap());
    let service = DirectService { affinity: true, backends: vec![backend] };
    scene.node.kernel.direct().put_service(vip, &service).unwrap();
    let client = scene.open(connect("10.96.0.1:80"));
    assert_eq!(client.said().unwrap(), "10.96.0.1:80");
    let (stream, peer) = accept(&engine);
    let origin =
        scene.node.kernel.origins().lookup(scene.client.netns.cookie, peer, stream.local_addr().unwrap());
    let origin = origin.expect("there is a record");
    assert_eq!((origin.destination.socket(), origin.choice), (vip, Some(backend)));
    let too_many = DirectService { affinity: false, backends: vec![backend; 65] };
    assert!(!scene.node.kernel.direct().put_service(vip, &too_many).unwrap());
    let client = scene.open(connect("10.96.0.1:80"));
    client.said().unwrap();
    let (stream, peer) = accept(&engine);
    let origin =
        scene.node.kernel.origins().lookup(scene.client.netns.cookie, peer, stream.local_addr().unwrap());
    assert_eq!(origin.unwrap().choice, None);
}

#[test]
fn affinity_sends_a_client_where_the_engine_would() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    let engine = scene.client.netns.listen("127.0.0.1:15001");
    let vip = "10.96.0.1:80".parse().unwrap();
    for count in [1_u8, 2, 5, 17, 64] {
        let backends: Vec<SocketAddr> =
            (1..=count).map(|n| SocketAddr::new([10, 88, 0, n].into(), 80)).collect();
        let expected = signet_agent::state::belonging(CLIENT[0].parse().unwrap(), &backends);
        let service = DirectService { affinity: true, backends };
        scene.node.kernel.direct().put_service(vip, &service).unwrap();
        for _ in 0..3 {
            let client = scene.open(connect("10.96.0.1:80"));
            client.said().unwrap();
            let (stream, peer) = accept(&engine);
            let local = stream.local_addr().unwrap();
            let origin = scene.node.kernel.origins().lookup(scene.client.netns.cookie, peer, local).unwrap();
            assert_eq!(origin.choice, expected, "of {count}");
        }
    }
}

#[test]
fn without_affinity_every_endpoint_is_chosen() {
    require_root_and_ebpf!();
    let mut scene = Scene::start();
    let engine = scene.client.netns.listen("127.0.0.1:15001");
    let vip = "10.96.0.1:80".parse().unwrap();
    let backends: Vec<SocketAddr> = (1..=3).map(|n| SocketAddr::new([10, 88, 0, n].into(), 80)).collect();
    let service = DirectService { affinity: false, backends: backends.clone() };
    scene.node.kernel.direct().put_service(vip, &service).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    let client = scene.open(|| {
        let open = || TcpStream::connect(vip);
        let streams = (0..90).map(|_| open()).collect::<io::Result<Vec<_>>>()?;
        Ok((streams, String::new()))
    });
    client.said().unwrap();
    for _ in 0..90 {
        let (stream, peer) = accept(&engine);
        let local = stream.local_addr().unwrap();
        let origin = scene.node.kernel.origins().lookup(scene.client.netns.cookie, peer, local).unwrap();
        *counts.entry(origin.choice.unwrap()).or_insert(0) += 1;
    }
    // 30 each; below 10 is once in a million runs.
    assert!(
        backends.iter().all(|backend| counts.get(backend).is_some_and(|count| *count >= 10)),
        "{counts:?}"
    );
}

#[test]
fn in_a_shared_namespace_the_port_must_be_the_servers_own() {
    require_root_and_ebpf!();
    let shared = Netns::new();
    let mut node = Node::start_in(&shared);
    let (server, client) = (node.pod("server"), node.pod("client"));
    shared.enter(|| {
        put(&mut node, &server, &SERVER, true);
        put(&mut node, &client, &SERVER, true);
    });
    let engine = [shared.listen("[::]:15006"), shared.listen("[::]:15008")];
    let to = SteeredListeners { plaintext: engine[0].as_fd(), hbone: engine[1].as_fd() };
    node.steer(&shared, true, to);
    node.kernel.heartbeat().unwrap();
    let listen = |pod: &Pod| {
        Process::start(&pod.cgroup, &shared, || {
            TcpListener::bind("0.0.0.0:8080").map(|listener| (listener, String::new()))
        })
    };
    let permit = permit();
    let route = DirectRoute { client: client.id(), to: TO[0].parse().unwrap() };
    let place = DirectServer { cgroup: server.id(), netns: shared.cookie, host_network: true };
    node.kernel.direct().set_epoch(permit.epoch()).unwrap();
    node.kernel.direct().permit(route, place, &permit).unwrap();
    let connect = || Process::start(&client.cgroup, &shared, connect(TO[0]));

    let serving = listen(&server);
    serving.said().unwrap();
    let direct = connect();
    direct.said().unwrap();
    assert_eq!(node.kernel.direct().live().unwrap().len(), 1);
    drop(direct);
    eventually("its record has gone", || node.kernel.direct().live().unwrap().is_empty());
    drop(serving);

    let other = listen(&client);
    other.said().unwrap();
    let own = connect();
    own.said().expect("its own port is no business of the mesh");
    assert!(node.kernel.direct().live().unwrap().is_empty());
    drop((own, other));
    let outbound = shared.listen("127.0.0.1:15001");
    let captured = connect();
    outbound.accept().unwrap();
    captured.said().unwrap();
}

const SHORT: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(20);
