//! The server: does on each connection what its first byte asks for, until the client closes.

use std::io::{ErrorKind, Result};
use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Order, REQUEST_BYTES, RESPONSE_BYTES, STREAM_BUFFER_BYTES};

/// Serves a port until killed. Prints `listening` when it does.
///
/// # Errors
/// The port is taken, or the process is out of files.
pub async fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    println!("listening");
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A client that ends its load in the middle of something is the rule.
            let _ = follow(stream).await;
        });
    }
}

async fn follow(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    match Order::of(stream.read_u8().await?) {
        Some(Order::Upload) => swallow(stream).await,
        Some(Order::Download) => pour(stream).await,
        Some(Order::Exchange) => answer(stream).await,
        None => Err(ErrorKind::InvalidData.into()),
    }
}

async fn swallow(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; STREAM_BUFFER_BYTES];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn pour(mut stream: TcpStream) -> Result<()> {
    let buffer = vec![0; STREAM_BUFFER_BYTES];
    loop {
        stream.write_all(&buffer).await?;
    }
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    let (mut request, response) = ([0; REQUEST_BYTES], [0; RESPONSE_BYTES]);
    loop {
        stream.read_exact(&mut request).await?;
        stream.write_all(&response).await?;
    }
}
