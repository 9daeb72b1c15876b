//! How connections end when the policy, the workload, its certificate or the engine does.

use std::sync::Arc;

use futures_util::FutureExt;
use http::Request;
use rustls::pki_types::UnixTime;
use signet_identity::X509Svid;
use signet_identity::testing::{Issued, TestCa, from_now};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Pair, deny_all, needs_privileges, strict};
use crate::addr::{HBONE_PORT, Local, OUTBOUND_PORT, Peer};
use crate::config::Timeouts;
use crate::mtls::Endpoint;
use crate::proxy::accept::Accepted;
use crate::proxy::testing::{DEADLINE, Echo, Node, Pod, assert_reset, ping, until};
use crate::proxy::{inbound, outbound};
use crate::state::{Event, Template, Workload};

#[tokio::test]
async fn a_live_connection_that_loses_its_permit_is_reset() {
    needs_privileges!();
    let pair = Pair::new().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "permitted").await;
    pair.apply(&deny_all());
    assert_reset(stream).await;
    until("both outcomes are written", || pair.is_quiet()).await;
    let line = pair.log.only("inbound");
    assert!(line.contains("the policy has changed: denied by AuthorizationPolicy ns/nobody"), "{line}");
    assert_eq!(pair.far.count("istio_tcp_connections_closed_total", &["response_flags=\"DENY\""]), 1);
    assert_eq!(pair.far.count("istio_tcp_connections_opened_total", &[]), 1);
}

#[tokio::test]
async fn a_live_connection_that_keeps_its_permit_is_left_alone() {
    needs_privileges!();
    let pair = Pair::new().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "before").await;
    pair.apply(&strict());
    ping(&mut stream, "after").await;
    assert_eq!(pair.log.lines("access").len(), 0);
}

#[tokio::test]
async fn labels_that_change_under_a_live_connection_are_asked_anew() {
    needs_privileges!();
    let pair = Pair::new().await;
    let labelled = |app: &str| {
        let labels = [("app".to_owned(), app.to_owned())];
        let template = Template { labels: labels.into(), ..Template::clone(&pair.server.workload) }.into();
        let workload = Workload { template, ..Workload::clone(&pair.server.workload) };
        Event::Workload(workload.into())
    };
    pair.apply(&labelled("other"));
    pair.apply(&deny_all());
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "no policy selects it").await;
    pair.apply(&labelled("server"));
    assert_reset(stream).await;
}

#[tokio::test]
async fn the_connections_of_a_workload_that_left_are_reset() {
    needs_privileges!();
    let pair = Pair::new().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "enrolled").await;
    pair.client.sandbox.workloads.write().clear();
    pair.near.context.connections.close_workload(&pair.client.workload.uid);
    assert_reset(stream).await;
    until("both outcomes are written", || pair.is_quiet()).await;
    assert!(pair.log.only("outbound").contains("the workload has left"));
    pair.log.only("inbound");
}

#[tokio::test]
async fn dropping_the_accept_loops_resets_and_writes_every_outcome() {
    needs_privileges!();
    let Pair { near, far, client, server, app, log } = Pair::new().await;
    let mut stream = near.connect(&client, app.address).await;
    ping(&mut stream, "running").await;
    drop(client.running);
    assert_reset(stream).await;
    let quiet = |node: &Node| node.context.connections.views().is_empty();
    until("both outcomes are written", || quiet(&near) && quiet(&far)).await;
    assert!(log.only("outbound").contains("closed by the node engine"));
    log.only("inbound");
    drop(server);
}

#[tokio::test]
async fn a_client_that_stalls_in_its_handshake_is_let_go_with_the_pod() {
    needs_privileges!();
    let pair = Pair::new().await;
    let mut stream = TcpStream::connect(pair.server.at(HBONE_PORT)).await.unwrap();
    // A record's header, and nothing of the ClientHello that it announces.
    stream.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
    until("it is listed", || pair.far.context.connections.views().len() == 1).await;
    pair.server.sandbox.workloads.write().clear();
    pair.far.context.connections.close_workload(&pair.server.workload.uid);
    until("its outcome is written", || pair.is_quiet()).await;
    let line = pair.log.only("inbound");
    assert!(line.contains("the workload has left") && line.contains("dst.workload=\"server\""), "{line}");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "it is closed, and nothing was said");
}

#[tokio::test]
async fn a_drain_lets_live_connections_finish_and_takes_no_new_ones() {
    needs_privileges!();
    let Pair { near, far, client, server, app, log: _log } = Pair::new().await;
    let mut stream = near.connect(&client, app.address).await;
    ping(&mut stream, "before").await;
    let listener = client.at(OUTBOUND_PORT);
    let Pod { mut running, sandbox, .. } = client;
    let Node { context, drain, .. } = near;
    drop((context, sandbox));
    let drained = tokio::spawn(drain.drain(DEADLINE));
    let mut refused = false;
    while !refused {
        refused = TcpStream::connect(listener).await.is_err();
        tokio::task::yield_now().await;
    }
    ping(&mut stream, "while draining").await;
    drop(stream);
    tokio::time::timeout(DEADLINE, running.finished()).await.expect("the last connection has ended");
    drop(running);
    assert!(drained.await.unwrap(), "nothing holds a watch any more");
    drop((far, server));
}

#[tokio::test]
async fn a_server_that_drains_lets_its_tunnels_finish() {
    needs_privileges!();
    let Pair { near, far, client, server, app, log: _log } = Pair::new().await;
    let mut stream = near.connect(&client, app.address).await;
    ping(&mut stream, "before").await;
    let Node { context, drain, .. } = far;
    let Pod { mut running, sandbox, .. } = server;
    drop((context, sandbox));
    let drained = tokio::spawn(drain.drain(DEADLINE));
    for _ in 0..10 {
        ping(&mut stream, "while draining").await;
    }
    drop(stream);
    tokio::time::timeout(DEADLINE, running.finished()).await.expect("the HBONE connection has ended");
    drop(running);
    assert!(drained.await.unwrap(), "nothing holds a watch any more");
}

#[tokio::test]
async fn a_client_whose_svid_expires_opens_nothing_new_and_keeps_its_tunnels() {
    needs_privileges!();
    let ca = Arc::new(TestCa::new("cluster.local"));
    let node = Node::new(&ca, Timeouts::default());
    let server = node.pod("server").await;
    let app = Echo::start(server.ip).await;
    server.events().iter().for_each(|event| node.apply(event));
    let client = expiring(&ca);
    let stream = TcpStream::connect(server.at(HBONE_PORT)).await.unwrap();
    let (tls, _) =
        client.connect(stream, std::slice::from_ref(&server.workload.identity), None).await.unwrap();
    let (mut h2, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let request = Request::connect(app.address.to_string()).body(()).unwrap();
    let (answer, mut tunnel) = h2.send_request(request, false).unwrap();
    let mut body = answer.await.unwrap().into_body();
    until("GOAWAY", || matches!(h2.clone().ready().now_or_never(), Some(Err(_)))).await;
    tunnel.send_data("still open".into(), true).unwrap();
    assert_eq!(body.data().await.unwrap().unwrap(), "still open");
}

/// A client with an SVID for the next two seconds.
fn expiring(ca: &TestCa) -> Endpoint {
    let id = ca.id("ns", "client");
    let Issued { chain, key } = ca.issue(id.as_str(), |leaf| leaf.not_after = from_now(2));
    Endpoint::new(&Arc::new(X509Svid::new(&id, chain, key, ca.bundles(), UnixTime::now()).unwrap())).unwrap()
}

/// What an idle connection costs besides its sockets and its place in the registry, in bytes.
#[tokio::test]
async fn a_connections_task_stays_small() {
    needs_privileges!();
    let pair = Pair::new().await;
    let (context, sandbox) = (&pair.near.context, &pair.client.sandbox);
    let parts = || (Arc::clone(context), Arc::clone(sandbox));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let accepted = async || {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        Accepted {
            stream,
            peer: Peer::new(peer),
            local: Local::new(peer),
            place: pair.near.context.workers.place(),
        }
    };
    let (context, sandbox) = parts();
    let outbound = size_of_val(&outbound::serve(context, sandbox, accepted().await));
    let (context, sandbox) = parts();
    let plaintext = size_of_val(&inbound::serve_plaintext(context, sandbox, accepted().await));
    let (context, sandbox) = parts();
    let inbound = size_of_val(&inbound::serve(context, sandbox, accepted().await));
    // Of tunnels, set-up and relay are in boxes of their own, the first gone by the time that the connection is idle.
    assert!(outbound <= 1024, "{outbound}");
    assert!(plaintext <= 2048, "{plaintext}");
    assert!(inbound <= 1024, "{inbound}");
}
