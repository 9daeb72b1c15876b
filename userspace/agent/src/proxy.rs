//! One connection from accept to outcome.
//!
//! Three entries, one for each listener of a sandbox: [`outbound::serve`] for what the kernel captured,
//! [`inbound::serve`] for HBONE, [`inbound::serve_plaintext`] for everything else that arrives. Each is a chain of verbs
//! in which a step consumes the one before, so that nothing can be dialled that was not authorised; each ends in one
//! [`outcome::Outcome`].
//!
//! A sandbox's tasks form a tree that ends from the root: [`Running`] owns the accept loops, a loop its connections, an
//! HBONE connection its tunnels. Nothing here writes to the state or the kernel.

mod accept;
mod access;
mod authority;
pub mod awaited;
mod baggage;
pub mod connections;
pub mod direct;
pub mod earlier;
mod failure;
pub mod hbone;
mod inbound;
mod meter;
pub mod metrics;
pub mod native;
mod outbound;
mod outcome;
mod parties;
mod sandbox;
pub(crate) mod sni;
mod traceparent;
mod upstream;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt as _;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::addr::{CgroupId, NetnsCookie};
use crate::config::{OutboundTrafficPolicy, Timeouts, Tunnel};
use crate::drain::Watch;
use crate::kernel::{Origin, Origins};
use crate::net::Listeners;
use crate::state::State;
use crate::workers::Workers;
use accept::{Accepted, Listening, Serving, accept};
use awaited::Awaited;
use connections::Connections;
use direct::Direct;
use hbone::Pool;
use metrics::Metrics;

pub use sandbox::{LocalWorkload, Sandbox};

/// What every connection needs: shared, built once by `app`.
pub struct Context {
    /// The node's view.
    pub state: Arc<State>,
    /// The kernel's records: [`Origins`], or a table in tests.
    pub origins: Arc<dyn OriginLookup>,
    /// HBONE client connections of the whole node.
    pub pool: Pool,
    /// Native tunnels of the whole node that are at rest.
    pub native: native::Pool,
    /// What is spoken between nodes.
    pub tunnel: Tunnel,
    /// What may be reached that is nobody's of the mesh.
    pub outside: OutboundTrafficPolicy,
    /// Istio's TCP metrics.
    pub metrics: Arc<Metrics>,
    /// Every live connection.
    pub connections: Arc<Connections>,
    /// Those that go past the engine.
    pub direct: Arc<Direct>,
    /// What peers say of themselves.
    pub(crate) told: baggage::Told,
    /// Bounds of each step.
    pub timeouts: Timeouts,
    /// This node's zone: endpoints in it are preferred.
    pub zone: Arc<str>,
    /// The policy epoch, sent by `reconcile` after each [`State::apply`] that may have changed an answer. Live connections
    /// are authorised anew when it changes.
    pub policy_epoch: watch::Receiver<u64>,
    /// Sent by `reconcile` whenever more may be known of where addresses lead.
    pub discovered: watch::Receiver<()>,
    /// Connections that have waited for that.
    pub awaited: Awaited,
    /// Asked to stop: accept loops end, live connections finish. Whoever drains drops the `Context` too, since the drain
    /// waits for this watch as well.
    pub drain: Watch,
    /// Who serves them.
    pub workers: Workers,
}

/// What the kernel recorded about flows, as the proxies ask for it.
pub trait OriginLookup: Send + Sync {
    /// The record of an outbound flow, see [`Origins::lookup`].
    fn lookup(&self, netns: NetnsCookie, client: SocketAddr, listener: SocketAddr) -> Option<Origin>;
    /// The enrolled cgroup behind a listening port, see [`Origins::port_owner`].
    fn port_owner(&self, netns: NetnsCookie, port: u16) -> Option<CgroupId>;
}

/// Accept loops of one sandbox; dropping it stops accepting and closes its connections.
#[derive(Debug)]
pub struct Running {
    loops: JoinSet<()>,
    /// Nothing is ever sent: each loop has the other end while its listener is open.
    listening: mpsc::Receiver<Infallible>,
}

/// Starts the accept loops of a sandbox, all on one worker.
#[must_use]
pub fn start(context: Arc<Context>, sandbox: Arc<Sandbox>, listeners: Listeners) -> Running {
    let (open, listening) = mpsc::channel(1);
    let mut running = Running { loops: JoinSet::new(), listening };
    let mut on = |socket, serve| {
        running.accept(&context, &sandbox, Listening { socket, open: open.clone() }, serve);
    };
    let Listeners { outbound_v4, outbound_v6, plaintext, hbone } = listeners;
    on(outbound_v4, Serve::Outbound);
    if let Some(outbound_v6) = outbound_v6 {
        on(outbound_v6, Serve::Outbound);
    }
    on(plaintext, Serve::Plaintext);
    on(hbone, Serve::Hbone);
    running
}

/// What a listener is for.
#[derive(Clone, Copy, Debug)]
enum Serve {
    Outbound,
    Plaintext,
    Hbone,
}

impl Running {
    /// Resolves when the drain has begun and the last listener is closed.
    pub async fn closed(&mut self) {
        let None = self.listening.recv().await;
    }

    /// Resolves when the drain has begun and the last connection has ended. Whoever waits bounds the wait, and then drops.
    pub async fn finished(&mut self) {
        while self.loops.join_next().await.is_some() {}
    }

    fn accept(
        &mut self,
        context: &Arc<Context>,
        sandbox: &Arc<Sandbox>,
        listener: Listening,
        purpose: Serve,
    ) {
        let (context, sandbox) = (Arc::clone(context), Arc::clone(sandbox));
        let (drain, workers) = (context.drain.clone(), context.workers.clone());
        let home = context.workers.in_turn(sandbox.cookie.0).clone();
        let serve = move |accepted| serve(Arc::clone(&context), Arc::clone(&sandbox), purpose, accepted);
        self.loops.spawn_on(accept(listener, workers, drain, serve), &home);
    }
}

/// Boxed, so that the task of each kind is as large as that kind and no larger: most of them are idle.
fn serve(context: Arc<Context>, sandbox: Arc<Sandbox>, purpose: Serve, accepted: Accepted) -> Serving {
    match purpose {
        Serve::Outbound => Box::pin(outbound::serve(context, sandbox, accepted).map(|()| None)),
        Serve::Plaintext => Box::pin(inbound::serve_plaintext(context, sandbox, accepted).map(|()| None)),
        Serve::Hbone => Box::pin(inbound::serve(context, sandbox, accepted)),
    }
}

impl OriginLookup for Origins {
    fn lookup(&self, netns: NetnsCookie, client: SocketAddr, listener: SocketAddr) -> Option<Origin> {
        Self::lookup(self, netns, client, listener)
    }
    fn port_owner(&self, netns: NetnsCookie, port: u16) -> Option<CgroupId> {
        Self::port_owner(self, netns, port)
    }
}
