//! HBONE over TCP and mTLS on loopback, dialled through the pool as `proxy::outbound` does. Needs root, since dialling
//! enters a network namespace, be it this process's own.
//!
//! Where the machine lacks that, a test panics; with `SIGNET_TEST_ALLOW_SKIP=1` it prints `SKIP <test>: <reason>`.

#![expect(clippy::unwrap_used, reason = "a step of a test that fails is the test's failure")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use signet_agent::addr::WorkloadUid;
use signet_agent::mtls::{Endpoint, HandshakeError};
use signet_agent::net::{NetError, Netns, Traffic, relay};
use signet_agent::proxy::hbone::{
    ConnectRequest, HboneError, Incoming, Opened, Pool, PoolKey, Server, Tunnel,
};
use signet_identity::testing::TestCa;
use signet_identity::{SpiffeId, X509Svid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Returns from the test where it may be skipped.
macro_rules! need_namespaces {
    ($test:literal) => {
        if let Err(error) = Netns::current().unwrap().run(|| ()) {
            let reason = format!("cannot enter a network namespace ({error}): run as root");
            assert!(std::env::var_os("SIGNET_TEST_ALLOW_SKIP").is_some_and(|set| set == "1"), "{reason}");
            // Past libtest's capture, so that the runner counts it.
            let _ =
                std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("SKIP {}: {reason}\n", $test));
            return;
        }
    };
}

#[tokio::test]
async fn a_tunnel_over_mtls_carries_bytes_to_whom_was_expected() {
    need_namespaces!("a_tunnel_over_mtls_carries_bytes_to_whom_was_expected");
    let mesh = Mesh::new();
    let backend = mesh.serve().await;
    let (mut tunnel, opened) = mesh.open(&backend, &[mesh.backend_id()]).await.unwrap();
    assert_eq!(opened.peer, mesh.backend_id());
    assert_echo(&mut tunnel).await;
}

#[tokio::test]
async fn a_server_with_another_identity_is_not_talked_to() {
    need_namespaces!("a_server_with_another_identity_is_not_talked_to");
    let mesh = Mesh::new();
    let backend = mesh.serve().await;
    let refused = mesh.open(&backend, &[mesh.ca.id("photo-ns", "other")]).await.map(|_| ());
    let Err(HboneError::Handshake(_, why)) = &refused else { panic!("{refused:?}") };
    assert!(matches!(**why, HandshakeError::UnexpectedId { .. }), "{why}");
    assert_eq!(backend.tunnels.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_the_server_does_not_trust_hears_so() {
    need_namespaces!("a_client_that_the_server_does_not_trust_hears_so");
    let mesh = Mesh::new();
    let backend = mesh.serve().await;
    let stranger = TestCa::new("elsewhere.test");
    let client = stranger.svid_trusting("photo-ns", "photo-frontend", stranger.bundles_with(&[&mesh.ca]));
    let mesh = Mesh { client: Endpoint::new(&client).unwrap(), ..mesh };
    let refused = mesh.open(&backend, &[mesh.backend_id()]).await.map(|_| ());
    let Err(HboneError::Handshake(_, why)) = &refused else { panic!("{refused:?}") };
    assert!(matches!(**why, HandshakeError::Refused(_)), "{why}");
}

#[tokio::test]
async fn a_rotated_svid_dials_anew_while_old_tunnels_go_on() {
    need_namespaces!("a_rotated_svid_dials_anew_while_old_tunnels_go_on");
    let mut mesh = Mesh::new();
    let backend = mesh.serve().await;
    let (mut old, _) = mesh.open(&backend, &[mesh.backend_id()]).await.unwrap();
    mesh.open(&backend, &[mesh.backend_id()]).await.unwrap();
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
    mesh.client = Endpoint::new(&mesh.ca.svid("photo-ns", "photo-frontend")).unwrap();
    let (mut new, _) = mesh.open(&backend, &[mesh.backend_id()]).await.unwrap();
    assert_eq!(backend.connections.load(Ordering::SeqCst), 2);
    assert_echo(&mut old).await;
    assert_echo(&mut new).await;
}

#[tokio::test]
async fn a_peer_that_does_not_listen_is_told_from_one_that_speaks_no_tls() {
    need_namespaces!("a_peer_that_does_not_listen_is_told_from_one_that_speaks_no_tls");
    let mesh = Mesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = Backend::at(listener.local_addr().unwrap());
    let shout = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    });
    let refused = mesh.open(&plain, &[mesh.backend_id()]).await.map(|_| ());
    assert!(matches!(refused, Err(HboneError::Handshake(..))), "{refused:?}");
    drop(within(shout).await.unwrap());
    let refused = mesh.open(&plain, &[mesh.backend_id()]).await.map(|_| ());
    let Err(HboneError::Dial(_, why)) = &refused else { panic!("{refused:?}") };
    assert!(matches!(**why, NetError::Refused(_)), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarter_gibibyte_arrives_whole_while_as_much_goes_the_other_way() {
    need_namespaces!("a_quarter_gibibyte_arrives_whole_while_as_much_goes_the_other_way");
    let mesh = Mesh::new();
    let backend = mesh.serve().await;
    let (tunnel, _) = mesh.open(&backend, &[mesh.backend_id()]).await.unwrap();
    let (application, captured) = pair().await;
    let relaying = tokio::spawn(async move { relay(captured, tunnel, &Traffic::default()).await });
    let (mut reader, mut writer) = application.into_split();
    let write = async {
        for block in 0..BLOCKS {
            writer.write_all(&vec![block as u8; BLOCK]).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let mut buffer = vec![0; BLOCK];
        for block in 0..BLOCKS {
            reader.read_exact(&mut buffer).await.unwrap();
            assert!(buffer == vec![block as u8; BLOCK], "block {block} is not as sent");
        }
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 0);
    };
    within(async { tokio::join!(write, read) }).await;
    within(relaying).await.unwrap().unwrap();
}

/// A CA, a client of it, and the pool the client dials from.
struct Mesh {
    ca: TestCa,
    pool: Pool,
    client: Endpoint,
}

/// A server, and what has arrived there.
#[derive(Clone)]
struct Backend {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    tunnels: Arc<AtomicUsize>,
}

impl Backend {
    fn at(address: SocketAddr) -> Self {
        Self { address, connections: Arc::default(), tunnels: Arc::default() }
    }
}

impl Mesh {
    fn new() -> Self {
        let ca = TestCa::new("cluster.local");
        let client = Endpoint::new(&ca.svid("photo-ns", "photo-frontend")).unwrap();
        Self { ca, pool: Pool::new(), client }
    }

    fn backend_id(&self) -> SpiffeId {
        self.ca.id("photo-ns", "photo-backend")
    }

    /// An echo server behind HBONE.
    async fn serve(&self) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = Backend::at(listener.local_addr().unwrap());
        let svid: Arc<X509Svid> = self.ca.svid("photo-ns", "photo-backend");
        tokio::spawn(accept(listener, Endpoint::new(&svid).unwrap(), backend.clone()));
        backend
    }

    async fn open(&self, backend: &Backend, expected: &[SpiffeId]) -> Result<(Tunnel, Opened), HboneError> {
        let request = ConnectRequest {
            key: PoolKey {
                source: WorkloadUid::new("frontend"),
                destination: WorkloadUid::new("backend"),
                address: backend.address,
                sni_port: None,
            },
            authority: "10.0.0.2:8080".to_owned(),
            expected: expected.into(),
            baggage: String::new(),
            forwarded_for: "10.0.0.1:40000".parse().unwrap(),
            traceparent: String::new(),
            timeout: PATIENCE,
        };
        self.pool.open(&Netns::current().unwrap(), &self.client, request).await
    }
}

async fn accept(listener: TcpListener, endpoint: Endpoint, backend: Backend) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (endpoint, backend) = (endpoint.clone(), backend.clone());
        tokio::spawn(async move {
            let Ok((tls, _)) = endpoint.accept(stream).await else { return };
            backend.connections.fetch_add(1, Ordering::SeqCst);
            let mut server = Server::handshake(tls).await.unwrap();
            while let Some(Ok(incoming)) = server.next().await {
                backend.tunnels.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(echo(incoming));
            }
        });
    }
}

/// The application is a TCP echo server, as far as the tunnel can tell.
async fn echo(incoming: Incoming) {
    let (application, dialled) = pair().await;
    let (mut reader, mut writer) = application.into_split();
    tokio::spawn(async move {
        tokio::io::copy(&mut reader, &mut writer).await?;
        writer.shutdown().await
    });
    let tunnel = incoming.accept(None).unwrap();
    // How it ends is the client's to judge.
    let _ = relay(tunnel, dialled, &Traffic::default()).await;
}

async fn assert_echo(tunnel: &mut Tunnel) {
    within(async {
        tunnel.write_all(b"ping").await.unwrap();
        let mut pong = [0; 4];
        tunnel.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"ping");
    })
    .await;
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

async fn within<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.expect("within the deadline")
}

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 1024 * 1024;
const BLOCKS: usize = 256;
