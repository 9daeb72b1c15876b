//! A tunnel as a byte stream: order, ends, flow control.

use super::*;

#[tokio::test]
async fn what_is_sent_comes_back_and_then_the_end() {
    let machine = Machine::new(echo);
    let pool = Pool::new();
    let (mut tunnel, opened) = machine.open(&pool, &request()).await.unwrap();
    assert_eq!(opened.peer, backend());
    let pattern = Pattern::new();
    let sent = pattern.at(0, 300_000);
    let mut received = Vec::new();
    let (mut reader, mut writer) = tokio::io::split(&mut tunnel);
    let write = async {
        writer.write_all(sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    within(async { tokio::join!(write, async { reader.read_to_end(&mut received).await.unwrap() }) }).await;
    assert_eq!(received, sent);
}

#[tokio::test]
async fn each_direction_ends_for_itself() {
    let (mut client, mut server) = tunnel().await;
    client.shutdown().await.unwrap();
    assert_eq!(within(server.read(&mut [0; 8])).await.unwrap(), 0);
    server.write_all(b"still here").await.unwrap();
    let mut answer = [0; 10];
    within(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"still here");
    server.shutdown().await.unwrap();
    assert_eq!(within(client.read(&mut [0; 8])).await.unwrap(), 0);
}

#[tokio::test]
async fn the_servers_end_leaves_the_clients_direction_open() {
    let (mut client, mut server) = tunnel().await;
    server.shutdown().await.unwrap();
    assert_eq!(within(client.read(&mut [0; 8])).await.unwrap(), 0);
    client.write_all(b"the rest").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(server.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"the rest");
}

#[tokio::test]
async fn a_dropped_tunnel_is_a_reset_and_not_an_end() {
    let (client, mut server) = tunnel().await;
    drop(client);
    assert_reset(within(server.read(&mut [0; 8])).await);

    let (mut client, server) = tunnel().await;
    drop(server);
    assert_reset(within(client.read(&mut [0; 8])).await);
}

#[tokio::test]
async fn half_of_a_tunnel_dropped_is_a_reset_too() {
    let (mut client, mut server) = tunnel().await;
    client.shutdown().await.unwrap();
    assert_eq!(within(server.read(&mut [0; 8])).await.unwrap(), 0);
    drop(client);
    let gone = std::future::poll_fn(|cx| crate::net::Leg::poll_broken(&mut server, cx));
    assert_eq!(within(gone).await.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reader_that_waits_holds_the_writer_back() {
    let (mut client, mut server) = tunnel().await;
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&accepted);
    let writer = tokio::spawn(async move {
        let pattern = Pattern::new();
        for offset in (0..TOTAL).step_by(STEP) {
            client.write_all(pattern.at(offset, STEP)).await.unwrap();
            counter.fetch_add(STEP, Ordering::SeqCst);
        }
        client.shutdown().await.unwrap();
        client
    });
    let pattern = Pattern::new();
    let mut buffer = vec![0; STEP];
    let mut read = 0;
    loop {
        // A slow reader: the writer gets every chance to run ahead.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let count = within(server.read(&mut buffer)).await.unwrap();
        if count == 0 {
            break;
        }
        assert!(buffer[..count] == *pattern.at(read, count), "other bytes than those sent, from {read} on");
        let ahead = accepted.load(Ordering::SeqCst).saturating_sub(read);
        assert!(
            ahead <= STREAM_WINDOW as usize + SEND_BUFFER + 2 * STEP,
            "the writer is {ahead} bytes ahead"
        );
        read += count;
    }
    assert_eq!(read, TOTAL);
    drop(writer.await.unwrap());
}

/// Asserts that the other side is seen to have failed.
pub(super) fn assert_reset<T: std::fmt::Debug>(outcome: io::Result<T>) {
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

const TOTAL: usize = 64 * 1024 * 1024;
const STEP: usize = 64 * 1024;
