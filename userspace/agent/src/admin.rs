//! Read-only views of the node engine: the admin socket, metrics and readiness.
//!
//! `app` hands over what the views read ([`Sources`]) and the listeners are bound before anything else starts, so that a
//! port in use is an error of start-up and not of the first scrape. Nothing here changes anything: whoever may read the
//! socket (its owner alone, mode 0600) learns who talks to whom, and no keys, since no view has one.

mod bounded;
mod routes;
mod socket;
mod stage;
pub mod views;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpListener;
use tracing::error;

pub use self::stage::{Stage, ask};

use self::bounded::Bounded;
use self::socket::AdminSocket;
use crate::config::Listen;
use crate::discovery::Health;
use crate::drain::Watch;
use crate::kernel::Finding;
use crate::proxy::connections::ConnectionView;
use crate::reconcile::Statuses;
use crate::state::State;
use crate::svid::CertificateView;
use crate::telemetry::Registry;

/// What the views read. Built once by `app`, shared by all requests, written by none.
pub struct Sources {
    /// This engine.
    pub about: About,
    /// This node's workloads.
    pub statuses: Statuses,
    /// The mesh.
    pub state: Arc<State>,
    /// How the source is, where it is one that can be cut off.
    pub source: Option<Health>,
    /// [`crate::svid::Store::certificates`].
    pub certificates: Read<CertificateView>,
    /// [`crate::proxy::connections::Connections::views`].
    pub connections: Read<ConnectionView>,
    /// [`crate::kernel::preflight`]; may block.
    pub preflight: Read<Finding>,
    /// The CA and the API server, asked right now; may block.
    pub probes: Read<Finding>,
    /// All metrics.
    pub registry: Arc<Registry>,
}

/// Takes a fresh list.
pub type Read<T> = Box<dyn Fn() -> Vec<T> + Send + Sync>;

/// This engine, as configured.
#[derive(Clone, Debug)]
pub struct About {
    /// `config.instance`.
    pub instance: String,
    /// `config.node.name`.
    pub node: String,
    /// `config.mesh.trustDomain`.
    pub trust_domain: String,
    /// `config.mesh.rootNamespace`.
    pub root_namespace: String,
    /// When the process started.
    pub started: Instant,
}

/// The bound listeners.
#[derive(Debug)]
pub struct Listening {
    admin: AdminSocket,
    metrics: TcpListener,
    readiness: TcpListener,
}

/// Why a listener could not be bound. The operator's to mend, except for `Io` on the socket's folder.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A TCP port.
    #[error("{field}: cannot listen on {address}: {source}; free it or choose another")]
    Tcp {
        /// `listen.metrics` or `listen.readiness`.
        field: &'static str,
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Another process answers on the admin socket.
    #[error(
        "listen.admin: another process listens on {}; give each instance a socket of its own",
        path.display()
    )]
    Taken {
        /// As configured.
        path: PathBuf,
    },
    /// Something else than a socket lies there.
    #[error("listen.admin: {} exists and is no socket; remove it or choose another path", path.display())]
    NoSocket {
        /// As configured.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("listen.admin: cannot {step} {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Binds all three listeners.
///
/// # Errors
/// Which one, and what to do.
pub async fn bind(listen: &Listen) -> Result<Listening, AdminError> {
    Ok(Listening {
        metrics: bind_tcp("listen.metrics", listen.metrics).await?,
        readiness: bind_tcp("listen.readiness", listen.readiness).await?,
        admin: AdminSocket::bind(&listen.admin)?,
    })
}

async fn bind_tcp(field: &'static str, address: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(address).await.map_err(|source| AdminError::Tcp { field, address, source })
}

impl Listening {
    /// Where metrics are, with the port the kernel chose where 0 was configured.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn metrics(&self) -> std::io::Result<SocketAddr> {
        self.metrics.local_addr()
    }

    /// Where readiness is.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn readiness(&self) -> std::io::Result<SocketAddr> {
        self.readiness.local_addr()
    }

    /// Says why there is no engine to anybody who asks for readiness, until `until`.
    pub async fn refuse(self, reason: &str, until: impl Future<Output = ()> + Send + 'static) {
        let conditions = vec![Finding { name: "start".into(), ok: false, detail: reason.to_owned() }];
        let readiness = views::ReadinessView { ready: false, conditions };
        answer_readiness(self.readiness, readiness, until).await;
    }

    /// Serves until the drain begins, then ends the requests there are and removes the socket.
    pub async fn serve(self, sources: Arc<Sources>, drain: Watch) {
        let Self { admin, metrics, readiness } = self;
        let (listener, file) = admin.into_parts();
        tokio::join!(
            serve(listener, routes::views(sources.clone()), drain.clone()),
            serve(metrics, routes::metrics(sources.clone()), drain.clone()),
            serve(readiness, routes::readiness(sources), drain),
        );
        drop(file);
    }
}

/// Says that all is as it should be to anybody who asks for readiness, until `until`: where there is no engine, and
/// shall be none.
///
/// # Errors
/// The port cannot be had.
pub async fn agree(
    listen: &Listen,
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AdminError> {
    let listener = bind_tcp("listen.readiness", listen.readiness).await?;
    answer_readiness(listener, views::ReadinessView { ready: true, conditions: Vec::new() }, until).await;
    Ok(())
}

async fn answer_readiness(
    listener: TcpListener,
    readiness: views::ReadinessView,
    until: impl Future<Output = ()> + Send + 'static,
) {
    let serving = axum::serve(Bounded::new(listener), routes::fixed(readiness));
    if let Err(error) = serving.with_graceful_shutdown(until).await {
        error!(%error, "admin listener");
    }
}

async fn serve<L>(listener: L, router: axum::Router, drain: Watch)
where
    L: axum::serve::Listener,
    L::Addr: fmt::Debug,
{
    let stopped = async move { drain.stopped().await };
    let served = axum::serve(Bounded::new(listener), router).with_graceful_shutdown(stopped).await;
    if let Err(error) = served {
        error!(%error, "admin listener");
    }
}

#[cfg(test)]
mod tests;
