//! Servers whose node's engine is away.

use std::net::TcpStream;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Pair, needs_privileges, service};
use crate::addr::HBONE_PORT;
use crate::config::{Timeouts, Tunnel};
use crate::proxy::Running;
use crate::proxy::connections::Path;
use crate::proxy::testing::{Echo, assert_reset, ping, until, unused_address};
use crate::state::{Endpoint, EndpointSlice, Event, ServicePort};

const METRIC: &str = "signet_awaited_engines_total";

impl Pair {
    /// The engine of the server's node ends, and its listeners with it.
    async fn stop_server(&mut self) {
        self.server.running = Running { loops: Default::default(), listening: mpsc::channel(1).1 };
        let listener = self.server.at(HBONE_PORT);
        until("nobody listens", || TcpStream::connect(listener).is_err()).await;
    }

    /// It is back.
    fn start_server(&mut self) {
        self.server.running = self.far.serve(self.server.ip, &self.server.sandbox);
    }
}

#[tokio::test]
async fn a_connection_waits_for_the_engine_of_its_servers_node() {
    needs_privileges!();
    for tunnel in [Tunnel::Hbone, Tunnel::Auto] {
        let mut pair = Pair::speaking(Timeouts::default(), [tunnel; 2]).await;
        pair.stop_server().await;
        let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
        until("it waits", || pair.near.context.connections.views().len() == 1).await;
        pair.start_server();
        ping(&mut stream, "it is back").await;
        assert_eq!(pair.near.count(METRIC, &["result=\"back\""]), 1);
        assert_eq!(pair.near.count("istio_tcp_connections_failed_total", &[]), 0);
    }
}

#[tokio::test]
async fn a_tunnel_that_broke_with_its_engine_is_replaced_once_that_is_back() {
    needs_privileges!();
    for tunnel in [Tunnel::Hbone, Tunnel::Auto] {
        let mut pair = Pair::speaking(Timeouts::default(), [tunnel; 2]).await;
        let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
        ping(&mut stream, "over a tunnel that rests afterwards").await;
        drop(stream);
        until("it rests", || pair.is_quiet()).await;
        pair.stop_server().await;
        let mut stream = pair.near.connect(&pair.client, pair.app.address).await;
        until("it waits", || pair.near.context.connections.views().len() == 1).await;
        pair.start_server();
        ping(&mut stream, "over a new one").await;
    }
}

#[tokio::test]
async fn who_waited_for_long_enough_is_refused() {
    needs_privileges!();
    let timeouts = Timeouts { engine: Duration::from_millis(100), ..Timeouts::default() };
    let mut pair = Pair::with(timeouts).await;
    pair.stop_server().await;
    assert_reset(pair.near.connect(&pair.client, pair.app.address).await).await;
    until("the outcome is written", || pair.is_quiet()).await;
    assert!(pair.log.only("outbound").contains("nothing listens there"), "{}", pair.log.only("outbound"));
    assert_eq!(pair.near.count(METRIC, &["result=\"refused\""]), 1);
}

#[tokio::test]
async fn an_endpoint_whose_engine_is_there_is_asked_first() {
    needs_privileges!();
    let mut pair = Pair::new().await;
    let other = pair.near.pod("other").await;
    pair.apply_all(&other);
    pair.stop_server().await;
    let vip = unused_address();
    pair.apply(&Event::Service(service(vip, 80)));
    let port = pair.app.address.port();
    let echo = Echo::at((other.ip, port).into()).await;
    // The one without an engine is nearer, so it is tried first.
    let away = Endpoint { zone: "z1".into(), pod: true, ..Endpoint::at(pair.server.ip) };
    let there = Endpoint { zone: "z2".into(), pod: true, ..Endpoint::at(other.ip) };
    pair.apply(&Event::EndpointSlice(EndpointSlice {
        namespace: "ns".into(),
        name: "web-1".into(),
        service: "web".into(),
        ports: vec![ServicePort { name: "http".into(), port }],
        endpoints: vec![away, there],
    }));
    let mut stream = pair.near.connect(&pair.client, (vip, 80).into()).await;
    ping(&mut stream, "second choice").await;
    assert_eq!(pair.near.only_connection().await.path, Some(Path::Hbone));
    assert_eq!(echo.clients.lock().len(), 1);
    assert_eq!(pair.near.count(METRIC, &[]), 0, "nobody waited");
}
