//! Addresses inside the cluster of which nobody has told yet.

use std::net::IpAddr;
use std::time::Duration;

use super::{Pair, needs_privileges, service};
use crate::config::Timeouts;
use crate::proxy::connections::Path;
use crate::proxy::testing::{Echo, assert_reset, ping, until, unused_address};
use crate::state::{Endpoint, EndpointSlice, Event, RangeKind, Ranges, ServicePort};

const METRIC: &str = "signet_awaited_destinations_total";

fn range(kind: RangeKind, address: IpAddr) -> Event {
    Event::Ranges(Ranges { kind, owner: "range".into(), blocks: vec![address.into()], node: Vec::new() })
}

#[tokio::test]
async fn a_connection_to_a_service_that_is_told_of_later_waits_for_it() {
    needs_privileges!();
    let pair = Pair::new().await;
    let vip = unused_address();
    pair.apply(&range(RangeKind::Services, vip));
    let mut stream = pair.near.connect(&pair.client, (vip, 80).into()).await;
    until("it waits", || pair.near.context.connections.views().len() == 1).await;
    pair.apply(&Event::Service(service(vip, 80)));
    let endpoint = Endpoint { pod: true, ..Endpoint::at(pair.server.ip) };
    pair.apply(&Event::EndpointSlice(EndpointSlice {
        namespace: "ns".into(),
        name: "web-1".into(),
        service: "web".into(),
        ports: vec![ServicePort { name: "http".into(), port: pair.app.address.port() }],
        endpoints: vec![endpoint],
    }));
    ping(&mut stream, "told of").await;
    assert_eq!(pair.near.only_connection().await.path, Some(Path::Hbone));
    assert_eq!(pair.near.count(METRIC, &["kind=\"service\"", "result=\"known\""]), 1);
}

#[tokio::test]
async fn a_connection_to_a_pod_that_nobody_tells_of_is_refused_and_nobody_is_dialled() {
    needs_privileges!();
    let timeouts = Timeouts { discovery: Duration::from_millis(100), ..Timeouts::default() };
    let pair = Pair::with(timeouts).await;
    let unknown = Echo::start(unused_address()).await;
    pair.apply(&range(RangeKind::Pods, unknown.address.ip()));
    assert_reset(pair.near.connect(&pair.client, unknown.address).await).await;
    until("the outcome is written", || pair.is_quiet()).await;
    assert!(unknown.clients.lock().is_empty(), "it went out in clear");
    assert!(pair.log.only("outbound").contains("must be a pod's"), "{}", pair.log.only("outbound"));
    assert_eq!(pair.near.count(METRIC, &["kind=\"pod\"", "result=\"refused\""]), 1);
    pair.apply(&range(RangeKind::Outside, unknown.address.ip()));
    let mut stream = pair.near.connect(&pair.client, unknown.address).await;
    ping(&mut stream, "said to be outside").await;
}

#[tokio::test]
async fn another_nodes_bridge_is_no_pod_where_this_nodes_bridge_has_its_ranges_first_address() {
    needs_privileges!();
    let timeouts = Timeouts { discovery: Duration::from_millis(100), ..Timeouts::default() };
    let pair = Pair::with(timeouts).await;
    let bridge = Echo::start("127.9.9.1".parse().unwrap()).await;
    let nodes = |node: &str, range: &str| {
        let blocks = vec![range.parse().unwrap()];
        Event::Ranges(Ranges { kind: RangeKind::Pods, owner: node.into(), blocks, node: Vec::new() })
    };
    pair.apply(&nodes("other", "127.9.9.0/24"));
    assert_reset(pair.near.connect(&pair.client, bridge.address).await).await;
    until("the outcome is written", || pair.is_quiet()).await;
    assert!(bridge.clients.lock().is_empty(), "it may be a pod, and went out in clear");
    // Loopback, which has the first address of this range, is the bridge of this node.
    pair.apply(&nodes("this", "127.0.0.0/8"));
    let mut stream = pair.near.connect(&pair.client, bridge.address).await;
    ping(&mut stream, "a bridge").await;
}

#[tokio::test]
async fn an_endpoint_that_is_a_pods_waits_for_the_pod_whatever_the_ranges() {
    needs_privileges!();
    let timeouts = Timeouts { discovery: Duration::from_millis(100), ..Timeouts::default() };
    let pair = Pair::with(timeouts).await;
    let (vip, unknown) = (unused_address(), Echo::start(unused_address()).await);
    let endpoint = Endpoint { pod: true, ..Endpoint::at(unknown.address.ip()) };
    pair.apply(&Event::EndpointSlice(EndpointSlice {
        namespace: "ns".into(),
        name: "web-1".into(),
        service: "web".into(),
        ports: vec![ServicePort { name: "http".into(), port: unknown.address.port() }],
        endpoints: vec![endpoint],
    }));
    pair.apply(&Event::Service(service(vip, 80)));
    assert_reset(pair.near.connect(&pair.client, (vip, 80).into()).await).await;
    until("the outcome is written", || pair.is_quiet()).await;
    assert!(unknown.clients.lock().is_empty(), "it went out in clear");
}
