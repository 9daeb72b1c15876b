//! Sockets: listen, dial, network namespaces, transparent source addresses, and the byte relay.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A network namespace, held open by its file descriptor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Holds a namespace open.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd) }
    }
    /// The namespace this process was started in.
    ///
    /// # Errors
    /// `/proc/self/ns/net` could not be opened.
    pub fn current() -> std::io::Result<Self> {
        todo!("H5")
    }
    /// Runs `f` with the calling thread inside the namespace; synchronous, so no await can leave the thread there. Aborts
    /// the process if the thread cannot return.
    ///
    /// # Errors
    /// `setns` failed; `f` did not run.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> std::io::Result<T> {
        let _ = f;
        todo!("H5")
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The engine's listeners in one network namespace.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1:15001.
    pub outbound_v4: TcpListener,
    /// \[::1\]:15001; `None` where the namespace has no IPv6.
    pub outbound_v6: Option<TcpListener>,
    /// 15006, target of `sk_lookup`, dual stack where there is IPv6.
    pub plaintext: TcpListener,
    /// 15008, target of `sk_lookup`, dual stack where there is IPv6.
    pub hbone: TcpListener,
}

/// Opens the listeners and prepares the namespace for transparent sources (`tcp_fwmark_accept`, ip rule, route; both
/// families; idempotent).
///
/// # Errors
/// Which step failed.
pub fn prepare(netns: &Netns) -> Result<Listeners, NetError> {
    let _ = netns;
    todo!("H5")
}

/// Undoes what [`prepare`] changed in a namespace that goes on living (un-enrolment).
///
/// # Errors
/// Which step failed.
pub fn restore(netns: &Netns) -> Result<(), NetError> {
    let _ = netns;
    todo!("H5")
}

/// Dials from inside `netns`: keepalive 180 s/180 s/9, TCP_NODELAY.
///
/// # Errors
/// Refused, unreachable, or `timeout`.
pub async fn dial(netns: &Netns, to: SocketAddr, timeout: Duration) -> Result<TcpStream, NetError> {
    let _ = (netns, to, timeout);
    todo!("H5")
}

/// Dials the application with the client's address as source (IP_TRANSPARENT, mark; the client's port where that tuple is free).
///
/// # Errors
/// Refused, unreachable, or `timeout`.
pub async fn dial_transparent(
    netns: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    timeout: Duration,
) -> Result<TcpStream, NetError> {
    let _ = (netns, from, to, timeout);
    todo!("H5")
}

/// Bytes that went each way. Updated while the relay runs so that views and failures see them.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From `a` to `b`.
    pub a_to_b: std::sync::atomic::AtomicU64,
    /// From `b` to `a`.
    pub b_to_a: std::sync::atomic::AtomicU64,
}

/// Moves bytes both ways until both directions have ended; half-closes are passed on. Bounded memory.
///
/// # Errors
/// Which side broke, and how (a reset of one side is passed on to the other as a reset where that is a TCP socket).
pub async fn relay<A, B>(a: A, b: B, traffic: &Traffic) -> Result<(), NetError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let _ = (a, b, traffic);
    todo!("H5")
}

/// Closes a TCP socket with RST instead of FIN.
pub fn reset(stream: TcpStream) {
    let _ = stream;
    todo!("H5")
}

/// The mark on the engine's sockets to applications.
pub const ENGINE_MARK: u32 = 0x513;

/// Errors of sockets (H5: sorted variants; each names what failed, on which address, what to do).
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// H5.
    #[error("H5")]
    Todo(IpAddr),
}
