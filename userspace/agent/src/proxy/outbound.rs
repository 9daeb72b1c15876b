//! One captured connection, from the kernel's record to its outcome.
//!
//! ```text
//! captured -> identify -> resolve -> authorize -> connect -> relay -> Outcome
//! ```
//!
//! Each step consumes the one before, and only [`Authorized`] can dial. What is authorised here is the path: a
//! destination in the mesh is reached over mTLS with an SVID of the client's own, or not at all. Whether the client may
//! talk to it is decided by the server's side, which knows its policies. Until bytes were relayed, another endpoint of
//! the same Service is tried at most twice, and where the engines of those are away, all of them again.

mod absence;
mod route;
mod waiting;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use signet_identity::SpiffeId;
use tokio::net::TcpStream;

use self::absence::Absence;
use self::route::{Expected, MeshRoute, Missing, Route};
use super::accept::Accepted;
use super::failure::Failure;
use super::hbone::{ConnectRequest, HboneError, Opened, PoolKey};
use super::native::Early;
use super::outcome::Outcome;
use super::parties::{Direction, Parties, Path};
use super::sandbox::{LocalWorkload, Sandbox};
use super::upstream::{self, Upstream};
use super::{Context, awaited, baggage, traceparent};
use crate::addr::{HBONE_PORT, Local, OriginalDst, Peer};
use crate::config::OutboundTrafficPolicy;
use crate::kernel::Origin;
use crate::mtls::Endpoint;
use crate::net::{RelayError, arm, dial};
use crate::state::{RangeKind, Wish, Workload};

/// Serves one connection that reached the capture listener. The client is reset where it cannot be served.
pub(crate) async fn serve(context: Arc<Context>, sandbox: Arc<Sandbox>, accepted: Accepted) {
    let (context, sandbox) = (&*context, &*sandbox);
    let Accepted { stream, peer, local, place: _place } = accepted;
    let parties = Parties::between(Direction::Outbound, peer.socket(), local.socket());
    let mut outcome = Outcome::begin(context, parties);
    let closing = outcome.closing();
    let early = Early::default();
    let session = Session { context, sandbox, outcome: &mut outcome, client: stream, early, peer };
    // Boxed: the set-up's state is most of what the task would hold for as long as the connection lives.
    let set_up = Box::pin(set_up(session, local));
    let result = tokio::select! {
        result = async { set_up.await?.relay().await.map_err(Failure::Relay) } => result,
        () = closing.cancelled() => Err(Failure::Closed),
    };
    outcome.end(result);
}

async fn set_up(session: Session<'_>, listener: Local) -> Result<Connected<'_>, Failure> {
    // Every way out of here but the relay's orderly end is a reset.
    arm(&session.client).map_err(Failure::Gone)?;
    let captured = session.captured(listener)?;
    let identified = captured.identify()?;
    identified.resolve().await?.authorize().await?.connect().await
}

/// What every step has.
struct Session<'a> {
    context: &'a Context,
    sandbox: &'a Sandbox,
    outcome: &'a mut Outcome,
    client: TcpStream,
    /// What it has said before its server was found.
    early: Early,
    peer: Peer,
}

/// The kernel has a record of the connection.
struct Captured<'a> {
    session: Session<'a>,
    origin: Origin,
}

/// The client is one of our workloads.
struct Identified<'a> {
    session: Session<'a>,
    local: Arc<LocalWorkload>,
    /// The application's end.
    client: SocketAddr,
    destination: OriginalDst,
    wish: Wish,
    /// Endpoints that have failed.
    failed: Vec<SocketAddr>,
}

/// The destination leads somewhere.
struct Resolved<'a> {
    identified: Identified<'a>,
    route: Route,
}

/// The way there is legal. Made by [`Resolved::authorize`] alone.
struct Authorized<'a> {
    identified: Identified<'a>,
    /// The application's address.
    application: SocketAddr,
    way: Way,
}

enum Way {
    Tunnel { endpoint: Endpoint, request: Box<ConnectRequest> },
    Passthrough,
}

/// The destination has answered.
struct Connected<'a> {
    session: Session<'a>,
    upstream: Upstream,
}

impl<'a> Session<'a> {
    /// A process that dials the listener by itself has no record, and nothing is done for it.
    fn captured(self, listener: Local) -> Result<Captured<'a>, Failure> {
        let origin = self
            .context
            .origins
            .lookup(self.sandbox.cookie, self.peer.socket(), listener.socket())
            .ok_or(Failure::NotCaptured)?;
        self.outcome.learn(|parties| parties.destination.address = origin.destination.socket());
        Ok(Captured { session: self, origin })
    }
}

impl<'a> Captured<'a> {
    fn identify(self) -> Result<Identified<'a>, Failure> {
        let Origin { cgroup, destination, choice } = self.origin;
        let local = self.session.sandbox.workload(cgroup).ok_or(Failure::UnknownCgroup(cgroup))?;
        let client = as_seen_outside(self.session.peer, &local.workload);
        self.session.outcome.learn(|parties| {
            parties.source.address = client;
            parties.source.workload = Some(Arc::clone(&local.workload));
        });
        let of_family = |address: &&IpAddr| address.is_ipv4() == destination.ip().is_ipv4();
        let wish = Wish { client: local.workload.addresses.iter().find(of_family).copied(), choice };
        Ok(Identified { session: self.session, local, client, destination, wish, failed: Vec::new() })
    }
}

impl<'a> Identified<'a> {
    fn find(&self) -> Result<Route, Missing> {
        let Context { state, zone, .. } = self.session.context;
        Route::find(state, self.destination, zone, self.wish, &self.failed)
    }

    fn leading(self, route: Route) -> Resolved<'a> {
        self.session.outcome.learn(|parties| route.describe(parties));
        Resolved { identified: self, route }
    }

    fn failure(&self, missing: Missing) -> Failure {
        if let Some(service) = missing.service() {
            self.session.outcome.learn(|parties| parties.service = Some(Arc::clone(service)));
        }
        match missing {
            Missing::Endpoint(service)
            | Missing::Told(Expected { kind: RangeKind::Services, service: Some(service), .. }) => {
                Failure::NoEndpoint(Arc::clone(&service.hostname), self.destination.port())
            }
            Missing::Told(expected) => Failure::NotTold {
                address: expected.address,
                what: awaited::name(expected.kind),
                wait: self.session.context.timeouts.discovery,
            },
        }
    }
}

impl<'a> Resolved<'a> {
    /// A destination in the mesh needs an SVID of the client's own; one outside of it must really be outside.
    async fn authorize(self) -> Result<Authorized<'a>, Failure> {
        let Self { identified, route } = self;
        let application = route.application();
        let Session { context, sandbox, .. } = identified.session;
        // Whoever removes the workload closes the connections that are known to be its own: this one is, by now.
        sandbox.current(&identified.local.workload.uid).ok_or(Failure::Closed)?;
        let way = match route {
            Route::Mesh(mesh) => {
                let endpoint = identified.local.endpoint(context.timeouts.svid).await?;
                Way::Tunnel { endpoint, request: Box::new(identified.request(*mesh)) }
            }
            Route::Passthrough { workload: None, service: None, .. }
                if context.outside == OutboundTrafficPolicy::RegistryOnly =>
            {
                return Err(Failure::NotInRegistry(application));
            }
            Route::Passthrough { .. } => {
                route::refuse_leak(&context.state, application)?;
                Way::Passthrough
            }
        };
        Ok(Authorized { identified, application, way })
    }
}

impl Identified<'_> {
    fn request(&self, mesh: MeshRoute) -> ConnectRequest {
        let timeouts = &self.session.context.timeouts;
        ConnectRequest {
            key: PoolKey {
                source: self.local.workload.uid.clone(),
                destination: mesh.workload.uid.clone(),
                address: SocketAddr::new(mesh.application.ip(), HBONE_PORT),
                sni_port: mesh.workload.host_network.then_some(mesh.application.port()),
            },
            authority: mesh.application.to_string(),
            expected: mesh.expected,
            baggage: baggage::of(&self.local.workload),
            forwarded_for: self.client,
            traceparent: traceparent::generate(),
            // The server dials its application before it answers, and may take as long for it as we for the server.
            timeout: timeouts.connect + timeouts.handshake,
        }
    }
}

impl<'a> Authorized<'a> {
    async fn connect(mut self) -> Result<Connected<'a>, Failure> {
        let mut absence = Absence::default();
        loop {
            let failure = match self.dial().await {
                Ok(upstream) => {
                    absence.is_over(&self.identified);
                    self.report();
                    return Ok(Connected { session: self.identified.session, upstream });
                }
                Err(failure) => failure,
            };
            let (identified, another) = self.another(&failure);
            let resolved = match another {
                Some(route) => identified.leading(route),
                None => absence.again(identified, failure).await?,
            };
            self = resolved.authorize().await?;
        }
    }

    /// Both sides are proven: where the server is a neighbour, and policy says so, the next connection may go by itself.
    fn report(&self) {
        if let Way::Tunnel { request, .. } = &self.way {
            let PoolKey { source, destination, .. } = &request.key;
            self.identified.session.context.direct.served(source, destination, self.application);
        }
    }

    async fn dial(&mut self) -> Result<Upstream, Failure> {
        let Session { context, sandbox, outcome, client, early, .. } = &mut self.identified.session;
        let (netns, local) = (&sandbox.netns, &self.identified.local);
        match &self.way {
            Way::Passthrough => {
                let stream = dial(netns, self.application, context.timeouts.connect).await;
                stream.map(Upstream::Plain).map_err(Failure::Connect)
            }
            Way::Tunnel { endpoint, request } => {
                let opened = upstream::open(context, netns, endpoint, request, (early, client)).await;
                let server = proven(&opened, &request.expected);
                let client = server.is_some().then(|| local.workload.identity.clone());
                outcome.learn(|parties| {
                    parties.source.identity = client;
                    parties.destination.identity = server;
                    if let Ok((Upstream::Native(_), _)) = opened {
                        parties.path = Some(Path::Native);
                    }
                });
                opened.map(|(upstream, _)| upstream).map_err(Failure::of_tunnel)
            }
        }
    }

    /// Another endpoint of the same Service, where the failure was the last one's own and there is another.
    fn another(self, failure: &Failure) -> (Identified<'a>, Option<Route>) {
        let mut identified = self.identified;
        if !failure.is_endpoints_own() || identified.failed.len() == MAX_RETRIES {
            return (identified, None);
        }
        identified.failed.push(self.application);
        // There is none where the Service has nothing else to offer, or the destination is no Service.
        let another = identified.find().ok();
        let another = another.filter(|route| !identified.failed.contains(&route.application()));
        (identified, another)
    }
}

impl<'a> Connected<'a> {
    fn relay(self) -> impl Future<Output = Result<(), RelayError>> + 'a {
        let Session { context, outcome, client, early, .. } = self.session;
        outcome.opened();
        self.upstream.relay(context, client, &early, outcome.meter())
    }
}

/// A socket that was bound to a port and no address reaches us from loopback: its workload's address is what it would have
/// gone out with.
fn as_seen_outside(peer: Peer, workload: &Workload) -> SocketAddr {
    let fits = |address: &&IpAddr| address.is_ipv4() == peer.ip().is_ipv4();
    match workload.addresses.iter().find(fits) {
        Some(address) if peer.ip().is_loopback() => SocketAddr::new(*address, peer.port()),
        _ => peer.socket(),
    }
}

/// Who the server has proved to be, as far as that can be told.
fn proven(opened: &Result<(Upstream, Opened), HboneError>, expected: &[SpiffeId]) -> Option<SpiffeId> {
    match (opened, expected) {
        (Ok((_, opened)), _) => Some(opened.peer.clone()),
        // It has answered, so the handshake was good: it is who was expected.
        (Err(HboneError::Status(..)), [only]) => Some(only.clone()),
        (Err(_), _) => None,
    }
}

/// Each of them may take `timeouts.connect`, and the application waits.
const MAX_RETRIES: usize = 2;
