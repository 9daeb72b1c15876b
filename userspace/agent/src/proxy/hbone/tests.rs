//! HBONE over pipes: everything but TCP and TLS, which `tests/hbone.rs` adds.

mod ends;
mod pool;
mod server;
mod tunnel;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use signet_identity::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::mtls::{Authenticated, Protocol};

/// A machine with an HBONE server, reached by pipes instead of TCP and mTLS.
#[derive(Clone)]
struct Machine {
    dials: Arc<AtomicUsize>,
    identity: SpiffeId,
    /// When what it proves expires, seconds since 1970.
    not_after: u64,
    answer: fn(Incoming),
}

impl Machine {
    fn new(answer: fn(Incoming)) -> Self {
        Self { dials: Arc::default(), identity: backend(), not_after: u64::MAX, answer }
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    async fn dial(self) -> Result<(DuplexStream, Authenticated), HboneError> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let (near, far) = tokio::io::duplex(PIPE);
        tokio::spawn(async move {
            let mut server = Server::handshake(far).await.unwrap();
            while let Some(Ok(incoming)) = server.next().await {
                (self.answer)(incoming);
            }
        });
        Ok((near, Authenticated { not_after: self.not_after, ..proven(self.identity) }))
    }

    async fn open(&self, pool: &Pool, request: &ConnectRequest) -> Result<(Tunnel, Opened), HboneError> {
        pool.open_with(&"1".into(), request, || self.clone().dial()).await
    }
}

/// Accepts and sends back what comes.
fn echo(incoming: Incoming) {
    tokio::spawn(async move {
        let mut tunnel = incoming.accept(None).unwrap();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = tunnel.read(&mut buffer).await?;
            if count == 0 {
                return tunnel.shutdown().await;
            }
            tunnel.write_all(&buffer[..count]).await?;
        }
        #[expect(unreachable_code, reason = "names the block's type")]
        io::Result::Ok(())
    });
}

/// Two ends of one tunnel.
async fn tunnel() -> (Tunnel, Tunnel) {
    let (near, far) = tokio::io::duplex(PIPE);
    let (told, accepted) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut server = Server::handshake(far).await.unwrap();
        let incoming = server.next().await.unwrap().unwrap();
        told.send(incoming.accept(None).unwrap()).ok().unwrap();
        while server.next().await.is_some() {}
    });
    let (connection, driver) =
        client::handshake(near, request().key.address, proven(backend())).await.unwrap();
    tokio::spawn(driver.run(|| true));
    let (client, _) = connection.claim().unwrap().connect(&request()).await.unwrap();
    (client, within(accepted).await.unwrap())
}

fn request() -> ConnectRequest {
    ConnectRequest {
        key: PoolKey {
            source: WorkloadUid::new("frontend"),
            destination: WorkloadUid::new("backend"),
            address: "10.0.0.2:15008".parse().unwrap(),
            sni_port: None,
        },
        authority: "10.0.0.2:8080".to_owned(),
        expected: Arc::new([backend()]),
        baggage: "k8s.namespace.name=photo-ns".to_owned(),
        forwarded_for: "10.0.0.1:40000".parse().unwrap(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        timeout: PATIENCE,
    }
}

/// A peer whose certificate does not expire.
fn proven(peer: SpiffeId) -> Authenticated {
    Authenticated { protocol: Protocol::Hbone, peer, not_after: u64::MAX, sni: None }
}

fn backend() -> SpiffeId {
    SpiffeId::parse("spiffe://cluster.local/ns/photo-ns/sa/photo-backend").unwrap()
}

/// The bytes that tests send, so that a receiver can tell a lost, doubled or moved one.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Self {
        Self((0..PERIOD + LONGEST).map(|at| (at % PERIOD) as u8).collect())
    }

    fn at(&self, offset: usize, length: usize) -> &[u8] {
        &self.0[offset % PERIOD..][..length]
    }
}

async fn within<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.expect("within the deadline")
}

const PATIENCE: Duration = Duration::from_secs(30);
const PIPE: usize = 64 * 1024;
/// A prime, so that no block size hides a shift.
const PERIOD: usize = 251;
const LONGEST: usize = 512 * 1024;
