//! SYNs from outside: which listener gets them, and what happens when it is gone.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use signet_agent::kernel::{CaptureState, CapturedWorkload, SteeredListeners};
use signet_agent::net;
use signet_common::ABI_VERSION;

use crate::guards::{Netns, Node, POD_V4, POD_V6, Pod, Process, eventually};
use crate::require_root_and_ebpf;

/// The engine's listeners in a namespace.
pub(crate) struct Engine {
    pub(crate) plaintext: TcpListener,
    hbone: TcpListener,
}

impl Engine {
    pub(crate) fn start(netns: &Netns) -> Self {
        Self { plaintext: netns.listen("[::]:15006"), hbone: netns.listen("[::]:15008") }
    }

    pub(crate) fn steer(&self, node: &mut Node, netns: &Netns, host: bool) {
        let to = SteeredListeners { plaintext: self.plaintext.as_fd(), hbone: self.hbone.as_fd() };
        node.steer(netns, host, to);
    }
}

/// The address that the next connection on `listener` is made to.
#[track_caller]
pub(crate) fn accept(listener: &TcpListener) -> SocketAddr {
    let mut to = None;
    eventually("a connection arrives", || {
        to = accepted(listener);
        to.is_some()
    });
    to.unwrap()
}

/// The same for one that has arrived already.
pub(crate) fn accepted(listener: &TcpListener) -> Option<SocketAddr> {
    listener.set_nonblocking(true).unwrap();
    match listener.accept() {
        Ok((stream, _)) => Some(stream.local_addr().unwrap()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
        Err(e) => panic!("{e}"),
    }
}

pub(crate) fn pod_at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Begins a connect without waiting for its end.
fn begin(from: &Netns, to: SocketAddr) -> socket2::Socket {
    from.enter(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&to.into());
        socket
    })
}

/// Connects from an address and port of the namespace.
fn bound_connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
    Ok(socket.into())
}

pub(crate) fn steered_pod(node: &mut Node) -> (Pod, Netns, Engine) {
    let pod = node.pod("server");
    node.enrol(&pod);
    let outside = pod.netns.wire();
    let engine = Engine::start(&pod.netns);
    engine.steer(node, &pod.netns, false);
    (pod, outside, engine)
}

#[test]
fn a_syn_from_outside_reaches_the_engine_and_one_from_inside_the_application() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    let application = pod.netns.listen("[::]:8080");
    for ip in [POD_V4, POD_V6] {
        let _client = outside.enter(|| TcpStream::connect(pod_at(ip, 8080)).unwrap());
        let seen = accept(&engine.plaintext);
        assert_eq!(signet_agent::addr::canonical(seen), pod_at(ip, 8080));
        let _client = outside.enter(|| TcpStream::connect(pod_at(ip, 15008)).unwrap());
        accept(&engine.hbone);
        assert_eq!(accepted(&application), None);
        let _client = pod.netns.enter(|| TcpStream::connect(pod_at(ip, 8080)).unwrap());
        accept(&application);
    }
}

#[test]
fn without_a_listener_a_syn_waits_for_it_and_never_reaches_the_application() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    let application = pod.netns.listen("[::]:8080");
    drop(engine);
    let clients = [POD_V4, POD_V6].map(|ip| begin(&outside, pod_at(ip, 8080)));
    let held = "signet_capture_verdicts_total{verdict=\"redirect\",reason=\"not_ready\"}";
    eventually("both SYNs have arrived", || node.metric(held) >= 2);
    // One for the engine itself is refused: other engines know of other endpoints.
    let gone = "signet_capture_faults_total{fault=\"listener_gone\"}";
    let _engines = begin(&outside, pod_at(POD_V4, 15008));
    eventually("it is refused", || node.metric(gone) >= 1);
    assert_eq!(accepted(&application), None);
    let engine = Engine::start(&pod.netns);
    engine.steer(&mut node, &pod.netns, false);
    for _ in &clients {
        accept(&engine.plaintext);
    }
    assert_eq!(accepted(&application), None);
}

/// Its engine has died while it let a namespace go.
#[test]
fn a_hold_without_steering_is_found_and_removed() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    let application = pod.netns.listen("[::]:8080");
    drop(engine);
    let cookie = pod.netns.cookie;
    for pin in [format!("links/netns-{cookie}"), format!("abi-{ABI_VERSION}/netns/{cookie}")] {
        std::fs::remove_file(node.options.pin_root.join(pin)).unwrap();
    }
    assert_eq!(node.kernel.steered(), [cookie]);
    node.kernel.unsteer(cookie).unwrap();
    assert_eq!(node.kernel.steered(), []);
    // The steering's link goes some time after its pin.
    eventually("the application is reached", || {
        let _client = begin(&outside, pod_at(POD_V4, 8080));
        accepted(&application).is_some()
    });
}

/// As on a kernel that cannot hold it.
#[test]
fn a_syn_that_is_not_held_is_refused_without_a_listener() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    let application = pod.netns.listen("[::]:8080");
    drop(engine);
    let links = std::fs::read_dir(node.options.pin_root.join("links")).unwrap();
    let holds = links
        .map(|link| link.unwrap())
        .filter(|link| link.file_name().to_string_lossy().starts_with("hold-"));
    let removed = holds.map(|hold| std::fs::remove_file(hold.path()).unwrap()).count();
    assert_eq!(removed, 1);
    // A link without a pin goes some time later.
    let dropped = "signet_capture_faults_total{fault=\"listener_gone\"}";
    eventually("a SYN is refused", || {
        let _clients = [POD_V4, POD_V6].map(|ip| begin(&outside, pod_at(ip, 8080)));
        node.metric(dropped) >= 2
    });
    assert_eq!(accepted(&application), None);
}

#[test]
fn after_unsteering_the_application_is_reached_again() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, _engine) = steered_pod(&mut node);
    let application = pod.netns.listen("[::]:8080");
    assert_eq!(node.kernel.steered(), [pod.netns.cookie]);
    node.kernel.unsteer(pod.netns.cookie).unwrap();
    assert_eq!(node.kernel.steered(), []);
    let _client = outside.enter(|| TcpStream::connect(pod_at(POD_V4, 8080)).unwrap());
    accept(&application);
}

#[test]
fn a_restarted_engine_takes_its_namespaces_over() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let (pod, outside, engine) = steered_pod(&mut node);
    drop(engine);
    node.restart();
    assert_eq!(node.kernel.steered(), [pod.netns.cookie]);
    let engine = Engine::start(&pod.netns);
    engine.steer(&mut node, &pod.netns, false);
    let _client = outside.enter(|| TcpStream::connect(pod_at(POD_V4, 8080)).unwrap());
    accept(&engine.plaintext);
}

/// A hostNetwork workload: it is enrolled below a node whose own namespace is `shared`, with an engine that lives.
fn share(node: &mut Node, pod: &Pod, shared: &Netns) {
    node.kernel.heartbeat().unwrap();
    put_shared(node, pod, shared, CaptureState::Redirect);
}

fn put_shared(node: &mut Node, pod: &Pod, shared: &Netns, capture: CaptureState) {
    let addresses = vec![POD_V4.parse().unwrap()];
    let workload = CapturedWorkload { cgroup: pod.id(), addresses, host_network: true, capture };
    shared.enter(|| node.kernel.put_workload(&workload)).unwrap();
}

fn listening(cgroup: &Path, netns: &Netns, port: u16) -> Process {
    Process::start(cgroup, netns, || TcpListener::bind(("0.0.0.0", port)).map(|l| (l, String::new())))
}

#[test]
fn in_the_shared_namespace_only_a_workloads_own_port_is_steered() {
    require_root_and_ebpf!();
    let shared = Netns::new();
    let mut node = Node::start_in(&shared);
    let pod = node.pod("agent");
    share(&mut node, &pod, &shared);
    let outside = shared.wire();
    let engine = Engine::start(&shared);
    engine.steer(&mut node, &shared, true);
    let nobodys = shared.listen("[::]:2222");
    let origins = node.kernel.origins();

    let process = listening(&pod.cgroup, &shared, 8080);
    process.said().unwrap();
    assert_eq!(origins.port_owner(shared.cookie, 8080), Some(pod.id()));
    let _client = outside.enter(|| TcpStream::connect(pod_at(POD_V4, 8080)).unwrap());
    accept(&engine.plaintext);
    let _client = outside.enter(|| TcpStream::connect(pod_at(POD_V4, 2222)).unwrap());
    accept(&nobodys);

    drop(process);
    eventually("the port is nobody's again", || origins.port_owner(shared.cookie, 8080).is_none());
}

#[test]
fn a_port_opened_before_enrolment_by_a_nested_cgroup_has_its_owner() {
    require_root_and_ebpf!();
    let shared = Netns::new();
    let mut node = Node::start_in(&shared);
    let pod = node.pod("agent");
    let nested = pod.cgroup.join("container");
    std::fs::create_dir(&nested).unwrap();
    let process = listening(&nested, &shared, 8081);
    process.said().unwrap();
    share(&mut node, &pod, &shared);
    let origins = node.kernel.origins();
    assert_eq!(origins.port_owner(shared.cookie, 8081), Some(pod.id()));
    node.kernel.remove_workload(pod.id()).unwrap();
    assert_eq!(origins.port_owner(shared.cookie, 8081), None);
}

#[test]
fn a_port_shared_by_two_sockets_of_one_workload_is_owned_until_both_are_closed() {
    require_root_and_ebpf!();
    let shared = Netns::new();
    let mut node = Node::start_in(&shared);
    let pod = node.pod("agent");
    share(&mut node, &pod, &shared);
    let reuse = |port| {
        Process::start(&pod.cgroup, &shared, move || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_reuse_port(true)?;
            socket.bind(&pod_at("0.0.0.0", port).into())?;
            socket.listen(1)?;
            Ok((socket, String::new()))
        })
    };
    let origins = node.kernel.origins();
    let (first, second) = (reuse(8082), reuse(8082));
    first.said().unwrap();
    second.said().unwrap();
    drop(first);
    assert_eq!(origins.port_owner(shared.cookie, 8082), Some(pod.id()));
    drop(second);
    eventually("the port is nobody's", || origins.port_owner(shared.cookie, 8082).is_none());
}

#[test]
fn a_workload_that_leaves_the_mesh_and_comes_back_takes_its_ports_along() {
    require_root_and_ebpf!();
    let shared = Netns::new();
    let mut node = Node::start_in(&shared);
    let pod = node.pod("agent");
    share(&mut node, &pod, &shared);
    let origins = node.kernel.origins();
    let first = listening(&pod.cgroup, &shared, 8083);
    first.said().unwrap();
    put_shared(&mut node, &pod, &shared, CaptureState::Bypass);
    assert_eq!(origins.port_owner(shared.cookie, 8083), None);
    let second = listening(&pod.cgroup, &shared, 8084);
    second.said().unwrap();
    assert_eq!(origins.port_owner(shared.cookie, 8084), None);
    share(&mut node, &pod, &shared);
    for port in [8083, 8084] {
        assert_eq!(origins.port_owner(shared.cookie, port), Some(pod.id()));
    }
    // Their closes are not seen; the next look finds them gone.
    drop((first, second));
    share(&mut node, &pod, &shared);
    for port in [8083, 8084] {
        assert_eq!(origins.port_owner(shared.cookie, port), None);
    }
}

#[test]
fn the_engine_reaches_the_application_in_the_clients_name() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("server");
    node.enrol(&pod);
    let netns = net::Netns::new(pod.netns.fd.try_clone().unwrap());
    let listeners = node.runtime.block_on(async { net::prepare(&netns) }).unwrap();
    let to = SteeredListeners { plaintext: listeners.plaintext.as_fd(), hbone: listeners.hbone.as_fd() };
    node.steer(&pod.netns, false, to);
    let application = pod.netns.listen("[::]:8080");
    // The last two: the workload calls itself, or hostNetwork neighbours share the address.
    let (own_v4, own_v6) = (pod_at(POD_V4, 4000), pod_at(POD_V6, 4000));
    let foreign = ["10.99.0.7:4000", "[fd99::7]:4000"].map(|client| client.parse::<SocketAddr>().unwrap());
    for (client, ip) in [(foreign[0], POD_V4), (foreign[1], POD_V6), (own_v4, POD_V4), (own_v6, POD_V6)] {
        let dial =
            net::dial_transparent(&netns, client, pod_at(ip, 8080), |_| false, Duration::from_secs(10));
        let stream = node.runtime.block_on(dial).unwrap();
        assert_eq!(signet_agent::addr::canonical(accept(&application)), pod_at(ip, 8080));
        assert_eq!(stream.local_addr().unwrap(), client);
    }
}

/// As address translators choose any port, and the engine another for the same client.
#[test]
fn a_client_may_use_the_port_that_the_engine_has_chosen_in_its_name() {
    require_root_and_ebpf!();
    let mut node = Node::start();
    let pod = node.pod("server");
    node.enrol(&pod);
    let outside = pod.netns.wire();
    let netns = net::Netns::new(pod.netns.fd.try_clone().unwrap());
    let listeners = node.runtime.block_on(async { net::prepare(&netns) }).unwrap();
    let to = SteeredListeners { plaintext: listeners.plaintext.as_fd(), hbone: listeners.hbone.as_fd() };
    node.steer(&pod.netns, false, to);
    for (client, ip) in [("10.77.0.2:4000", POD_V4), ("[fd77::2]:4000", POD_V6)] {
        let application = Process::start(&pod.cgroup, &pod.netns, move || {
            let listener = TcpListener::bind(pod_at(ip, 8080))?;
            Ok((listener.try_clone()?, String::new()))
        });
        application.said().unwrap();
        let client: SocketAddr = client.parse().unwrap();
        let dial =
            net::dial_transparent(&netns, client, pod_at(ip, 8080), |_| false, Duration::from_secs(10));
        let engines = node.runtime.block_on(dial).unwrap();
        assert_eq!(engines.local_addr().unwrap(), client);
        let same = outside.enter(|| bound_connect(client, pod_at(ip, 8080)));
        let mut same =
            same.unwrap_or_else(|error| panic!("while the engine's lives, from {client}: {error}"));
        let mut plaintext = None;
        eventually("it arrives", || {
            plaintext = listeners.plaintext.accept().ok();
            plaintext.is_some()
        });
        let (plaintext, _) = plaintext.unwrap();
        plaintext.set_nonblocking(true).unwrap();
        node.runtime.block_on(async {
            let plaintext = tokio::net::TcpStream::from_std(plaintext).unwrap();
            net::keep_to_device(&netns, &plaintext).unwrap();
            // Both are heard where they belong.
            engines.try_write(b"engine").unwrap();
            same.write_all(b"client").unwrap();
            let mut heard = [0; 16];
            plaintext.readable().await.unwrap();
            assert_eq!(plaintext.try_read(&mut heard).unwrap(), 6);
            assert_eq!(&heard[..6], b"client");
        });
        eventually("the application's end has what the engine wrote", || unacknowledged(&engines) == 0);
    }
}

/// Bytes that a socket has sent, and the other end has not (tcp(7), SIOCOUTQ).
fn unacknowledged(stream: &tokio::net::TcpStream) -> i32 {
    let mut count = 0;
    // SAFETY: the request writes one int.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    assert_eq!(result, 0);
    count
}
