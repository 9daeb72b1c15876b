//! What the client's side does with captured connections.

use tokio::net::{TcpListener, TcpStream};

use super::{Pair, deny_all, needs_privileges, service};
use crate::addr::OUTBOUND_PORT;
use crate::proxy::connections::Path;
use crate::proxy::testing::{Echo, assert_reset, ping, until, unused_address};
use crate::state::{Endpoint, EndpointSlice, Event, ServicePort, Template, Workload};

const MTLS: &str = "connection_security_policy=\"mutual_tls\"";
const CLIENT: &str = "spiffe://cluster.local/ns/ns/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/ns/sa/server";

#[tokio::test]
async fn a_captured_connection_reaches_the_application_over_mtls() {
    needs_privileges!();
    let pair = Pair::new().await;
    let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
    ping(&mut stream, "over hbone").await;

    let view = pair.near.only_connection().await;
    assert_eq!(view.path, Some(Path::Hbone));
    assert_eq!(view.destination, pair.app.address);
    assert_eq!(view.source_workload.as_deref(), Some("ns/client"));
    assert_eq!(view.destination_identity.unwrap().as_str(), SERVER);
    assert_eq!((view.sent, view.received), (10, 10));
    let view = pair.far.only_connection().await;
    assert_eq!(view.source_identity.unwrap().as_str(), CLIENT);
    assert_eq!(view.source_workload.as_deref(), Some("ns/client"));

    assert_eq!(
        pair.near.count("istio_tcp_received_bytes_total", &[]),
        10,
        "counted while the connection lives"
    );
    drop(stream);
    until("both outcomes are written", || pair.is_quiet()).await;
    for (node, reporter) in [(&pair.near, "source"), (&pair.far, "destination")] {
        let labels = [
            &*format!("reporter=\"{reporter}\""),
            MTLS,
            &format!("source_principal=\"{CLIENT}\""),
            &format!("destination_principal=\"{SERVER}\""),
            "response_flags=\"-\"",
        ];
        assert_eq!(node.count("istio_tcp_connections_opened_total", &labels), 1);
        assert_eq!(node.count("istio_tcp_connections_closed_total", &labels), 1);
        assert_eq!(node.count("istio_tcp_received_bytes_total", &labels), 10);
        assert_eq!(node.count("istio_tcp_sent_bytes_total", &labels), 10);
        assert_eq!(node.count("istio_tcp_connections_failed_total", &[]), 0);
    }
    for direction in ["outbound", "inbound"] {
        let line = pair.log.only(direction);
        for part in [
            "INFO access: connection complete src.addr=".to_owned(),
            format!("src.identity=\"{CLIENT}\""),
            format!("dst.identity=\"{SERVER}\""),
            format!("dst.hbone_addr={}", pair.app.address),
            "dst.workload=\"server\"".to_owned(),
            "bytes_sent=10 bytes_recv=10 duration=\"".to_owned(),
        ] {
            assert!(line.contains(&part), "{part} is missing in {line}");
        }
        assert!(!line.contains("error="), "{line}");
    }
}

#[tokio::test]
async fn connections_share_a_tunnel_and_have_an_outcome_each() {
    needs_privileges!();
    let pair = Pair::new().await;
    for _ in 0..3 {
        let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
        ping(&mut stream, "again").await;
    }
    until("all outcomes are written", || pair.is_quiet()).await;
    assert_eq!(pair.log.lines("direction=\"outbound\"").len(), 3);
    assert_eq!(pair.log.lines("direction=\"inbound\"").len(), 3);
    assert_eq!(pair.far.count("istio_tcp_connections_closed_total", &[MTLS]), 3);
}

#[tokio::test]
async fn a_denied_client_is_reset_and_both_sides_say_why() {
    needs_privileges!();
    let pair = Pair::new().await;
    pair.apply(&deny_all());
    assert_reset(pair.near.connect(&pair.client, pair.app.address).await).await;
    until("both outcomes are written", || pair.is_quiet()).await;

    assert!(pair.app.clients.lock().is_empty(), "the application must not hear of it");
    let line = pair.log.only("inbound");
    assert!(line.contains(" INFO ") && line.contains("denied by AuthorizationPolicy ns/nobody"), "{line}");
    assert!(line.contains(&format!("src.identity=\"{CLIENT}\"")), "{line}");
    let line = pair.log.only("outbound");
    assert!(line.contains("denied by the server's policy"), "{line}");
    assert!(line.contains(&format!("dst.identity=\"{SERVER}\"")), "{line}");
    for node in [&pair.near, &pair.far] {
        assert_eq!(node.count("istio_tcp_connections_failed_total", &["response_flags=\"DENY\"", MTLS]), 1);
        assert_eq!(node.count("istio_tcp_connections_opened_total", &[]), 0);
    }
}

#[tokio::test]
async fn a_client_of_an_application_that_does_not_listen_is_reset() {
    needs_privileges!();
    let pair = Pair::new().await;
    let closed = TcpListener::bind((pair.server.ip, 0)).await.unwrap().local_addr().unwrap();
    assert_reset(pair.near.connect(&pair.client, closed).await).await;
    until("both outcomes are written", || pair.is_quiet()).await;
    let line = pair.log.only("inbound");
    assert!(line.contains("nothing listens there"), "{line}");
    assert!(pair.log.only("outbound").contains("503"));
    assert_eq!(pair.far.count("istio_tcp_connections_failed_total", &["response_flags=\"CONNECT\""]), 1);
}

#[tokio::test]
async fn who_dials_the_engine_by_itself_is_reset() {
    needs_privileges!();
    let pair = Pair::new().await;
    assert_reset(TcpStream::connect(pair.client.at(OUTBOUND_PORT)).await.unwrap()).await;
    until("the outcome is written", || pair.is_quiet()).await;
    assert!(pair.log.only("outbound").contains("it was not captured"));
    assert_eq!(pair.near.count("istio_tcp_connections_failed_total", &["response_flags=\"DENY\""]), 1);
}

#[tokio::test]
async fn a_destination_outside_the_mesh_is_reached_in_clear() {
    needs_privileges!();
    let pair = Pair::new().await;
    let outside = Echo::start(unused_address()).await;
    let mut stream = pair.near.connect(&pair.client, outside.address).await;
    ping(&mut stream, "in clear").await;
    assert_eq!(pair.near.only_connection().await.path, Some(Path::Passthrough));
    drop(stream);
    until("the outcome is written", || pair.is_quiet()).await;
    let line = pair.log.only("outbound");
    assert!(!line.contains("identity") && !line.contains("hbone_addr"), "{line}");
    let unknown = ["connection_security_policy=\"unknown\"", "destination_principal=\"unknown\""];
    assert_eq!(pair.near.count("istio_tcp_connections_closed_total", &unknown), 1);
}

#[tokio::test]
async fn a_server_with_another_identity_gets_no_connection() {
    needs_privileges!();
    let pair = Pair::new().await;
    let identity = pair.client.workload.identity.clone();
    let template = Template { identity, ..Template::clone(&pair.server.workload) }.into();
    let claimed = Workload { template, ..Workload::clone(&pair.server.workload) };
    pair.near.apply(&Event::Workload(claimed.into()));
    assert_reset(pair.near.connect(&pair.client, pair.app.address).await).await;
    until("the outcome is written", || pair.is_quiet()).await;
    let flags = ["response_flags=\"TLS_FAILURE\""];
    assert_eq!(pair.near.count("istio_tcp_connections_failed_total", &flags), 1);
    assert!(pair.app.clients.lock().is_empty());
}

#[tokio::test]
async fn a_service_without_endpoints_is_refused_by_name() {
    needs_privileges!();
    let pair = Pair::new().await;
    let vip = unused_address();
    pair.apply(&Event::Service(service(vip, 80)));
    assert_reset(pair.near.connect(&pair.client, (vip, 80).into()).await).await;
    until("the outcome is written", || pair.is_quiet()).await;
    let line = pair.log.only("outbound");
    assert!(line.contains("Service web.ns.svc.cluster.local has no ready endpoint for port 80"), "{line}");
    assert!(line.contains("dst.service=\"web.ns.svc.cluster.local\""), "{line}");
}

#[tokio::test]
async fn another_endpoint_is_tried_when_one_is_down() {
    needs_privileges!();
    let pair = Pair::new().await;
    let vip = unused_address();
    pair.apply(&Event::Service(service(vip, 80)));
    // The dead one is nearer, so it is tried first.
    let dead = Endpoint { zone: "z1".into(), ..Endpoint::at(unused_address()) };
    let alive = Endpoint { zone: "z2".into(), ..Endpoint::at(pair.server.ip) };
    pair.apply(&Event::EndpointSlice(EndpointSlice {
        namespace: "ns".into(),
        name: "web-1".into(),
        service: "web".into(),
        ports: vec![ServicePort { name: "http".into(), port: pair.app.address.port() }],
        endpoints: vec![dead, alive],
    }));
    let mut stream = pair.near.connect(&pair.client, (vip, 80).into()).await;
    ping(&mut stream, "second choice").await;
    drop(stream);
    until("both outcomes are written", || pair.is_quiet()).await;
    let line = pair.log.only("outbound");
    assert!(line.contains("dst.workload=\"server\"") && !line.contains("error="), "{line}");
    assert_eq!(pair.near.count("istio_tcp_connections_failed_total", &[]), 0, "it did not fail");
}

#[tokio::test]
async fn a_workload_that_left_its_sandbox_is_refused() {
    needs_privileges!();
    let pair = Pair::new().await;
    pair.client.sandbox.workloads.write().clear();
    assert_reset(pair.near.connect(&pair.client, pair.app.address).await).await;
    until("the outcome is written", || pair.is_quiet()).await;
    assert!(pair.log.only("outbound").contains("is no enrolled workload"));
}
