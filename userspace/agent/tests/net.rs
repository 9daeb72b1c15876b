//! Sockets in real network namespaces: needs root and iproute2. Each test makes nameless namespaces of its own, which
//! end with it; nothing outside them is touched.
//!
//! Where the machine lacks something, a test panics with what is missing; with `SIGNET_TEST_ALLOW_SKIP=1` it prints
//! `SKIP <test>: <reason>` instead.

#![expect(clippy::unwrap_used, reason = "a step of a test that fails is the test's failure")]

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use signet_agent::net::{self, NetError, Netns, dial, dial_transparent};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Returns from the test where it may be skipped.
macro_rules! need_namespaces {
    ($test:literal) => {
        if let Some(reason) = unmet() {
            assert!(std::env::var_os("SIGNET_TEST_ALLOW_SKIP").is_some_and(|set| set == "1"), "{reason}");
            // Past libtest's capture, so that the runner counts it.
            let _ =
                std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("SKIP {}: {reason}\n", $test));
            return;
        }
    };
}

#[test]
fn a_visit_ends_where_it_began_even_with_a_panic() {
    need_namespaces!("a_visit_ends_where_it_began_even_with_a_panic");
    let netns = new_netns();
    let home = where_am_i();
    let abroad = netns.run(where_am_i).unwrap();
    assert_ne!(abroad, home);
    assert_eq!(where_am_i(), home);
    let further = new_netns();
    let visits = || (further.run(where_am_i).unwrap(), where_am_i());
    let (within, after) = netns.run(visits).unwrap();
    assert_ne!(within, abroad);
    assert_eq!((after, where_am_i()), (abroad, home.clone()));
    let panicked = std::panic::catch_unwind(|| netns.run(|| panic!("in the other namespace")));
    assert!(panicked.is_err());
    assert_eq!(where_am_i(), home);
}

#[tokio::test]
async fn each_listener_answers_where_it_should_and_nowhere_else() {
    need_namespaces!("each_listener_answers_where_it_should_and_nowhere_else");
    let pod = Pod::new();
    let listeners = net::prepare(&pod.netns).unwrap();
    let (_, tuned) = meet(&pod, &listeners.outbound_v4, "127.0.0.1:15001").await;
    assert!(SockRef::from(&tuned).tcp_nodelay().unwrap());
    assert!(SockRef::from(&tuned).keepalive().unwrap());
    assert_eq!(SockRef::from(&tuned).tcp_keepalive_retries().unwrap(), 9);
    meet(&pod, listeners.outbound_v6.as_ref().unwrap(), "[::1]:15001").await;
    meet(&pod, &listeners.plaintext, "127.0.0.1:15006").await;
    meet(&pod, &listeners.hbone, "10.77.0.2:15008").await;
    meet(&pod, &listeners.hbone, "[fd77::2]:15008").await;
    for closed in ["10.77.0.2:15001", "[fd77::2]:15001", "10.77.0.2:15006", "[fd77::2]:15006"] {
        let refused = dial(&pod.netns, closed.parse().unwrap(), PATIENCE).await;
        assert!(matches!(refused, Err(NetError::Refused(_))), "{closed}: {refused:?}");
    }
}

#[tokio::test]
async fn a_namespace_without_ipv6_gets_its_ipv4_listeners() {
    need_namespaces!("a_namespace_without_ipv6_gets_its_ipv4_listeners");
    let pod = Pod::new();
    pod.netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")).unwrap().unwrap();
    let listeners = net::prepare(&pod.netns).unwrap();
    assert!(listeners.outbound_v6.is_none());
    meet(&pod, &listeners.outbound_v4, "127.0.0.1:15001").await;
    meet(&pod, &listeners.hbone, "10.77.0.2:15008").await;
    let app = pod.listen("10.77.0.2:8080");
    sees_its_client(&pod, &app, "10.77.0.1:40000").await;
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    need_namespaces!("a_port_in_use_is_an_error_that_names_it");
    let pod = Pod::new();
    let _squatter = pod.listen("0.0.0.0:15008");
    let error = net::prepare(&pod.netns).unwrap_err().to_string();
    assert!(error.contains(":15008"), "{error}");
}

#[tokio::test]
async fn a_restarted_engine_listens_at_once() {
    need_namespaces!("a_restarted_engine_listens_at_once");
    let pod = Pod::new();
    let listeners = net::prepare(&pod.netns).unwrap();
    let (client, server) = meet(&pod, &listeners.outbound_v4, "127.0.0.1:15001").await;
    drop(listeners);
    // The engine's end closes first and stays in TIME_WAIT on the port.
    drop(server);
    drop(client);
    net::prepare(&pod.netns).unwrap();
}

#[tokio::test]
async fn restoring_takes_back_all_that_preparing_did() {
    need_namespaces!("restoring_takes_back_all_that_preparing_did");
    let pod = Pod::new();
    let before = pod.routing();
    net::prepare(&pod.netns).unwrap();
    let prepared = pod.routing();
    assert_ne!(before, prepared);
    net::prepare(&pod.netns).unwrap();
    assert_eq!(pod.routing(), prepared);
    net::restore(&pod.netns).unwrap();
    assert_eq!(pod.routing(), before);
    net::restore(&pod.netns).unwrap();
    assert_eq!(pod.routing(), before);
}

#[tokio::test]
async fn restoring_leaves_what_others_had_set() {
    need_namespaces!("restoring_leaves_what_others_had_set");
    let pod = Pod::new();
    pod.ip("rule add pref 5 fwmark 0x99 lookup 99");
    for setting in SETTINGS {
        pod.netns.run(|| std::fs::write(setting, "1")).unwrap().unwrap();
        let before = pod.routing();
        net::prepare(&pod.netns).unwrap();
        net::prepare(&pod.netns).unwrap();
        net::restore(&pod.netns).unwrap();
        assert_eq!(pod.routing(), before, "{setting}");
    }
}

#[tokio::test]
async fn the_application_sees_a_remote_client_and_answers_it_through_the_engine() {
    need_namespaces!("the_application_sees_a_remote_client_and_answers_it_through_the_engine");
    let pod = Pod::new();
    // Strict reverse-path checks, as many distributions set them.
    pod.netns.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")).unwrap().unwrap();
    let _listeners = net::prepare(&pod.netns).unwrap();
    let before = pod.segments_at_client();
    let app = pod.listen("[::]:8080");
    sees_its_client(&pod, &app, "10.77.0.1:40000").await;
    sees_its_client(&pod, &app, "[fd77::1]:40000").await;
    sees_its_client(&pod, &app, "198.51.100.7:40000").await;
    assert_eq!(pod.segments_at_client(), before, "the client's machine was sent something");
}

#[tokio::test]
async fn a_clients_port_in_use_is_replaced_by_another() {
    need_namespaces!("a_clients_port_in_use_is_replaced_by_another");
    let pod = Pod::new();
    let _listeners = net::prepare(&pod.netns).unwrap();
    for (app, client) in [("10.77.0.2:8080", "10.77.0.1:40000"), ("[fd77::2]:8080", "[fd77::1]:40000")] {
        let (app, client) = (pod.listen(app), client.parse().unwrap());
        let first = sees_its_client_at(&pod, &app, client).await;
        let second = sees_its_client_at(&pod, &app, client).await;
        let unknown = sees_its_client_at(&pod, &app, SocketAddr::new(client.ip(), 0)).await;
        assert_eq!(first.peer_addr().unwrap().port(), 40000);
        for other in [second, unknown] {
            let port = other.peer_addr().unwrap().port();
            assert!((1024..32768).contains(&port), "clients pick {port} themselves");
        }
    }
}

#[tokio::test]
async fn a_failed_dial_says_who_is_to_blame() {
    need_namespaces!("a_failed_dial_says_who_is_to_blame");
    let pod = Pod::new();
    let refused = dial(&pod.netns, "10.77.0.2:1".parse().unwrap(), PATIENCE).await;
    assert!(matches!(refused, Err(NetError::Refused(_))), "{refused:?}");
    let unreachable = dial(&pod.netns, "192.0.2.1:1".parse().unwrap(), PATIENCE).await;
    assert!(matches!(unreachable, Err(NetError::Unreachable { .. })), "{unreachable:?}");
    // Nobody has this address, and the kernel asks for it longer than we wait.
    let late = dial(&pod.netns, "10.77.0.9:1".parse().unwrap(), Duration::from_millis(20)).await;
    assert!(matches!(late, Err(NetError::TimedOut(_))), "{late:?}");
}

#[tokio::test]
async fn an_application_that_does_not_listen_refuses_at_once_and_the_client_hears_nothing() {
    need_namespaces!("an_application_that_does_not_listen_refuses_at_once_and_the_client_hears_nothing");
    let pod = Pod::new();
    let _listeners = net::prepare(&pod.netns).unwrap();
    let before = pod.segments_at_client();
    for (client, app) in [("10.77.0.1:40000", "10.77.0.2:1"), ("[fd77::1]:40000", "[fd77::2]:1")] {
        let dialled =
            dial_transparent(&pod.netns, client.parse().unwrap(), app.parse().unwrap(), |_| false, PATIENCE)
                .await;
        assert!(matches!(dialled, Err(NetError::Refused(_))), "{dialled:?}");
    }
    assert_eq!(pod.segments_at_client(), before, "the client's machine was sent something");
}

/// A namespace with 10.77.0.2 and fd77::2, and another one at the end of a link with 10.77.0.1 and fd77::1.
struct Pod {
    netns: Netns,
    client: Netns,
}

impl Pod {
    fn new() -> Self {
        let pod = Self { netns: new_netns(), client: new_netns() };
        // The peer's namespace is named by a process in it: a sleeping `ip` would race, this thread's descriptor does not.
        let client = format!("/proc/{}/fd/{}", std::process::id(), raw(&pod.client));
        pod.ip("link set lo up");
        pod.ip(&format!("link add eth0 type veth peer name eth0 netns {client}"));
        for (netns, last) in [(&pod.netns, 2), (&pod.client, 1)] {
            ip_in(netns, &format!("addr add 10.77.0.{last}/24 dev eth0"));
            ip_in(netns, &format!("addr add fd77::{last}/64 dev eth0 nodad"));
            ip_in(netns, "link set eth0 up");
        }
        // The kernel learns of the carrier in its own time, and has no IPv6 address before that.
        until(|| ip_in(&pod.netns, "-6 route show table local").contains("fd77::2"));
        pod
    }

    fn ip(&self, arguments: &str) {
        ip_in(&self.netns, arguments);
    }

    fn listen(&self, address: &str) -> TcpListener {
        let listener = self.netns.run(|| std::net::TcpListener::bind(address)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    /// Rules, routes and settings, as text.
    fn routing(&self) -> String {
        let shown = ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"];
        let routes = shown.map(|arguments| ip_in(&self.netns, arguments)).join("\n");
        // The kernel's own, which come with the link.
        let routes: String = routes.lines().filter(|route| !route.contains("eth0")).collect();
        let settings =
            SETTINGS.map(|setting| self.netns.run(|| std::fs::read_to_string(setting)).unwrap().unwrap());
        routes + &settings.concat()
    }

    /// TCP segments that the client's machine received so far, both families.
    fn segments_at_client(&self) -> u64 {
        let snmp =
            self.client.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
        let rows: Vec<&str> = snmp.lines().filter(|line| line.starts_with("Tcp:")).collect();
        let column = rows[0].split(' ').position(|name| name == "InSegs").unwrap();
        rows[1].split(' ').nth(column).unwrap().parse().unwrap()
    }
}

/// Dials a listener of the engine from inside the namespace, and accepts.
async fn meet(pod: &Pod, listener: &std::net::TcpListener, address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
    let client = dial(&pod.netns, address.parse().unwrap(), PATIENCE).await.unwrap();
    let (server, _) = within(listener.accept()).await.unwrap();
    (client, server)
}

async fn sees_its_client(pod: &Pod, app: &TcpListener, client: &str) {
    let client: SocketAddr = client.parse().unwrap();
    let accepted = sees_its_client_at(pod, app, client).await;
    assert_eq!(accepted.peer_addr().unwrap().port(), client.port());
}

/// Dials an application as `client`, has it answer, and returns its end.
async fn sees_its_client_at(pod: &Pod, app: &TcpListener, client: SocketAddr) -> TcpStream {
    let mut to = app.local_addr().unwrap();
    if to.ip().is_unspecified() {
        let own = if client.is_ipv4() { "10.77.0.2" } else { "fd77::2" };
        to.set_ip(own.parse::<IpAddr>().unwrap());
    }
    let mut engine = dial_transparent(&pod.netns, client, to, |_| false, PATIENCE).await.unwrap();
    let (mut accepted, peer) = within(app.accept()).await.unwrap();
    assert_eq!(peer.ip().to_canonical(), client.ip());
    within(async {
        engine.write_all(b"question").await?;
        let mut question = [0; 8];
        accepted.read_exact(&mut question).await?;
        accepted.write_all(b"answer").await?;
        let mut answer = [0; 6];
        engine.read_exact(&mut answer).await?;
        assert_eq!((&question, &answer), (b"question", b"answer"));
        io::Result::Ok(())
    })
    .await
    .unwrap();
    std::mem::forget(engine);
    accepted
}

fn new_netns() -> Netns {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::new(OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap()))
    };
    std::thread::spawn(make).join().unwrap()
}

fn ip_in(netns: &Netns, arguments: &str) -> String {
    let run = || Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let output = netns.run(run).unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn raw(netns: &Netns) -> i32 {
    use std::os::fd::{AsFd, AsRawFd};
    netns.as_fd().as_raw_fd()
}

fn where_am_i() -> std::path::PathBuf {
    std::fs::read_link("/proc/thread-self/ns/net").unwrap()
}

/// What this machine lacks.
fn unmet() -> Option<String> {
    if let Err(error) = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().unwrap() {
        return Some(format!("cannot make a network namespace ({error}): run as root"));
    }
    Command::new("ip")
        .arg("-V")
        .output()
        .err()
        .map(|error| format!("cannot run ip ({error}): install iproute2"))
}

fn until(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

async fn within<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.expect("within the deadline")
}

const SETTINGS: [&str; 3] = [
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
];

const PATIENCE: Duration = Duration::from_secs(10);
