//! A native tunnel's requests: one application connection after the other, on one TLS connection and in one task.
//!
//! Between two requests a tunnel rests, and its client takes whichever it likes of those that rest: all that are used may be
//! one worker's, or their workers any. So a tunnel that is used moves to the worker of its client's thread, or to one that
//! serves fewer.

use std::io;
use std::sync::Arc;

use tokio::time::sleep;
use tracing::debug;

use super::hello::Client;
use super::{Arrival, Connected, Moved, admit};
use crate::proxy::failure::Failure;
use crate::proxy::native::{ABANDONED, ANOTHER_CONNECTION, Open, Tunnel};
use crate::proxy::outcome::Outcome;
use crate::proxy::sandbox::Sandbox;
use crate::proxy::{Context, baggage};
use crate::workers::Place;

/// A tunnel, whose, and where it is served.
pub(super) struct Requests {
    pub(super) context: Arc<Context>,
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) tunnel: Box<Tunnel>,
    pub(super) client: Client,
    pub(super) place: Place,
}

impl Requests {
    /// Serves a tunnel, `first` where it has been asked for already, until its client closes it, something ends other than
    /// in order, or it moves.
    pub(super) async fn serve(mut self: Box<Self>, first: Option<Box<Open>>) -> Option<Moved> {
        let mut asked = first;
        loop {
            let open = match asked.take() {
                Some(open) => open,
                None => {
                    let open = self.next().await?;
                    if let Some(place) = self.context.workers.better(&self.place, open.lane) {
                        return Some(self.moved(place, open));
                    }
                    open
                }
            };
            let Self { context, sandbox, tunnel, client, .. } = &mut *self;
            serve_one(context, sandbox, tunnel, client, open).await.ok()?;
        }
    }

    /// The next request; `None` where there is none that can be served.
    async fn next(&mut self) -> Option<Box<Open>> {
        self.place.rest();
        // Boxed: with its timer it is what the task would hold for as long as it serves.
        let next = Box::pin(next(&self.context, &mut self.tunnel)).await;
        self.place.resume();
        match next {
            Ok(Some(_)) if self.client.is_expired() => {
                // What the handshake has proved is not so any more; it fails where the client has gone.
                let _ = self.tunnel.refuse(ANOTHER_CONNECTION).await;
                None
            }
            Ok(open) => open,
            Err(error) => {
                debug!(peer = %self.client.peer, %error, "native tunnel broke");
                None
            }
        }
    }

    /// The request is served at another place, and what comes after it.
    fn moved(mut self: Box<Self>, place: Place, open: Box<Open>) -> Moved {
        let runtime = place.runtime().clone();
        self.place = place;
        let rest = Box::pin(async move {
            self.tunnel.settle_here();
            self.serve(Some(open)).await
        });
        Moved { rest, runtime }
    }
}

/// The next request; `None` where the client has closed, or is gone. Once the engine drains, the client is told so; what has
/// crossed that is served.
async fn next(context: &Context, tunnel: &mut Tunnel) -> io::Result<Option<Box<Open>>> {
    tokio::select! {
        biased;
        open = tunnel.next_open() => return open,
        () = context.drain.stopped() => {}
        () = sleep(ABANDONED) => return Ok(None),
    }
    tunnel.leave().await?;
    // A client that stays is cut off with the drain's deadline.
    tunnel.next_open().await
}

/// An error means that the tunnel cannot be used again.
async fn serve_one(
    context: &Context,
    sandbox: &Sandbox,
    tunnel: &mut Tunnel,
    client: &Client,
    open: Box<Open>,
) -> Result<(), ()> {
    let (mut outcome, authority) = begin(context, sandbox, client, *open);
    let closing = outcome.closing();
    let arrival = Arrival {
        context,
        sandbox,
        outcome: &mut outcome,
        peer: client.peer,
        dialled: client.dialled,
        identity: Some(&client.identity),
    };
    // Boxed: the set-up's state is most of what the task would hold for as long as the connection lives.
    let answering = Box::pin(answer(arrival, client, authority, tunnel));
    let serving = async {
        let (connected, tunnel) = answering.await?;
        connected.relay(tunnel).await
    };
    let result = tokio::select! {
        result = serving => result,
        () = closing.cancelled() => Err(Failure::Closed),
    };
    let usable = if tunnel.is_at_rest() { Ok(()) } else { Err(()) };
    outcome.end(result);
    usable
}

/// What was asked for is read once, and not held for as long as it is served.
fn begin(context: &Context, sandbox: &Sandbox, client: &Client, open: Open) -> (Outcome, String) {
    let Open { authority, baggage, .. } = open;
    let parties = client.parties(context, sandbox, Some(&baggage));
    (Outcome::begin(context, parties), authority)
}

/// Connects, and tells the client.
async fn answer<'a, 't>(
    arrival: Arrival<'a>,
    client: &Client,
    authority: String,
    tunnel: &'t mut Tunnel,
) -> Result<(Connected<'a>, &'t mut Tunnel), Failure> {
    let admitted = tokio::select! {
        admitted = admit(arrival, client, &authority) => admitted,
        // What nobody waits for must not be dialled on.
        gone = tunnel.abandoned() => return Err(Failure::Unanswered(gone.into())),
    };
    match admitted {
        Ok(connected) => {
            let baggage = baggage::of(&connected.arrived.local.workload);
            tunnel.accept(baggage).map_err(|gone| Failure::Unanswered(gone.into()))?;
            Ok((connected, tunnel))
        }
        Err(failure) => {
            // It fails where the client has gone, and then the tunnel is at no rest.
            let _ = tunnel.refuse(failure.status()).await;
            Err(failure)
        }
    }
}
