//! The server: does on each connection what its first byte asks for, until the client closes.
//!
//! One desk per core, each with an epoll instance and a thread. Every desk accepts, and gives the connection to the desk
//! that has fewest: four streams are two for each of two cores, always, while a lone connection stays where it arrived.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use socket2::{Domain, Protocol, Socket, Type};

use super::ready::{Interest, Ready};
use super::{Order, REQUEST_BYTES, RESPONSE_BYTES, STREAM_BUFFER_BYTES, cores};

/// Serves a port until killed. Prints `listening` when it does.
///
/// # Errors
/// The port is taken, or the process is out of files.
pub fn serve(port: u16) -> Result<()> {
    let hall =
        Hall { listener: listen(port)?, desks: (0..cores()).map(|_| Desk::new()).collect::<Result<_>>()? };
    for desk in &hall.desks {
        desk.ready.watch(&hall.listener, Interest::Accept, LISTENER)?;
    }
    println!("listening");
    thread::scope(|scope| {
        let desks: Vec<_> = hall.desks.iter().map(|desk| scope.spawn(|| hall.work_at(desk))).collect();
        let mut ended = desks
            .into_iter()
            .map(|desk| desk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.try_for_each(|ended| ended)
    })
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

struct Hall {
    listener: TcpListener,
    desks: Vec<Desk>,
}

/// One thread's.
struct Desk {
    ready: Ready,
    open: AtomicUsize,
    /// By file number, which is unique while the connection is open. Whoever accepts puts in; the desk's thread takes a
    /// connection out while it serves it, so nobody waits for the lock longer than a move takes.
    connections: Mutex<Vec<Option<Connection>>>,
}

struct Connection {
    stream: TcpStream,
    order: Option<Order>,
    /// Of a request that is not complete.
    received: usize,
}

impl Hall {
    fn work_at(&self, desk: &Desk) -> Result<()> {
        let (mut buffer, mut events) = (vec![0; STREAM_BUFFER_BYTES], Ready::events());
        loop {
            for number in desk.ready.wait(&mut events, None)? {
                match number {
                    LISTENER => self.accept(desk)?,
                    number => desk.serve(number, &mut buffer),
                }
            }
        }
    }

    fn accept(&self, desk: &Desk) -> Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                // Gone already is the client's business.
                let _ = self.choose(desk).take_on(stream);
                Ok(())
            }
            // Another desk was faster, or the client was.
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::ConnectionAborted].contains(&error.kind()) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The one with fewest connections; where it has as few, the one that accepts.
    fn choose<'h>(&'h self, own: &'h Desk) -> &'h Desk {
        let load = |desk: &Desk| desk.open.load(Ordering::Relaxed);
        let least = self.desks.iter().min_by_key(|desk| load(desk)).unwrap_or(own);
        if load(own) <= load(least) { own } else { least }
    }
}

impl Desk {
    fn new() -> Result<Self> {
        Ok(Self { ready: Ready::new()?, open: AtomicUsize::new(0), connections: Mutex::default() })
    }

    fn take_on(&self, stream: TcpStream) -> Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let number = stream.as_raw_fd() as usize;
        let mut connections = self.connections.lock().expect("no holder panics");
        if connections.len() <= number {
            connections.resize_with(number + 1, || None);
        }
        // Watched under the lock: its thread finds it there.
        self.ready.watch(&stream, Interest::Read, number)?;
        connections[number] = Some(Connection { stream, order: None, received: 0 });
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn serve(&self, number: usize, buffer: &mut [u8]) {
        let taken = self.connections.lock().expect("no holder panics").get_mut(number).and_then(Option::take);
        let Some(mut connection) = taken else { return };
        // A client that ends its load in the middle of something is the rule.
        match connection.go_on(&self.ready, number, buffer) {
            Ok(()) => self.connections.lock().expect("no holder panics")[number] = Some(connection),
            Err(_ended) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Connection {
    /// Does what can be done now.
    ///
    /// # Errors
    /// The connection has ended.
    fn go_on(&mut self, ready: &Ready, number: usize, buffer: &mut [u8]) -> Result<()> {
        if self.order == Some(Order::Download) {
            return pass_over(self.stream.write(buffer)).map(drop);
        }
        let received = pass_over(self.stream.read(buffer))?;
        let (first, rest) = match (self.order, &buffer[..received]) {
            (None, [first, rest @ ..]) => (Order::of(*first).map(Some), rest),
            (known, rest) => (Some(known), rest),
        };
        self.order = first.ok_or(ErrorKind::InvalidData)?;
        match self.order {
            Some(Order::Exchange) => self.answer(rest.len()),
            Some(Order::Download) => ready.change(&self.stream, Interest::Write, number),
            Some(Order::Upload) | None => Ok(()),
        }
    }

    fn answer(&mut self, received: usize) -> Result<()> {
        self.received += received;
        while self.received >= REQUEST_BYTES {
            self.received -= REQUEST_BYTES;
            self.stream.write_all(&[0; RESPONSE_BYTES])?;
        }
        Ok(())
    }
}

/// Nothing to do now is fine; nothing to come is the end.
fn pass_over(moved: Result<usize>) -> Result<usize> {
    match moved {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// No file has this number.
const LISTENER: usize = usize::MAX;
/// More than any load opens at a time.
const BACKLOG: i32 = 4096;
