//! Accepts connections and does TLS, so that the service sees only what is established.
//!
//! Handshakes run beside each other, each with a deadline; connections are counted against a limit until they are
//! closed. A client that sends nothing, or thousands of them, costs a slot for a while and nobody else's time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// One established connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    /// Given back when the connection is dropped.
    _slot: OwnedSemaphorePermit,
}

/// Established connections, until the listener's task ends or the stream is dropped.
pub(crate) type Connections = ReceiverStream<io::Result<Connection>>;

/// Starts to accept. The task ends when the returned stream is dropped.
pub(crate) fn accept(listener: TcpListener, tls: ServerConfig, metrics: Metrics) -> Connections {
    let (established, connections) = mpsc::channel(1);
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        tokio::select! {
            () = established.closed() => {}
            () = accept_all(&listener, &acceptor, &established, &metrics) => {}
        }
    });
    ReceiverStream::new(connections)
}

async fn accept_all(
    listener: &TcpListener,
    acceptor: &TlsAcceptor,
    established: &mpsc::Sender<io::Result<Connection>>,
    metrics: &Metrics,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, or the peer was faster: neither ends the listener.
                warn!(error = %e, "connection not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let handshake = handshake(acceptor.clone(), stream, peer, slot, metrics.clone());
        let established = established.clone();
        tokio::spawn(async move {
            if let Some(connection) = handshake.await {
                // An error means that the server is shutting down.
                let _ = established.send(Ok(connection)).await;
            }
        });
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    slot: OwnedSemaphorePermit,
    metrics: Metrics,
) -> Option<Connection> {
    // Without it small answers wait for the client's acknowledgement; failing to set it costs nothing else.
    let _ = stream.set_nodelay(true);
    let reason = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(Connection { stream, _slot: slot }),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "timeout".to_owned(),
    };
    metrics.handshake_failed();
    debug!(%peer, reason, "TLS handshake failed");
    None
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Two per node, for a cluster of 2,000 nodes; about 100 kilobytes each.
const MAX_CONNECTIONS: usize = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A pause, so that an error that stays does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
