//! What a client's connection is carried over: a native tunnel, an HBONE tunnel, or a plain connection out of the mesh.
//!
//! Which tunnel is the server's choice, by ALPN. A client asks its pools first; where neither knows the server, it dials
//! and offers both, and whichever pool belongs to the answer keeps the connection. So a server that learns the native
//! tunnel, or unlearns it, is met with what it speaks as soon as its old connections are gone, and nothing remembers.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Context;
use super::connections::Metered;
use super::hbone::{self, ConnectRequest, HboneError, Opened};
use super::native::{self, ANOTHER_CONNECTION, Attempt, Early, Open, Proven, Slot};
use crate::block::Block;
use crate::mtls::{Authenticated, Endpoint, Protocol, SecureStream};
use crate::net::{Netns, RelayError, relay_after};
use crate::workers::WorkerId;

/// An open way to the application.
pub(crate) enum Upstream {
    /// Boxed: one variant is given, the others take its room.
    Native(Box<(Slot, Proven)>),
    Hbone(hbone::Tunnel),
    Plain(TcpStream),
}

/// A tunnel from one of `context`'s pools, or a new one, to whom `request` is for. `early` is what the application says
/// until then, and is read from it at most once: another server may be asked with it after this one has failed.
///
/// # Errors
/// Which step failed.
pub(crate) async fn open(
    context: &Context,
    netns: &Netns,
    endpoint: &Endpoint,
    request: &ConnectRequest,
    (early, application): (&mut Early, &mut TcpStream),
) -> Result<(Upstream, Opened), HboneError> {
    if !endpoint.offers_native() {
        let opened = context.pool.open(netns, endpoint, request.clone()).await?;
        return Ok((Upstream::Hbone(opened.0), opened.1));
    }
    let opening = open_either(context, netns, endpoint, request, (&mut *early, application));
    let opened = timeout(request.timeout, opening).await;
    opened.unwrap_or_else(|_| {
        let address = request.key.address;
        Err(match early.are_at_risk() {
            true => HboneError::Broken(address, Arc::new(ErrorKind::TimedOut.into())),
            false => HboneError::Timeout(address, request.timeout),
        })
    })
}

async fn open_either(
    context: &Context,
    netns: &Netns,
    endpoint: &Endpoint,
    request: &ConnectRequest,
    (early, application): (&mut Early, &mut TcpStream),
) -> Result<(Upstream, Opened), HboneError> {
    let slot =
        Slot { key: request.key.clone(), svid: Arc::clone(endpoint.serial()), worker: WorkerId::current() };
    loop {
        let pooled = context.native.take(&slot, &request.expected);
        let is_pooled = pooled.is_some();
        let mut proven = match pooled {
            Some(proven) => proven,
            None if context.pool.knows(&request.key, endpoint.serial()) => {
                let opened = context.pool.open(netns, endpoint, request.clone()).await?;
                return Ok((Upstream::Hbone(opened.0), opened.1));
            }
            None => match hbone::dial(netns.clone(), endpoint.clone(), request.clone()).await? {
                (stream, peer) if peer.protocol == Protocol::Native => {
                    Proven { tunnel: native::Tunnel::new(stream), peer }
                }
                dialled => return open_hbone(context, netns, endpoint, request, dialled).await,
            },
        };
        let address = request.key.address;
        match native::open(&mut proven.tunnel, &head(request), early, application).await {
            Ok(status) if status.code.is_success() => {
                let baggage = (!status.baggage.is_empty()).then_some(status.baggage);
                let opened = Opened { peer: proven.peer.peer.clone(), baggage };
                return Ok((Upstream::Native(Box::new((slot, proven))), opened));
            }
            // It is the connection's fault, and the next one's proof is fresh.
            Ok(status) if status.code == ANOTHER_CONNECTION && is_pooled => {}
            Ok(status) => {
                context.native.put(slot, proven);
                return Err(HboneError::Status(address, status.code));
            }
            // It may have died since it was last used, and nothing of the application was sent.
            Err(Attempt::Unsent(_)) if is_pooled => {}
            Err(Attempt::Unsent(error)) => return Err(HboneError::Unsent(address, Arc::new(error))),
            Err(Attempt::Broken(error)) => return Err(HboneError::Broken(address, Arc::new(error))),
        }
    }
}

/// The server has chosen HBONE: its pool takes the connection over, if it has need of it.
async fn open_hbone(
    context: &Context,
    netns: &Netns,
    endpoint: &Endpoint,
    request: &ConnectRequest,
    dialled: (SecureStream<TcpStream>, Authenticated),
) -> Result<(Upstream, Opened), HboneError> {
    let dialled = Arc::new(Mutex::new(Some(dialled)));
    let dial = || {
        let (netns, endpoint, request) = (netns.clone(), endpoint.for_hbone(), request.clone());
        let dialled = dialled.lock().take();
        async move {
            match dialled {
                Some(dialled) => Ok(dialled),
                None => hbone::dial(netns, endpoint, request).await,
            }
        }
    };
    let opened = context.pool.open_with(endpoint.serial(), request, dial).await?;
    Ok((Upstream::Hbone(opened.0), opened.1))
}

fn head(request: &ConnectRequest) -> Open {
    Open {
        lane: WorkerId::current().lane(),
        authority: request.authority.clone(),
        client: request.forwarded_for.to_string(),
        baggage: request.baggage.clone(),
        traceparent: request.traceparent.clone(),
    }
}

impl Upstream {
    /// Moves bytes until both directions have ended. `early` has been read from the client already.
    ///
    /// Boxed, each way in a box of its own size: an idle connection is this and little else. The future ends with which side
    /// broke, and how.
    pub(crate) fn relay<'a>(
        self,
        context: &'a Context,
        client: TcpStream,
        early: &Early,
        meter: Metered,
    ) -> Pin<Box<dyn Future<Output = Result<(), RelayError>> + Send + 'a>> {
        match self {
            Self::Native(tunnel) => {
                // What the application has said went with the OPEN.
                meter.traffic.sent_early(early.bytes().len());
                Box::pin(relay_native(context, client, tunnel, meter))
            }
            Self::Hbone(tunnel) => {
                let early = Bytes::copy_from_slice(early.bytes());
                Box::pin(async move { relay_after(early, client, tunnel, &meter.traffic).await })
            }
            Self::Plain(server) => {
                let early = early.block();
                Box::pin(async move { relay_after(early, client, server, &meter.traffic).await })
            }
        }
    }
}

/// The tunnel rests after it.
async fn relay_native(
    context: &Context,
    client: TcpStream,
    mut tunnel: Box<(Slot, Proven)>,
    meter: Metered,
) -> Result<(), RelayError> {
    relay_after(Block::default(), client, &mut tunnel.1.tunnel, &meter.traffic).await?;
    let (slot, proven) = *tunnel;
    context.native.put(slot, proven);
    Ok(())
}
