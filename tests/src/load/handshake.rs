//! Handshakes and nothing else: mutual TLS 1.3 without resumption, then an orderly end from both sides.
//!
//! A thread for each of the concurrent ones, in the blocking way: what costs here is cryptography, half of it this client's.
//! It checks nothing of the server, so that the server's part is most of it.

use std::io::{ErrorKind, Result};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

use super::exchange::{Exchanges, Log, gather};
use super::window::Span;
use super::{PATIENCE, Window};
use crate::hbone;
use crate::svid::Svid;

/// Makes one handshake after the other, `concurrency` at a time, as the holder of `svid`.
///
/// # Errors
/// The server is not reached, or refuses; or the SVID is not one.
pub fn handshake(
    to: SocketAddr,
    concurrency: usize,
    svid: &Svid,
    window: &Window,
) -> anyhow::Result<Exchanges> {
    let mut config = hbone::config(Some(svid))?;
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    let crew = (0..concurrency).map(|_| {
        let config = Arc::clone(&config);
        move |span| again(to, &config, span)
    });
    let (logs, cpu_seconds) = window.open(crew.collect())?;
    Ok(gather(logs, cpu_seconds)?)
}

fn again(to: SocketAddr, config: &Arc<ClientConfig>, span: Span) -> Result<Log> {
    let mut log = Log::of(span);
    loop {
        let since = Instant::now();
        if since >= span.end {
            return Ok(log);
        }
        once(to, Arc::clone(config))?;
        log.answered(since, Instant::now());
    }
}

fn once(to: SocketAddr, config: Arc<ClientConfig>) -> Result<()> {
    let mut tcp = TcpStream::connect_timeout(&to, PATIENCE)?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
    let mut tls = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp)?;
    }
    tls.send_close_notify();
    while tls.wants_write() {
        tls.write_tls(&mut tcp)?;
    }
    tcp.shutdown(Shutdown::Write)?;
    read_to_the_end(&mut tls, &mut tcp)
}

/// A server that did not like the certificate says so only now.
fn read_to_the_end(tls: &mut ClientConnection, tcp: &mut TcpStream) -> Result<()> {
    loop {
        match tls.read_tls(tcp) {
            Ok(0) => return Ok(()),
            // It had nothing more to say, and we had.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            other => other?,
        };
        let state =
            tls.process_new_packets().map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))?;
        let mut said = vec![0; state.plaintext_bytes_to_read()];
        std::io::Read::read_exact(&mut tls.reader(), &mut said)?;
    }
}
