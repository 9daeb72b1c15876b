//! The first words of an HBONE connection: TLS, the client's SVID, HTTP/2.
//!
//! Each wait is bounded, so a client that says nothing costs a socket for `timeouts.handshake` and no more. The
//! certificate is chosen after the ClientHello: in the node's own namespace the SNI says for which workload.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use signet_identity::SpiffeId;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::addr::{Local, Peer, WorkloadUid};
use crate::mtls::{Authenticated, Hello, Protocol, SecureStream};
use crate::proxy::Context;
use crate::proxy::failure::Failure;
use crate::proxy::hbone::Server;
use crate::proxy::native::Tunnel;
use crate::proxy::outcome::Outcome;
use crate::proxy::parties::{Direction, Parties, Path};
use crate::proxy::sandbox::Sandbox;

/// What an authenticated client speaks.
pub(super) enum Spoken {
    Hbone(Box<Server<SecureStream<TcpStream>>>),
    Native(Box<Tunnel>),
}

/// A client that has proved who it is.
#[derive(Debug)]
pub(super) struct Client {
    /// Its address.
    pub(super) peer: Peer,
    /// The address that it dialled.
    pub(super) dialled: Local,
    /// Its SPIFFE ID.
    pub(super) identity: SpiffeId,
    protocol: Protocol,
    /// The last second, since 1970, of what the handshake has proved.
    not_after: u64,
    /// The workload whose certificate it has seen.
    pub(super) server: WorkloadUid,
}

impl Client {
    /// What is known of each of its tunnels before its CONNECT is read.
    #[must_use]
    pub(super) fn parties(&self, context: &Context, sandbox: &Sandbox, baggage: Option<&str>) -> Parties {
        let mut parties = Parties::between(Direction::Inbound, self.peer.socket(), self.dialled.socket());
        parties.path = Some(match self.protocol {
            Protocol::Hbone => Path::Hbone,
            Protocol::Native => Path::Native,
        });
        parties.source.identity = Some(self.identity.clone());
        parties.source.baggage = baggage.map(|baggage| context.told.read(baggage));
        if let Some(local) = sandbox.current(&self.server) {
            parties.destination.identity = Some(local.workload.identity.clone());
            parties.destination.workload = Some(Arc::clone(&local.workload));
        }
        parties
    }

    /// One of the handshake's certificates has expired.
    pub(super) fn is_expired(&self) -> bool {
        UnixTime::now().as_secs() > self.not_after
    }

    /// Resolves when one of the handshake's certificates has expired. A clock that is set meanwhile is not seen.
    pub(super) async fn expired(&self) {
        let left = self.not_after.saturating_add(1).saturating_sub(UnixTime::now().as_secs());
        sleep(Duration::from_secs(left)).await;
    }
}

/// Shakes hands. Of a client that does not get through it (it stalls, its server's pod goes) there is an outcome; what others
/// ask for has outcomes of its own.
pub(super) async fn admitted(
    context: &Context,
    sandbox: &Sandbox,
    stream: TcpStream,
    (peer, dialled): (Peer, Local),
) -> Option<(Spoken, Client)> {
    let mut parties = Parties::between(Direction::Inbound, peer.socket(), dialled.socket());
    parties.path = Some(Path::Hbone);
    parties.destination.workload = sandbox.tenant().map(|local| Arc::clone(&local.workload));
    let outcome = Outcome::begin(context, parties);
    let closing = outcome.closing();
    let result = tokio::select! {
        result = authenticate(context, sandbox, stream, (peer, dialled)) => result,
        () = closing.cancelled() => Err(Failure::Closed),
    };
    match result {
        Ok(admitted) => {
            outcome.withdraw();
            Some(admitted)
        }
        Err(failure) => {
            outcome.end(Err(failure));
            None
        }
    }
}

async fn authenticate(
    context: &Context,
    sandbox: &Sandbox,
    stream: TcpStream,
    (peer, dialled): (Peer, Local),
) -> Result<(Spoken, Client), Failure> {
    let wait = context.timeouts.handshake;
    let hello = within(wait, Hello::read(stream)).await?.map_err(Failure::Handshake)?;
    let local = sandbox.addressee(&*context.origins, hello.sni())?;
    let endpoint = local.endpoint(context.timeouts.svid).await?;
    let (tls, authenticated) = within(wait, hello.accept(&endpoint)).await?.map_err(Failure::Handshake)?;
    let Authenticated { protocol, peer: identity, not_after, .. } = authenticated;
    let spoken = match protocol {
        Protocol::Hbone => {
            Spoken::Hbone(Box::new(within(wait, Server::handshake(tls)).await?.map_err(Failure::Http2)?))
        }
        Protocol::Native => Spoken::Native(Box::new(Tunnel::new(tls))),
    };
    let server = local.workload.uid.clone();
    Ok((spoken, Client { peer, dialled, identity, protocol, not_after, server }))
}

async fn within<T>(wait: Duration, step: impl Future<Output = T>) -> Result<T, Failure> {
    timeout(wait, step).await.map_err(|_| Failure::HandshakeTimeout(wait))
}
