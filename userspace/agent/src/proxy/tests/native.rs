//! The same promises over a native tunnel, and who speaks it with whom.

use std::num::NonZeroUsize;
use std::sync::Arc;

use signet_identity::testing::TestCa;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Pair, deny_all, needs_privileges, service};
use crate::config::{Timeouts, Tunnel};
use crate::net::reset;
use crate::proxy::connections::Path;
use crate::proxy::testing::{DEADLINE, Node, Pod, assert_reset, ping, until, unused_address};
use crate::state::{Endpoint, EndpointSlice, Event, ServicePort};
use crate::workers::Workers;

async fn native() -> Pair {
    Pair::speaking(Timeouts::default(), [Tunnel::Auto; 2]).await
}

#[tokio::test]
async fn both_ends_must_know_the_native_tunnel_for_it_to_be_used() {
    needs_privileges!();
    for (tunnels, path) in [
        ([Tunnel::Auto, Tunnel::Auto], Path::Native),
        ([Tunnel::Auto, Tunnel::Hbone], Path::Hbone),
        ([Tunnel::Hbone, Tunnel::Auto], Path::Hbone),
    ] {
        let pair = Pair::speaking(Timeouts::default(), tunnels).await;
        for _ in 0..2 {
            let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
            ping(&mut stream, "what is it?").await;
            for node in [&pair.near, &pair.far] {
                let view = node.only_connection().await;
                assert_eq!(view.path, Some(path), "{tunnels:?}");
                assert_eq!((view.sent, view.received), (11, 11));
                assert!(view.source_identity.is_some() && view.destination_identity.is_some());
            }
            drop(stream);
            until("both outcomes are written", || pair.is_quiet()).await;
        }
        let mtls = ["connection_security_policy=\"mutual_tls\"", "response_flags=\"-\""];
        for node in [&pair.near, &pair.far] {
            assert_eq!(node.count("istio_tcp_connections_closed_total", &mtls), 2);
            assert_eq!(node.count("istio_tcp_received_bytes_total", &mtls), 22);
            assert_eq!(node.count("istio_tcp_sent_bytes_total", &mtls), 22);
        }
        let application = format!("dst.hbone_addr={}", pair.app.address);
        assert_eq!(pair.log.lines(&application).len(), 4, "{tunnels:?}");
        assert_eq!(pair.log.lines("error=").len(), 0);
    }
}

/// The number of connections that each of two workers of a node serves.
fn loads(node: &Node) -> [u64; 2] {
    [0, 1].map(|worker| node.count("signet_worker_connections", &[&format!("worker=\"{worker}\"")]))
}

#[tokio::test]
async fn a_tunnel_is_served_with_those_of_its_clients_thread_unless_they_are_many() {
    needs_privileges!();
    let ca = Arc::new(TestCa::new("cluster.local"));
    let (workers, _threads) = Workers::start(NonZeroUsize::new(2).unwrap()).unwrap();
    let near = Node::speaking(&ca, Timeouts::default(), Tunnel::Auto);
    let far = Node::with_workers(&ca, Timeouts::default(), Tunnel::Auto, workers);
    let pair = Pair::of(near, far).await;
    let mut streams = Vec::new();
    for (count, expected) in [(4, [0, 4]), (4, [2, 6])] {
        for _ in 0..count {
            let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
            ping(&mut stream, "carried").await;
            streams.push(stream);
        }
        assert_eq!(loads(&pair.far), expected);
    }
    drop(streams);
    until("all tunnels rest", || loads(&pair.far) == [0, 0] && pair.near.context.native.resting() == 8).await;
    // Two of them rest with the other worker.
    let mut streams = Vec::new();
    for count in 1..=5 {
        let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
        ping(&mut stream, "carried").await;
        streams.push(stream);
        assert_eq!(loads(&pair.far), [0, count]);
    }
    assert_eq!(pair.near.count("istio_tcp_connections_failed_total", &[]), 0);
}

#[tokio::test]
async fn a_new_connection_finds_the_last_ones_tunnel() {
    needs_privileges!();
    let pair = native().await;
    for _ in 0..5 {
        let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
        ping(&mut stream, "again").await;
        assert_eq!(pair.near.context.native.resting(), 0);
        drop(stream);
        until("the tunnel rests", || pair.near.context.native.resting() == 1).await;
    }
}

#[tokio::test]
async fn a_denied_client_is_reset_and_both_sides_say_why() {
    needs_privileges!();
    let pair = native().await;
    pair.apply(&deny_all());
    for _ in 0..2 {
        assert_reset(pair.near.connect(&pair.client, pair.app.address).await).await;
    }
    until("the outcomes are written", || pair.is_quiet()).await;
    assert!(pair.app.clients.lock().is_empty(), "the application must not hear of it");
    let inbound = pair.log.lines("direction=\"inbound\"");
    assert_eq!(inbound.len(), 2);
    assert!(
        inbound.iter().all(|line| line.contains("denied by AuthorizationPolicy ns/nobody")),
        "{inbound:?}"
    );
    assert_eq!(pair.log.lines("denied by the server's policy").len(), 2);
    for node in [&pair.near, &pair.far] {
        let denied = ["response_flags=\"DENY\"", "connection_security_policy=\"mutual_tls\""];
        assert_eq!(node.count("istio_tcp_connections_failed_total", &denied), 2);
    }
    assert_eq!(pair.near.context.native.resting(), 1, "a refusal is no reason to shake hands again");
}

#[tokio::test]
async fn a_live_connection_that_loses_its_permit_is_reset() {
    needs_privileges!();
    let pair = native().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "permitted").await;
    pair.apply(&deny_all());
    assert_reset(stream).await;
    until("both outcomes are written", || pair.is_quiet()).await;
    let line = pair.log.only("inbound");
    assert!(line.contains("the policy has changed: denied by AuthorizationPolicy ns/nobody"), "{line}");
}

#[tokio::test]
async fn half_closes_and_resets_are_passed_on() {
    needs_privileges!();
    let pair = native().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    stream.write_all(b"all of it").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).await.unwrap();
    assert_eq!(echo, b"all of it");
    until("both outcomes are written", || pair.is_quiet()).await;
    assert_eq!(pair.log.lines("error=").len(), 0);
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "and now").await;
    reset(stream);
    until("both outcomes are written", || pair.is_quiet()).await;
    assert_eq!(pair.log.lines("error=").len(), 2);
}

#[tokio::test]
async fn what_was_said_to_a_dead_application_is_heard_by_the_next_one() {
    needs_privileges!();
    let pair = native().await;
    let vip = unused_address();
    pair.apply(&Event::Service(service(vip, 80)));
    // A workload of the mesh whose application has crashed: its engine answers 503. Nearer, so that it is tried first.
    let crashed = pair.far.pod("other").await;
    pair.apply_all(&crashed);
    let endpoint = |address, zone: &str| Endpoint { zone: zone.into(), pod: true, ..Endpoint::at(address) };
    pair.apply(&Event::EndpointSlice(EndpointSlice {
        namespace: "ns".into(),
        name: "web-1".into(),
        service: "web".into(),
        ports: vec![ServicePort { name: "http".into(), port: pair.app.address.port() }],
        endpoints: vec![endpoint(crashed.ip, "z1"), endpoint(pair.server.ip, "z2")],
    }));
    for _ in 0..3 {
        let mut stream = pair.near.connect(&pair.client, (vip, 80).into()).await;
        ping(&mut stream, "is anybody there?").await;
        drop(stream);
    }
    until("the outcomes are written", || pair.is_quiet()).await;
    let served = pair.log.lines("direction=\"outbound\"");
    assert!(served.iter().all(|line| !line.contains("error=")), "{served:?}");
    assert_eq!(pair.log.lines("nothing listens there").len(), 3);
}

#[tokio::test]
async fn a_server_that_speaks_first_waits_for_no_word_of_its_client() {
    needs_privileges!();
    let pair = native().await;
    let listener = TcpListener::bind((pair.server.ip, 0)).await.unwrap();
    let mut stream = pair.near.connect(&pair.client, listener.local_addr().unwrap()).await;
    let (mut application, _) = listener.accept().await.unwrap();
    application.write_all(b"220 ready").await.unwrap();
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
}

#[tokio::test]
async fn a_server_that_drains_lets_its_tunnels_finish_and_leaves_those_at_rest() {
    needs_privileges!();
    let Pair { near, far, client, server, app, log: _log } = native().await;
    let mut first = near.connect(&client, app.address).await;
    ping(&mut first, "one that will rest").await;
    let mut stream = near.connect(&client, app.address).await;
    ping(&mut stream, "before").await;
    drop(first);
    until("one rests", || near.context.native.resting() == 1).await;
    let Node { context, drain, .. } = far;
    let Pod { mut running, sandbox, .. } = server;
    drop((context, sandbox));
    let drained = tokio::spawn(drain.drain(DEADLINE));
    until("the one at rest is left", || near.context.native.resting() == 0).await;
    for _ in 0..10 {
        ping(&mut stream, "while draining").await;
    }
    drop(stream);
    tokio::time::timeout(DEADLINE, running.finished()).await.expect("the last tunnel has ended");
    drop(running);
    assert!(drained.await.unwrap(), "nothing holds a watch any more");
}

#[tokio::test]
async fn the_connections_of_a_workload_that_left_are_reset() {
    needs_privileges!();
    let pair = native().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "enrolled").await;
    pair.server.sandbox.workloads.write().clear();
    pair.far.context.connections.close_workload(&pair.server.workload.uid);
    assert_reset(stream).await;
    // The client's side hears of it too.
    let pair = native().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "enrolled").await;
    pair.near.context.connections.close_tunnels(&pair.server.workload.uid);
    assert_reset(stream).await;
}

#[tokio::test]
async fn a_tunnel_whose_client_vanished_at_rest_is_ended_by_its_server() {
    needs_privileges!();
    let pair = native().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "before").await;
    drop(stream);
    until("the tunnel rests", || pair.near.context.native.resting() == 1).await;
    tokio::time::pause();
    pair.near.context.native.vanish().await;
}

#[tokio::test]
async fn a_tunnel_whose_server_died_at_rest_is_not_used() {
    needs_privileges!();
    let pair = native().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "before").await;
    drop(stream);
    until("the tunnel rests", || pair.near.context.native.resting() == 1).await;
    drop(pair.server.running);
    until("it is gone", || pair.near.context.native.resting() == 0).await;
}
