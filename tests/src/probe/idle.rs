//! Clients that keep their connections: one that talks, many that are silent; and one that resets its own.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::dial::{Kind, Target, connect};
use super::serve::reset;

/// Keeps one connection busy with small echoes until it breaks. Prints `established` after the first echo, and
/// `ended: <error kind>` at the end.
///
/// # Errors
/// It could not be established.
pub fn hold(to: SocketAddr) -> Result<()> {
    let mut connection = greeted(to)?;
    echo(&mut connection)?;
    println!("established");
    loop {
        if let Err(error) = echo(&mut connection) {
            println!("ended: {:?}", error.kind());
            return Ok(());
        }
        std::thread::sleep(BETWEEN_ECHOES);
    }
}

/// Opens a connection, resets it after the first echo, and prints `reset`.
///
/// # Errors
/// It could not be established.
pub fn abort(to: SocketAddr) -> Result<()> {
    let mut connection = greeted(to)?;
    echo(&mut connection)?;
    reset(connection.get_ref())?;
    drop(connection);
    println!("reset");
    Ok(())
}

/// Opens `count` connections and leaves them idle until killed. Prints `open <n>` when the server has greeted on all of
/// them.
///
/// # Errors
/// One could not be established.
pub fn idle(to: SocketAddr, count: usize) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let connections = (0..count).map(|_| greeted(to)).collect::<Result<Vec<_>>>()?;
    println!("open {}", connections.len());
    loop {
        std::thread::park();
    }
}

fn greeted(to: SocketAddr) -> Result<BufReader<TcpStream>> {
    let target = Target { to, from: None, device: None };
    let (stream, _) = connect(Kind::Blocking, &target, "")?;
    // A capacity of one line, not of pages: there may be ten thousand.
    let mut reader = BufReader::with_capacity(256, stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(reader)
}

fn echo(connection: &mut BufReader<TcpStream>) -> Result<()> {
    connection.get_mut().write_all(b"?")?;
    let mut answer = [0];
    connection.read_exact(&mut answer)?;
    if &answer == b"?" { Ok(()) } else { Err(Error::other("something else came back")) }
}

const BETWEEN_ECHOES: Duration = Duration::from_millis(20);
