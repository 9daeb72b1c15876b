//! What the server's side does with HBONE clients and with plaintext.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{Pair, deny_all, needs_privileges, service, strict};
use crate::addr::{HBONE_PORT, Local, Peer};
use crate::config::Timeouts;
use crate::proxy::accept::Accepted;
use crate::proxy::inbound::serve_plaintext;
use crate::proxy::testing::{assert_reset, ping, until, unused_address};
use crate::state::{EndpointSlice, Event, ServicePort};

#[tokio::test]
async fn an_authority_that_is_not_the_dialled_address_is_400() {
    needs_privileges!();
    let pair = Pair::new().await;
    let elsewhere = SocketAddr::new(pair.client.ip, pair.app.address.port()).to_string();
    assert_eq!(pair.ask(&pair.server, None, &elsewhere).await, Err(StatusCode::BAD_REQUEST));
    until("the outcome is written", || pair.is_quiet()).await;
    let line = pair.log.only("inbound");
    assert!(line.contains("is not at the dialled address"), "{line}");
    assert!(line.contains("dst.workload=\"server\""), "{line}");
    assert_eq!(pair.far.count("istio_tcp_connections_failed_total", &["response_flags=\"DENY\""]), 1);
}

#[tokio::test]
async fn an_authority_without_a_port_is_400() {
    needs_privileges!();
    let pair = Pair::new().await;
    assert_eq!(pair.ask(&pair.server, None, &pair.server.ip.to_string()).await, Err(StatusCode::BAD_REQUEST));
    until("the outcome is written", || pair.is_quiet()).await;
    assert!(pair.log.only("inbound").contains("has no port between 1 and 65535"));
}

#[tokio::test]
async fn the_engines_own_ports_are_400() {
    needs_privileges!();
    let pair = Pair::new().await;
    for port in crate::addr::ENGINE_PORTS {
        assert_eq!(
            pair.ask(&pair.server, None, &pair.server.at(port).to_string()).await,
            Err(StatusCode::BAD_REQUEST)
        );
    }
    until("the outcomes are written", || pair.is_quiet()).await;
    assert_eq!(pair.log.lines("no application can listen there").len(), 3);
}

#[tokio::test]
async fn a_services_hostname_is_served_where_this_workload_is_its_endpoint() {
    needs_privileges!();
    let pair = Pair::new().await;
    assert_eq!(
        pair.ask(&pair.server, None, "web.ns.svc.cluster.local:80").await,
        Err(StatusCode::BAD_REQUEST)
    );
    pair.apply(&Event::Service(service(unused_address(), 80)));
    pair.apply(&Event::EndpointSlice(EndpointSlice {
        namespace: "ns".into(),
        name: "web-1".into(),
        service: "web".into(),
        ports: vec![ServicePort { name: "http".into(), port: pair.app.address.port() }],
        endpoints: vec![crate::state::Endpoint::at(pair.server.ip)],
    }));
    assert_eq!(pair.ask(&pair.server, None, "web.ns.svc.cluster.local:80").await, Ok(()));
    assert_eq!(
        pair.ask(&pair.server, None, "web.ns.svc.cluster.local:81").await,
        Err(StatusCode::BAD_REQUEST)
    );
    until("the application was reached", || pair.app.clients.lock().len() == 1).await;
}

#[tokio::test]
async fn denial_is_401_and_a_closed_port_503() {
    needs_privileges!();
    let pair = Pair::new().await;
    let closed = TcpListener::bind((pair.server.ip, 0)).await.unwrap().local_addr().unwrap();
    assert_eq!(pair.ask(&pair.server, None, &closed.to_string()).await, Err(StatusCode::SERVICE_UNAVAILABLE));
    pair.apply(&deny_all());
    assert_eq!(
        pair.ask(&pair.server, None, &pair.app.address.to_string()).await,
        Err(StatusCode::UNAUTHORIZED)
    );
}

#[tokio::test]
async fn what_is_no_tls_is_a_failed_connection_with_one_line() {
    needs_privileges!();
    let pair = Pair::new().await;
    let mut stream = TcpStream::connect(pair.server.at(HBONE_PORT)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    until("the outcome is written", || !pair.log.lines("inbound").is_empty()).await;
    assert!(pair.log.only("inbound").contains("mTLS handshake failed"));
    assert_eq!(pair.far.count("istio_tcp_connections_failed_total", &["response_flags=\"TLS_FAILURE\""]), 1);
}

#[tokio::test]
async fn silent_clients_are_let_go_and_keep_nobody_waiting() {
    needs_privileges!();
    let timeouts = Timeouts { handshake: Duration::from_secs(2), ..Timeouts::default() };
    let pair = Pair::with(timeouts).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(pair.server.at(HBONE_PORT)).await.unwrap());
    }
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "not behind them").await;
    let lines = || pair.log.lines("no mTLS and HTTP/2 handshake within").len();
    until("the silent ones have an outcome each", || lines() == silent.len()).await;
}

/// A connection that arrived in clear, as `sk_lookup` gives it: its own end is the application's address.
async fn plaintext(pair: &Pair) -> TcpStream {
    let listener = TcpListener::bind((pair.server.ip, 0)).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((pair.client.ip, 0).into()).unwrap();
    let client = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let place = pair.far.context.workers.place();
    let accepted = Accepted { stream, peer: Peer::new(peer), local: Local::new(pair.app.address), place };
    let (context, sandbox) = (Arc::clone(&pair.far.context), Arc::clone(&pair.server.sandbox));
    tokio::spawn(async move { serve_plaintext(context, sandbox, accepted).await });
    client
}

#[tokio::test]
async fn plaintext_is_served_where_policy_permits_it() {
    needs_privileges!();
    let pair = Pair::new().await;
    let mut stream = plaintext(&pair).await;
    ping(&mut stream, "in clear").await;
    assert_eq!(pair.app.clients.lock()[0].ip(), pair.client.ip, "the application sees its client's address");
    drop(stream);
    until("the outcome is written", || pair.is_quiet()).await;
    let line = pair.log.only("inbound");
    assert!(line.contains("src.workload=\"client\""), "{line}");
    assert!(!line.contains("identity") && line.contains("bytes_sent=8 bytes_recv=8"), "{line}");
    let unknown = ["connection_security_policy=\"unknown\"", "source_principal=\"unknown\""];
    assert_eq!(pair.far.count("istio_tcp_connections_closed_total", &unknown), 1);
}

#[tokio::test]
async fn what_a_policy_in_dry_run_would_do_is_logged_and_not_done() {
    needs_privileges!();
    let pair = Pair::new().await;
    let Event::Authorization(mut policy) = deny_all() else { panic!("not an AuthorizationPolicy") };
    policy.dry_run = true;
    pair.apply(&Event::Authorization(policy));
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "still permitted").await;
    drop(stream);
    until("both outcomes are written", || pair.is_quiet()).await;
    let line = pair.log.only("inbound");
    assert!(line.contains("dry_run=\"would be denied: denied by AuthorizationPolicy ns/nobody\""), "{line}");
}

#[tokio::test]
async fn plaintext_is_reset_under_strict() {
    needs_privileges!();
    let pair = Pair::new().await;
    pair.apply(&strict());
    assert_reset(plaintext(&pair).await).await;
    until("the outcome is written", || pair.is_quiet()).await;
    assert!(pair.log.only("inbound").contains("mTLS required by PeerAuthentication ns/only-mtls"));
    assert!(pair.app.clients.lock().is_empty());
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "mTLS passes").await;
}
