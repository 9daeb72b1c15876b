//! The server: tells each client what it sees of it, then echoes; or resets it.

use std::io::Result;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncWriteExt, copy, sink};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::Greeting;
use super::dial::canonical;

/// Serves TCP and UDP on a port, both families, until killed. Prints `listening` when it does, and `broken: <error kind>` for
/// each connection that a client did not end in order.
///
/// # Errors
/// The port is taken.
pub async fn serve(port: u16, answer: Answer) -> Result<()> {
    let tcp = listen(port).await?;
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    println!("listening on {}", tcp.local_addr()?);
    tokio::try_join!(accept(tcp, answer), answer_datagrams(udp)).map(drop)
}

/// What a server does with a TCP connection, after its greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Sends back what comes.
    Echo,
    /// Resets the connection when the client has half-closed.
    Reset,
}

/// Dual stack; IPv4 alone where the namespace has no IPv6.
async fn listen(port: u16) -> Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn accept(listener: TcpListener, answer: Answer) -> Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            // A client that leaves early is not the server's trouble.
            if let Err(error) = converse(stream, peer, answer).await {
                println!("broken: {:?}", error.kind());
            }
        });
    }
}

async fn converse(mut stream: TcpStream, peer: SocketAddr, answer: Answer) -> Result<()> {
    let greeting = Greeting { peer: canonical(peer), local: canonical(stream.local_addr()?) };
    stream.write_all(line(&greeting).as_bytes()).await?;
    if answer == Answer::Reset {
        copy(&mut stream, &mut sink()).await?;
        return reset(&stream);
    }
    let (mut from, mut to) = stream.split();
    copy(&mut from, &mut to).await?;
    to.shutdown().await
}

/// The close sends a reset in place of a FIN (socket(7), `SO_LINGER`).
pub(super) fn reset(stream: &impl AsFd) -> Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

async fn answer_datagrams(socket: UdpSocket) -> Result<()> {
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
