//! The server: tells each client what it sees of it, then echoes.

use std::io::Result;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::Greeting;
use super::dial::canonical;

/// Serves TCP and UDP on a port, both families, until killed. Prints `listening` when it does.
///
/// # Errors
/// The port is taken.
pub async fn serve(port: u16) -> Result<()> {
    let tcp = listen(port).await?;
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    println!("listening on {}", tcp.local_addr()?);
    tokio::try_join!(accept(tcp), answer(udp)).map(drop)
}

/// Dual stack; IPv4 alone where the namespace has no IPv6.
async fn listen(port: u16) -> Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn accept(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            // A client that leaves early is not the server's trouble.
            let _ = echo(stream, peer).await;
        });
    }
}

async fn echo(mut stream: TcpStream, peer: SocketAddr) -> Result<()> {
    let greeting = Greeting { peer: canonical(peer), local: canonical(stream.local_addr()?) };
    stream.write_all(line(&greeting).as_bytes()).await?;
    let (mut from, mut to) = stream.split();
    copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn answer(socket: UdpSocket) -> Result<()> {
    let mut datagram = [0; 1024];
    loop {
        let (length, peer) = socket.recv_from(&mut datagram).await?;
        let greeting = Greeting { peer, local: socket.local_addr()? };
        let text = [line(&greeting).as_bytes(), &datagram[..length]].concat();
        socket.send_to(&text, peer).await?;
    }
}

fn line(greeting: &Greeting) -> String {
    format!("{}\n", serde_json::to_string(greeting).expect("two addresses are JSON"))
}
