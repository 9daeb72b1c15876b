//! Connections that have done one request and then nothing.

use std::io::{Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use super::{Order, first_exchange, open};

/// Opens `count` connections, exchanges once on each, prints `open <n>` and leaves them idle until killed.
///
/// # Errors
/// A connection could not be opened, or broke.
pub fn idle(to: SocketAddr, count: usize) -> Result<()> {
    let connections: Vec<TcpStream> = thread::scope(|scope| {
        let shares = (0..OPENERS).map(|at| (count + at) / OPENERS);
        let openers: Vec<_> = shares.map(|share| scope.spawn(move || some(to, share))).collect();
        let opened = openers
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        opened.collect::<Result<Vec<_>>>().map(|shares| shares.into_iter().flatten().collect())
    })?;
    println!("open {}", connections.len());
    std::io::stdout().flush()?;
    loop {
        thread::park();
    }
}

fn some(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let one = |_| {
        let mut stream = open(to, Order::Exchange)?;
        first_exchange(&mut stream)?;
        Ok(stream)
    };
    (0..count).map(one).collect()
}

/// At a time; ten thousand one after the other would take their time.
const OPENERS: usize = 16;
