//! Inbound connections, from the wire to their outcome: HBONE, and plaintext where policy has it.
//!
//! ```text
//! authenticate -> [each CONNECT] tunnelled -> authorize [Permit] -> connect -> 200, relay -> Outcome
//!                                direct    -> authorize [Permit] -> connect -> relay      -> Outcome
//! ```
//!
//! The identity is in the handshake, so it comes first; after that a CONNECT and a plaintext connection go the same way.
//! Only [`Permitted`] can dial the application, and its permit is asked for again whenever the policy changes. The
//! application sees the client's address as its peer.

mod hello;
mod requests;

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;

use signet_identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

use self::hello::{Client, Spoken};
use self::requests::Requests;
use super::Context;
use super::accept::{Accepted, Moved, report};
use super::authority::Authority;
use super::baggage;
use super::failure::Failure;
use super::hbone::{Incoming, Server, Tunnel};
use super::outcome::Outcome;
use super::parties::{Direction, Parties, Party, Path};
use super::sandbox::{HeldPeer, LocalWorkload, Sandbox};
use crate::addr::{ENGINE_PORTS, Local, Peer, canonical};
use crate::block::Block;
use crate::net::{Leg, Received, arm, dial_transparent, keep_to_device, relay};
use crate::policy::{Flow, Permit};
use crate::state::{State, Workload};

/// Serves one connection of a peer in the mesh: the handshake, then what it asks for. HBONE's CONNECTs each in a task of its
/// own; a native tunnel's one after the other, in this one, or where it has moved to.
pub(crate) async fn serve(context: Arc<Context>, sandbox: Arc<Sandbox>, accepted: Accepted) -> Option<Moved> {
    let Accepted { stream, peer, local, place } = accepted;
    // Boxed: the handshake's state is most of what the task would hold for as long as the connection lives.
    match Box::pin(hello::admitted(&context, &sandbox, stream, (peer, local))).await? {
        (Spoken::Hbone(mut h2), client) => {
            Box::pin(serve_tunnels(&context, &sandbox, &mut h2, Arc::new(client))).await;
            drop(place);
            None
        }
        (Spoken::Native(tunnel), client) => {
            // Boxed twice: what it is about moves with it, and what it does is larger than the task should be.
            let requests = Box::new(Requests { context, sandbox, tunnel, client, place });
            Box::pin(requests.serve(None)).await
        }
    }
}

/// Serves one connection that came in clear. The client is reset where it cannot be served.
pub(crate) async fn serve_plaintext(context: Arc<Context>, sandbox: Arc<Sandbox>, accepted: Accepted) {
    let (context, sandbox) = (&*context, &*sandbox);
    let Accepted { stream, peer, local, place: _place } = accepted;
    let _held = sandbox.in_clear.hold(peer.socket());
    let mut parties = Parties::between(Direction::Inbound, peer.socket(), local.socket());
    parties.path = Some(Path::Plaintext);
    let mut outcome = Outcome::begin(context, parties);
    let closing = outcome.closing();
    let arrival = Arrival { context, sandbox, outcome: &mut outcome, peer, dialled: local, identity: None };
    let result = tokio::select! {
        result = follow_plaintext(arrival, stream) => result,
        () = closing.cancelled() => Err(Failure::Closed),
    };
    outcome.end(result);
}

async fn follow_plaintext(arrival: Arrival<'_>, client: TcpStream) -> Result<(), Failure> {
    // Every way out of here but the relay's orderly end is a reset.
    arm(&client).map_err(Failure::Gone)?;
    let Arrival { sandbox, peer, .. } = &arrival;
    if sandbox.dialled.contains(peer.socket()) {
        keep_to_device(&sandbox.netns, &client).map_err(Failure::Gone)?;
    }
    let arrived = arrival.direct()?;
    let permitted = arrived.authorize()?;
    let connected = permitted.connect().await?;
    connected.relay::<Block>(client).await
}

/// Ends when the client does, or with the last tunnel once the client has been asked to leave.
async fn serve_tunnels<IO>(
    context: &Arc<Context>,
    sandbox: &Arc<Sandbox>,
    h2: &mut Server<IO>,
    client: Arc<Client>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut tunnels = JoinSet::new();
    let leave = Arc::clone(&client);
    let mut leave = pin!(time_to_leave(context, &leave));
    let mut leaving = false;
    loop {
        tokio::select! {
            request = h2.next() => match request {
                Some(Ok(incoming)) => {
                    let (context, sandbox) = (Arc::clone(context), Arc::clone(sandbox));
                    tunnels.spawn(serve_tunnel(context, sandbox, Arc::clone(&client), Box::new(incoming)));
                }
                Some(Err(error)) => {
                    debug!(peer = %client.peer, %error, "HBONE connection broke");
                    break;
                }
                None => break,
            },
            Some(ended) = tunnels.join_next() => report(ended),
            () = &mut leave, if !leaving => {
                leaving = true;
                h2.shutdown();
            }
        }
    }
    while let Some(ended) = tunnels.join_next().await {
        report(ended);
    }
}

/// Resolves when the client shall open nothing new on its connection: the engine drains, or what the handshake has
/// proved is not so any more.
async fn time_to_leave(context: &Context, client: &Client) {
    tokio::select! {
        () = context.drain.stopped() => {}
        () = client.expired() => {}
    }
}

async fn serve_tunnel(
    context: Arc<Context>,
    sandbox: Arc<Sandbox>,
    client: Arc<Client>,
    incoming: Box<Incoming>,
) {
    let parties = client.parties(&context, &sandbox, incoming.header("baggage"));
    let mut outcome = Outcome::begin(&context, parties);
    let closing = outcome.closing();
    let arrival = Arrival {
        context: &context,
        sandbox: &sandbox,
        outcome: &mut outcome,
        peer: client.peer,
        dialled: client.dialled,
        identity: Some(&client.identity),
    };
    // Boxed: the set-up's state, and the request, are most of what the task would hold for as long as the tunnel lives.
    let answering = Box::pin(answer(arrival, &client, incoming));
    let serving = async {
        let (connected, tunnel) = answering.await?;
        connected.relay(tunnel).await
    };
    let result = tokio::select! {
        result = serving => result,
        () = closing.cancelled() => Err(Failure::Closed),
    };
    outcome.end(result);
}

/// Connects, and tells the client.
async fn answer<'a>(
    arrival: Arrival<'a>,
    client: &Client,
    mut incoming: Box<Incoming>,
) -> Result<(Connected<'a>, Tunnel), Failure> {
    let authority = incoming.authority().to_owned();
    let admitted = tokio::select! {
        admitted = admit(arrival, client, &authority) => admitted,
        // What nobody waits for must not be dialled on: HTTP/2 counts only the streams that are still open.
        gone = incoming.abandoned() => return Err(Failure::Unanswered(gone.into())),
    };
    match admitted {
        Ok(connected) => {
            let baggage = baggage::of(&connected.arrived.local.workload);
            let tunnel = incoming.accept(Some(&baggage)).map_err(|gone| Failure::Unanswered(gone.into()))?;
            Ok((connected, tunnel))
        }
        Err(failure) => {
            incoming.refuse(failure.status());
            Err(failure)
        }
    }
}

/// All that must have succeeded before a client in the mesh is told 200.
async fn admit<'a>(arrival: Arrival<'a>, client: &Client, authority: &str) -> Result<Connected<'a>, Failure> {
    let arrived = arrival.tunnelled(client, &Authority::parse(authority)?)?;
    let permitted = arrived.authorize()?;
    permitted.connect().await
}

/// A connection that wants in.
struct Arrival<'a> {
    context: &'a Context,
    sandbox: &'a Sandbox,
    outcome: &'a mut Outcome,
    peer: Peer,
    /// The address that the client dialled.
    dialled: Local,
    /// Who the client has proved to be; `None` in clear.
    identity: Option<&'a SpiffeId>,
}

/// It is known for whom.
struct Arrived<'a> {
    arrival: Arrival<'a>,
    local: Arc<LocalWorkload>,
    application: SocketAddr,
}

/// The policy lets it in. Made by [`Arrived::authorize`] alone.
struct Permitted<'a> {
    arrived: Arrived<'a>,
    /// Marked as seen before the permit was asked for, so that no change in between is missed.
    epoch: watch::Receiver<u64>,
}

/// The application has accepted.
struct Connected<'a> {
    arrived: Arrived<'a>,
    epoch: watch::Receiver<u64>,
    application: TcpStream,
    /// The client's name as the application knows it.
    dialled: HeldPeer<'a>,
}

impl<'a> Arrival<'a> {
    /// The application that a CONNECT asks for: on the address that was dialled, and of the workload whose certificate
    /// the client has seen.
    fn tunnelled(self, client: &Client, authority: &Authority) -> Result<Arrived<'a>, Failure> {
        let port = match authority {
            Authority::Address(address) if address.ip() == self.dialled.ip() => address.port(),
            Authority::Address(_) => {
                let (authority, dialled) = (authority.to_string(), self.dialled.socket());
                return Err(Failure::ForeignAuthority { authority, dialled });
            }
            Authority::Service { hostname, port } => self
                .context
                .state
                .target_port(hostname, *port, self.dialled.ip())
                .ok_or_else(|| Failure::ForeignService(authority.to_string()))?,
        };
        let local = self.owner(port)?;
        if local.workload.uid != client.server {
            return Err(Failure::NoOwner(port));
        }
        Ok(self.at(local, port))
    }

    /// The application that was dialled.
    fn direct(self) -> Result<Arrived<'a>, Failure> {
        let port = self.dialled.port();
        let local = self.owner(port)?;
        Ok(self.at(local, port))
    }

    fn owner(&self, port: u16) -> Result<Arc<LocalWorkload>, Failure> {
        if ENGINE_PORTS.contains(&port) {
            return Err(Failure::SelfCall(port));
        }
        self.sandbox.owner(&*self.context.origins, port)
    }

    fn at(self, local: Arc<LocalWorkload>, port: u16) -> Arrived<'a> {
        let application = SocketAddr::new(self.dialled.ip(), port);
        self.outcome.learn(|parties| {
            parties.application = Some(application);
            parties.destination.workload = Some(Arc::clone(&local.workload));
            parties.source.workload = workload_of(&self.context.state, &parties.source);
        });
        Arrived { arrival: self, local, application }
    }
}

impl<'a> Arrived<'a> {
    fn authorize(self) -> Result<Permitted<'a>, Failure> {
        let mut epoch = self.arrival.context.policy_epoch.clone();
        epoch.mark_unchanged();
        let state = &self.arrival.context.state;
        // Whoever removes the workload closes the connections that are known to be its own: this one is, by now.
        let destination = self.destination().ok_or(Failure::Closed)?;
        let flow = self.flow(&destination);
        let shadow = state.shadow(&flow);
        self.arrival.outcome.learn(|parties| parties.shadow = shadow);
        let permit = state.authorize(&flow).map_err(Failure::Denied)?;
        self.note(&permit);
        Ok(Permitted { arrived: self, epoch })
    }

    /// The destination as policies shall see it; `None` once it has left. The state's word, since the sandbox's copy may
    /// be older than the policies.
    fn destination(&self) -> Option<Arc<Workload>> {
        let uid = &self.local.workload.uid;
        self.arrival.sandbox.current(uid)?;
        self.arrival.context.state.workload(uid)
    }

    fn flow<'f>(&self, workload: &'f Workload) -> Flow<'f>
    where
        'a: 'f,
    {
        let source_ip = self.arrival.peer.ip();
        Flow {
            identity: self.arrival.identity,
            source_ip,
            // No proxy in front of us is trusted to name another client.
            remote_ip: source_ip,
            namespace: &workload.namespace,
            labels: &workload.labels,
            destination_ip: self.application.ip(),
            destination_port: self.application.port(),
        }
    }

    fn note(&self, permit: &Permit) {
        self.arrival.outcome.learn(|parties| parties.policy = permit.rule().map(Arc::from));
    }

    /// Resolves when the connection has lost its permit: asks again after each change of the policy.
    async fn lost_permit(&self, mut epoch: watch::Receiver<u64>) -> Failure {
        while epoch.changed().await.is_ok() {
            let Some(destination) = self.destination() else { return Failure::Closed };
            let flow = self.flow(&destination);
            match self.arrival.context.state.authorize(&flow) {
                Ok(permit) => self.note(&permit),
                Err(denial) => return Failure::Revoked(denial),
            }
        }
        // Nobody is left to change the policy: the engine stops, and lets connections finish.
        std::future::pending().await
    }
}

impl<'a> Permitted<'a> {
    async fn connect(self) -> Result<Connected<'a>, Failure> {
        let Self { arrived, epoch } = self;
        let Arrival { context, sandbox, peer, .. } = &arrived.arrival;
        // Port 0: the engine holds connections from the client's own ports in this namespace, and a mirrored tuple would
        // get their packets.
        let client = SocketAddr::new(peer.ip(), 0);
        let is_mirrored = |source: SocketAddr| sandbox.in_clear.contains(source);
        let timeout = context.timeouts.connect;
        let application = dial_transparent(&sandbox.netns, client, arrived.application, is_mirrored, timeout)
            .await
            .map_err(Failure::Connect)?;
        let dialled = sandbox.dialled.hold(canonical(application.local_addr().map_err(Failure::Gone)?));
        Ok(Connected { arrived, epoch, application, dialled })
    }
}

impl<'a> Connected<'a> {
    /// Boxed, so that whoever awaits it is no larger while it sets up.
    fn relay<C: Received + Send + 'a>(
        self,
        client: impl Leg<C> + Send + 'a,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        let Self { arrived, epoch, application, dialled } = self;
        arrived.arrival.outcome.opened();
        let meter = arrived.arrival.outcome.meter();
        Box::pin(async move {
            let _dialled = dialled;
            tokio::select! {
                ended = relay(client, application, &meter.traffic) => ended.map_err(Failure::Relay),
                failure = arrived.lost_permit(epoch) => Err(failure),
            }
        })
    }
}

/// The client's workload, by its address; where it has proved who it is, only one with that identity.
fn workload_of(state: &State, source: &Party) -> Option<Arc<Workload>> {
    let candidates = state.workloads_at(source.address.ip());
    match &source.identity {
        Some(identity) => candidates.into_iter().find(|workload| workload.identity == *identity),
        None => candidates.into_iter().find(|workload| !workload.host_network),
    }
}
