//! A native tunnel's requests: one application connection after the other, on one TLS connection and in one task.

use std::io;
use std::sync::Arc;

use tracing::debug;

use super::hello::Client;
use super::{Arrival, Connected, admit};
use crate::proxy::failure::Failure;
use crate::proxy::native::{ANOTHER_CONNECTION, Open, Tunnel};
use crate::proxy::outcome::Outcome;
use crate::proxy::sandbox::Sandbox;
use crate::proxy::{Context, baggage};

/// Serves a tunnel until its client closes it, or something ends other than in order.
pub(super) async fn serve(
    context: &Arc<Context>,
    sandbox: &Arc<Sandbox>,
    mut tunnel: Box<Tunnel>,
    client: Client,
) {
    loop {
        match next(context, &mut tunnel).await {
            Ok(Some(_)) if client.is_expired() => {
                // What the handshake has proved is not so any more; it fails where the client has gone.
                let _ = tunnel.refuse(ANOTHER_CONNECTION).await;
                return;
            }
            Ok(Some(open)) => {
                if serve_one(context, sandbox, &mut tunnel, &client, open).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                debug!(peer = %client.peer, %error, "native tunnel broke");
                return;
            }
        }
    }
}

/// The next request. Once the engine drains, the client is told so; what has crossed that is served.
async fn next(context: &Context, tunnel: &mut Tunnel) -> io::Result<Option<Box<Open>>> {
    tokio::select! {
        biased;
        open = tunnel.next_open() => return open,
        () = context.drain.stopped() => {}
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
