//! The accept loop: one for each listener. Bounded, and it survives what `accept` can throw at it.
//!
//! A loop owns its connections: dropping it (its task is aborted) aborts them. When the drain begins it has the kernel ignore
//! who is new, takes what it has accepted already, closes the listener, and stays until its connections have ended. At the
//! bound it stops accepting, so the kernel's backlog and not our memory takes the flood. Out of file descriptors, it waits
//! until one of its own connections has given one back.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::addr::{Local, Peer};
use crate::drain::Watch;
use crate::net::ignore_newcomers;
use crate::workers::{Place, Workers};

/// A connection as `accept` gave it.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Its other end.
    pub(crate) peer: Peer,
    /// This end: on steered sockets, where the client wanted to go.
    pub(crate) local: Local,
    /// Where it is served.
    pub(crate) place: Place,
}

/// A connection until its end, or until it moves to another worker.
pub(crate) type Serving = Pin<Box<dyn Future<Output = Option<Moved>> + Send>>;

/// A connection that another worker serves from now on.
pub(crate) struct Moved {
    /// What is left of it.
    pub(crate) rest: Serving,
    /// The worker's.
    pub(crate) runtime: Handle,
}

/// A listener, and word of it until it is closed.
#[derive(Debug)]
pub(crate) struct Listening {
    /// Not blocking.
    pub(crate) socket: net::TcpListener,
    /// Dropped after it.
    pub(crate) open: mpsc::Sender<Infallible>,
}

/// Accepts until the drain begins, serving each connection in a task of its own; returns when all have ended.
pub(crate) async fn accept<S>(listening: Listening, workers: Workers, drain: Watch, serve: S)
where
    S: Fn(Accepted) -> Serving,
{
    let Listening { socket, open } = listening;
    let listener = tokio::select! {
        biased;
        listener = registered(socket) => listener,
        () = drain.stopped() => return,
    };
    let mut connections = JoinSet::new();
    let mut exhausted = false;
    loop {
        tokio::select! {
            biased;
            () = drain.stopped() => break,
            Some(ended) = connections.join_next() => go_on(&mut connections, ended),
            accepted = next(&listener, &workers), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok(accepted) => {
                    recovered(&listener, &mut exhausted);
                    begin(&mut connections, accepted, &serve);
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    out_of_resources(&listener, &mut exhausted, &error);
                    // A descriptor of this loop, or a while in which others may have freed one.
                    if let Ok(Some(ended)) = timeout(EXHAUSTED_WAIT, freed(&mut connections)).await {
                        go_on(&mut connections, ended);
                    }
                }
            },
        }
    }
    match ignore_newcomers(&listener) {
        // Those whose handshake runs are through by then; who is not, is reset.
        Ok(()) => sleep(HANDSHAKE).await,
        Err(error) => warn!(%error, "who connects just now may be reset"),
    }
    for accepted in backlog(listener, &workers).take(MAX_CONNECTIONS.saturating_sub(connections.len())) {
        begin(&mut connections, accepted, &serve);
    }
    drop(open);
    while let Some(ended) = connections.join_next().await {
        go_on(&mut connections, ended);
    }
}

/// What the kernel has accepted, without waiting for more: with the listener it would be reset. By the listener's own word,
/// since the runtime's may be older. The listener is closed with the last of them.
fn backlog(listener: TcpListener, workers: &Workers) -> impl Iterator<Item = Accepted> {
    let listener = listener.into_std().inspect_err(|error| warn!(%error, "what waits is reset")).ok();
    let next = move || {
        // A connection that has ended meanwhile may be an error; a listener that has failed is nothing else.
        let attempts = std::iter::repeat_with(|| listener.as_ref()?.accept().ok());
        attempts.take(1 + ENDED_MEANWHILE).flatten().next()
    };
    std::iter::from_fn(next).filter_map(|(stream, peer)| {
        let place = workers.place();
        let local = Local::new(stream.local_addr().ok()?);
        let stream = registered_stream(stream, &place).ok()?;
        Some(Accepted { stream, peer: Peer::new(peer), local, place })
    })
}

/// Made known to the worker that will serve it and to no other.
fn registered_stream(stream: net::TcpStream, place: &Place) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    let _entered = place.enter();
    TcpStream::from_std(stream)
}

fn begin(connections: &mut JoinSet<Option<Moved>>, accepted: Accepted, serve: &impl Fn(Accepted) -> Serving) {
    let runtime = accepted.place.runtime().clone();
    connections.spawn_on(serve(accepted), &runtime);
}

/// A task has ended, and its connection with it or not.
fn go_on(connections: &mut JoinSet<Option<Moved>>, ended: Result<Option<Moved>, JoinError>) {
    match ended {
        Ok(Some(Moved { rest, runtime })) => drop(connections.spawn_on(rest, &runtime)),
        ended => report(ended.map(drop)),
    }
}

/// The listener, as this task's worker hears of it. Until that works, connections wait with the kernel.
async fn registered(listener: net::TcpListener) -> TcpListener {
    loop {
        match listener.try_clone().and_then(TcpListener::from_std) {
            Ok(registered) => return registered,
            Err(error) => {
                let listener = listener.local_addr().map(tracing::field::display).ok();
                warn!(listener, %error, "cannot wait for connections; trying again");
                sleep(EXHAUSTED_WAIT).await;
            }
        }
    }
}

/// The next connection, made known to the worker that will serve it and to no other.
async fn next(listener: &TcpListener, workers: &Workers) -> io::Result<Accepted> {
    let accepting = poll_fn(|cx| {
        let place = workers.place();
        let entered = place.enter();
        let accepted = ready!(listener.poll_accept(cx));
        drop(entered);
        Poll::Ready(accepted.map(|(stream, peer)| (stream, peer, place)))
    });
    let (stream, peer, place) = accepting.await?;
    let local = Local::new(stream.local_addr()?);
    Ok(Accepted { stream, peer: Peer::new(peer), local, place })
}

/// accept(2): errors that are pending on the new connection come out of `accept`; the next one is another's.
fn concerns_one_connection(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Never resolves while there are no connections: the caller bounds it.
async fn freed(connections: &mut JoinSet<Option<Moved>>) -> Option<Result<Option<Moved>, JoinError>> {
    if connections.is_empty() {
        std::future::pending::<()>().await;
    }
    connections.join_next().await
}

/// A task that panicked has written its outcome while unwinding; it takes no other connection with it.
pub(crate) fn report(ended: Result<(), JoinError>) {
    if let Err(panic) = ended
        && panic.is_panic()
    {
        error!(%panic, "a connection's task panicked");
    }
}

fn out_of_resources(listener: &TcpListener, exhausted: &mut bool, error: &io::Error) {
    if !std::mem::replace(exhausted, true) {
        let listener = listener.local_addr().map(tracing::field::display).ok();
        warn!(listener, %error, "cannot accept connections; raise the limit of open files, or find who holds them");
    }
}

fn recovered(listener: &TcpListener, exhausted: &mut bool) {
    if std::mem::replace(exhausted, false) {
        let listener = listener.local_addr().map(tracing::field::display).ok();
        info!(listener, "accepting connections again");
    }
}

/// Of one listener. Ten thousand idle connections to a pod are legal; memory for more than this is not given.
const MAX_CONNECTIONS: usize = 32_768;
/// A TCP handshake with a client of the same cluster; the node's new connections wait for it.
const HANDSHAKE: Duration = Duration::from_millis(20);
/// So many of a backlog may have ended before they are accepted, one after the other; the rest is not looked at then.
const ENDED_MEANWHILE: usize = 16;
/// Descriptors are also freed by other loops, of which this one hears nothing.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::drain::Drain;

    #[tokio::test]
    async fn what_the_kernel_has_accepted_is_served_when_the_drain_begins() {
        let (workers, _threads) = Workers::start(NonZeroUsize::MIN).unwrap();
        let socket = net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let at = socket.local_addr().unwrap();
        let clients: Vec<_> = (0..100).map(|_| net::TcpStream::connect(at).unwrap()).collect();
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        let serve = move |accepted| -> Serving {
            let count = Arc::clone(&count);
            Box::pin(async move {
                count.fetch_add(1, Ordering::Relaxed);
                drop(accepted);
                None
            })
        };
        let (drain, watch) = Drain::new();
        drop(drain);
        let (open, mut listening) = mpsc::channel(1);
        accept(Listening { socket, open }, workers, watch, serve).await;
        assert_eq!(served.load(Ordering::Relaxed), clients.len());
        assert!(listening.recv().await.is_none(), "it says that it listens");
        assert!(net::TcpStream::connect(at).is_err());
    }
}
