//! Two TCP connections over loopback, joined by the engine's relay, all on one thread: a megabyte in one direction, and one
//! small request with its answer. Most of both is the kernel's work, as it is in the engine.

use std::io::Result;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use signet_agent::block::Block;
use signet_agent::net::{Traffic, relay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

fn relays(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let mut group = criterion.benchmark_group("relay");
    group.throughput(Throughput::Bytes(BULK as u64));
    group.bench_function("a megabyte", |bench| {
        let (mut client, mut server) = joined(&runtime);
        let (sent, mut received) = (vec![0; BULK], vec![0; BULK]);
        bench.iter(|| {
            runtime.block_on(bulk(&mut client, &mut server, &sent, &mut received)).expect("it arrives")
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("a request and its answer", |bench| {
        let (mut client, mut server) = joined(&runtime);
        bench.iter(|| runtime.block_on(exchange(&mut client, &mut server)).expect("it is answered"));
    });
    group.finish();
}

async fn bulk(from: &mut TcpStream, to: &mut TcpStream, sent: &[u8], received: &mut [u8]) -> Result<()> {
    tokio::try_join!(from.write_all(sent), to.read_exact(received)).map(drop)
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    client.write_all(&[0; 128]).await?;
    server.read_exact(&mut [0; 128]).await?;
    server.write_all(&[0; 512]).await?;
    client.read_exact(&mut [0; 512]).await.map(drop)
}

/// The two ends of a relayed connection, whose relay runs as long as they live.
fn joined(runtime: &Runtime) -> (TcpStream, TcpStream) {
    let ends = runtime.block_on(async { tokio::try_join!(pair(), pair()) });
    let ((client, a), (b, server)) = ends.expect("loopback takes connections");
    runtime.spawn(async move { relay::<Block, _, _>(a, b, &Traffic::default()).await });
    (client, server)
}

async fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    let (client, (server, _)) = (client?, accepted?);
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

const BULK: usize = 1 << 20;

criterion_group!(benches, relays);
criterion_main!(benches);
