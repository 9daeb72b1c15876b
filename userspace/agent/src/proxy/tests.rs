//! Two nodes on loopback, joined by real mTLS and HBONE: what becomes of a connection, and that each has one outcome.
//!
//! They need CAP_NET_ADMIN and CAP_SYS_ADMIN (transparent sources, marks, namespaces) and say so where they lack them.

mod absence;
mod awaited;
mod host;
mod inbound;
mod lifetime;
mod log;
mod native;
mod outbound;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use signet_identity::testing::TestCa;

use self::log::Log;
use super::hbone::{ConnectRequest, HboneError, PoolKey};
use super::testing::{Echo, Node, Pod};
use super::{baggage, traceparent};
use crate::addr::HBONE_PORT;
use crate::config::{Timeouts, Tunnel};
use crate::policy::{Action, AuthorizationPolicy, MtlsMode, PeerAuthentication, Rule};
use crate::state::{Event, External, Service, ServicePort};

/// `client` on one node, `server` with an echo application on another.
struct Pair {
    near: Node,
    far: Node,
    client: Pod,
    server: Pod,
    app: Echo,
    log: Log,
}

impl Pair {
    async fn new() -> Self {
        Self::with(Timeouts::default()).await
    }

    async fn with(timeouts: Timeouts) -> Self {
        Self::speaking(timeouts, [Tunnel::Hbone; 2]).await
    }

    /// With these `mesh.tunnel`, the client's node first.
    async fn speaking(timeouts: Timeouts, [near, far]: [Tunnel; 2]) -> Self {
        let ca = Arc::new(TestCa::new("cluster.local"));
        let near = Node::speaking(&ca, timeouts.clone(), near);
        let far = Node::speaking(&ca, timeouts, far);
        Self::of(near, far).await
    }

    /// On these nodes.
    async fn of(near: Node, far: Node) -> Self {
        let log = Log::capture();
        let (client, server) = (near.pod("client").await, far.pod("server").await);
        let app = Echo::start(server.ip).await;
        let pair = Self { near, far, client, server, app, log };
        pair.apply_all(&pair.client);
        pair.apply_all(&pair.server);
        pair
    }

    /// Both nodes hear of it.
    fn apply(&self, event: &Event) {
        self.near.apply(event);
        self.far.apply(event);
    }

    /// Both nodes hear of a sandbox's workloads.
    fn apply_all(&self, pod: &Pod) {
        pod.events().iter().for_each(|event| self.apply(event));
    }

    /// Asks an HBONE listener for `authority` with the client's SVID, naming `sni_port` in the SNI where given.
    async fn ask(&self, server: &Pod, sni_port: Option<u16>, authority: &str) -> Result<(), StatusCode> {
        let local = self.client.sandbox.current(&self.client.workload.uid).unwrap();
        let endpoint = local.endpoint(Duration::from_secs(5)).await.unwrap();
        let request = ConnectRequest {
            key: PoolKey {
                source: self.client.workload.uid.clone(),
                destination: server.workload.uid.clone(),
                address: server.at(HBONE_PORT),
                sni_port,
            },
            authority: authority.to_owned(),
            expected: [server.workload.identity.clone()].into(),
            baggage: baggage::of(&self.client.workload),
            forwarded_for: self.client.at(1),
            traceparent: traceparent::generate(),
            timeout: Duration::from_secs(10),
        };
        match self.near.context.pool.open(&self.client.sandbox.netns, &endpoint, request).await {
            Ok(_) => Ok(()),
            Err(HboneError::Status(_, status)) => Err(status),
            Err(other) => panic!("{other}"),
        }
    }

    /// Both nodes have written the outcome of every connection.
    fn is_quiet(&self) -> bool {
        [&self.near, &self.far].iter().all(|node| node.context.connections.views().is_empty())
    }
}

/// Denies everything to `server`.
fn deny_all() -> Event {
    Event::Authorization(Box::new(AuthorizationPolicy {
        namespace: "ns".into(),
        name: "nobody".into(),
        selector: [("app".to_owned(), "server".to_owned())].into(),
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule::default()],
        warnings: Vec::new(),
    }))
}

fn strict() -> Event {
    Event::PeerAuthentication(Box::new(PeerAuthentication {
        namespace: "ns".into(),
        name: "only-mtls".into(),
        selector: [].into(),
        mode: MtlsMode::Strict,
        ports: [].into(),
        created: 0,
        warnings: Vec::new(),
    }))
}

fn service(vip: std::net::IpAddr, port: u16) -> Service {
    Service {
        namespace: "ns".into(),
        name: "web".into(),
        hostname: "web.ns.svc.cluster.local".into(),
        vips: vec![vip],
        ports: vec![ServicePort { name: "http".into(), port }],
        affinity: false,
        local: false,
        external: External::default(),
    }
}

/// Runs the body as root; elsewhere fails with what is missing, or skips where that is allowed.
macro_rules! needs_privileges {
    () => {
        if let Err(missing) = crate::proxy::tests::privileges() {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            assert_eq!(
                std::env::var("SIGNET_TEST_ALLOW_SKIP").as_deref(),
                Ok("1"),
                "{missing}; run as root, or set SIGNET_TEST_ALLOW_SKIP=1"
            );
            // Past libtest's capture, so that the runner counts it.
            let _ =
                std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("SKIP {test}: {missing}\n"));
            return;
        }
    };
}
use needs_privileges;

fn privileges() -> Result<(), String> {
    let socket = tokio::net::TcpSocket::new_v4().map_err(|e| e.to_string())?;
    socket2::SockRef::from(&socket)
        .set_ip_transparent_v4(true)
        .map_err(|error| format!("CAP_NET_ADMIN is missing (IP_TRANSPARENT: {error})"))?;
    crate::net::Netns::current()
        .and_then(|netns| netns.run(|| ()))
        .map_err(|error| format!("CAP_SYS_ADMIN is missing (setns: {error})"))
}
