//! Two TCP connections joined by a relay, over loopback: `client - a : b - server`.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::block::Block;

struct Joined {
    client: TcpStream,
    server: TcpStream,
    relay: JoinHandle<Result<(), RelayError>>,
    traffic: std::sync::Arc<Traffic>,
}

impl Joined {
    async fn new() -> Self {
        let ((client, a), (b, server)) = (pair().await, pair().await);
        let traffic = std::sync::Arc::new(Traffic::default());
        let counted = std::sync::Arc::clone(&traffic);
        let relay = tokio::spawn(async move { relay::<Block, _, _>(a, b, &counted).await });
        Self { client, server, relay, traffic }
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_are_counted_before_the_end() {
    let mut joined = Joined::new().await;
    joined.client.write_all(b"question").await.unwrap();
    assert_eq!(read(&mut joined.server, 8).await, b"question");
    joined.server.write_all(b"answer").await.unwrap();
    assert_eq!(read(&mut joined.client, 6).await, b"answer");
    assert_eq!(joined.traffic.a_to_b.load(Ordering::Relaxed), 8);
    assert_eq!(joined.traffic.b_to_a.load(Ordering::Relaxed), 6);
    assert!(!joined.relay.is_finished());
}

#[tokio::test]
async fn each_direction_ends_for_itself_and_the_relay_with_the_last() {
    let mut joined = Joined::new().await;
    joined.client.shutdown().await.unwrap();
    assert_eq!(within(joined.server.read(&mut [0; 8])).await.unwrap(), 0);
    joined.server.write_all(b"still here").await.unwrap();
    assert_eq!(read(&mut joined.client, 10).await, b"still here");
    joined.server.shutdown().await.unwrap();
    assert_eq!(within(joined.client.read(&mut [0; 8])).await.unwrap(), 0);
    within(joined.relay).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_of_one_side_is_a_reset_of_the_other_and_blamed_on_it() {
    let mut joined = Joined::new().await;
    crate::net::reset(joined.client);
    assert_reset(within(joined.server.read(&mut [0; 8])).await);
    let error = within(joined.relay).await.unwrap().unwrap_err();
    assert_eq!((error.side, error.action), (Side::A, Action::Receive));

    let mut joined = Joined::new().await;
    crate::net::reset(joined.server);
    assert_reset(within(joined.client.read(&mut [0; 8])).await);
    let error = within(joined.relay).await.unwrap().unwrap_err();
    assert_eq!((error.side, error.action), (Side::B, Action::Receive));
}

#[tokio::test]
async fn what_came_before_a_reset_arrives_before_it() {
    let mut joined = Joined::new().await;
    joined.server.write_all(b"413 too much").await.unwrap();
    crate::net::reset(joined.server);
    let mut answer = Vec::new();
    assert_reset(within(joined.client.read_to_end(&mut answer)).await);
    assert_eq!(answer, b"413 too much");
}

#[tokio::test]
async fn a_relay_that_is_given_up_resets_both_sides() {
    let mut joined = Joined::new().await;
    joined.client.write_all(b"half a").await.unwrap();
    assert_eq!(read(&mut joined.server, 6).await, b"half a");
    joined.relay.abort();
    assert_reset(within(joined.server.read(&mut [0; 8])).await);
    assert_reset(within(joined.client.read(&mut [0; 8])).await);
}

#[tokio::test]
async fn both_directions_move_at_once() {
    let Joined { client, server, relay, .. } = Joined::new().await;
    let (to_server, to_client) = tokio::join!(fill_and_drain(client), fill_and_drain(server));
    assert_eq!((to_server, to_client), (VOLUME, VOLUME));
    within(relay).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_waits_holds_the_writer_back() {
    let Joined { mut client, mut server, relay, traffic } = Joined::new().await;
    let writer = tokio::spawn(async move {
        client.write_all(&vec![7; VOLUME]).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let (mut read, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        // A slow reader: the relay gets every chance to run ahead.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let count = within(server.read(&mut buffer)).await.unwrap();
        if count == 0 {
            break;
        }
        let ahead = usize::try_from(traffic.a_to_b.load(Ordering::Relaxed)).unwrap() - read;
        assert!(ahead <= KERNEL_BUFFERS, "the relay is {ahead} bytes ahead");
        read += count;
    }
    assert_eq!(read, VOLUME);
    drop((writer.await.unwrap(), server));
    within(relay).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_relay_holds_no_buffer() {
    let mut joined = Joined::new().await;
    joined.client.write_all(b"once").await.unwrap();
    assert_eq!(read(&mut joined.server, 4).await, b"once");
    let size = size_of::<Relay<Block>>();
    assert!(size <= 256, "two directions at rest take {size} bytes");
}

/// Writes [`VOLUME`] bytes and reads until the end; the number of bytes read.
async fn fill_and_drain(stream: TcpStream) -> usize {
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        writer.write_all(&vec![7; VOLUME]).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let read = async { reader.read_to_end(&mut received).await.unwrap() };
    within(async { tokio::join!(write, read).1 }).await
}

/// A connection over loopback with small kernel buffers.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(64 * 1024).unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let near = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (near, far)
}

async fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut buffer = vec![0; count];
    within(stream.read_exact(&mut buffer)).await.unwrap();
    buffer
}

fn assert_reset<T: fmt::Debug>(outcome: io::Result<T>) {
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

async fn within<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), step).await.expect("within the deadline")
}

const VOLUME: usize = 32 * 1024 * 1024;

/// What one loopback connection may hold: the kernel grows its buffers up to `tcp_wmem` and `tcp_rmem` (4 and 6 MiB).
const KERNEL_BUFFERS: usize = 12 * 1024 * 1024;
