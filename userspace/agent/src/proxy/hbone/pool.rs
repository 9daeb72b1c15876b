//! Client connections of the whole node, shared by the tunnels that may share them.
//!
//! A connection is found by the two workloads, the address and the SVID it was made with, and serves the worker that dialled
//! it, so that no byte of its tunnels goes from thread to thread. So neither a reused pod IP nor
//! a rotated key ever meets an old one, and one of whose two certificates one has expired is given to nobody; an old one
//! serves the tunnels it has and then ends. Openers that find no room
//! share one dial, and its failure. One task per connection dials it, drives it and takes it out of the pool; the pool
//! owns the task, so that nothing outlives it or a forgotten workload.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::UnixTime;
use signet_identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::addr::WorkloadUid;
use crate::mtls::{Authenticated, Endpoint, SecureStream};
use crate::net::{self, Netns};

use super::client::{self, Claim, Connection, Driver};
use super::{ConnectRequest, HboneError, Opened, PoolKey, Tunnel};
use crate::proxy::sni;
use crate::workers::WorkerId;

/// Pooled HBONE client connections of the whole node. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(UnixTime::now)
    }

    /// A pool that judges certificates by this clock.
    pub(super) fn with_clock(now: impl Fn() -> UnixTime + Send + Sync + 'static) -> Self {
        let (slots, dials, now) = (Mutex::default(), AtomicU64::default(), Box::new(now));
        Self { shared: Arc::new(Shared { slots, dials, now }) }
    }

    /// Opens a tunnel: over a pooled connection with room, or a new one dialled from `netns` with `endpoint`'s SVID.
    ///
    /// # Errors
    /// Which step failed.
    pub async fn open(
        &self,
        netns: &Netns,
        endpoint: &Endpoint,
        request: ConnectRequest,
    ) -> Result<(Tunnel, Opened), HboneError> {
        let dial = || dial(netns.clone(), endpoint.for_hbone(), request.clone());
        self.open_with(endpoint.serial(), &request, dial).await
    }

    /// There is a connection for these two workloads, or one is being dialled.
    pub(in crate::proxy) fn knows(&self, key: &PoolKey, svid: &Arc<str>) -> bool {
        self.shared.slots.lock().contains_key(&SlotId::own(key, svid))
    }

    /// Drops every connection from or to a workload (it is gone, or its identity changed), and so every tunnel over them.
    pub fn forget(&self, workload: &WorkloadUid) {
        let forgotten: Vec<Slot> = {
            let mut slots = self.shared.slots.lock();
            slots.extract_if(|id, _| id.key.concerns(workload)).map(|(_, slot)| slot).collect()
        };
        drop(forgotten);
    }

    /// [`Pool::open`] over whatever `dial` connects.
    pub(in crate::proxy) async fn open_with<IO, Dialled>(
        &self,
        svid: &Arc<str>,
        request: &ConnectRequest,
        dial: impl Fn() -> Dialled,
    ) -> Result<(Tunnel, Opened), HboneError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        Dialled: Future<Output = Result<(IO, Authenticated), HboneError>> + Send + 'static,
    {
        let slot = SlotId::own(&request.key, svid);
        let open = self.open_in(&slot, request, dial);
        let late = |_| HboneError::Timeout(request.key.address, request.timeout);
        tokio::time::timeout(request.timeout, open).await.map_err(late)?
    }

    /// A connection may have died since it was last used. Until it has answered, nothing of the application has been
    /// sent, so another one can be tried; each that failed is out of the pool, so this ends with a fresh one.
    async fn open_in<IO, Dialled>(
        &self,
        slot: &SlotId,
        request: &ConnectRequest,
        dial: impl Fn() -> Dialled,
    ) -> Result<(Tunnel, Opened), HboneError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        Dialled: Future<Output = Result<(IO, Authenticated), HboneError>> + Send + 'static,
    {
        loop {
            let (claim, provenance) = self.claim(slot, request, &dial).await?;
            let connection = Arc::clone(claim.connection());
            match claim.connect(request).await {
                Err(error) if provenance == Provenance::Pooled && error.is_of_the_connection() => {
                    self.shared.retire(slot, &connection);
                }
                outcome => return outcome,
            }
        }
    }

    /// A place on a connection; waits for a dial where there is none.
    async fn claim<IO, Dialled>(
        &self,
        slot: &SlotId,
        request: &ConnectRequest,
        dial: impl Fn() -> Dialled,
    ) -> Result<(Claim, Provenance), HboneError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        Dialled: Future<Output = Result<(IO, Authenticated), HboneError>> + Send + 'static,
    {
        let mut provenance = Provenance::Pooled;
        loop {
            let mut outcome = {
                let now = (self.shared.now)();
                let mut slots = self.shared.slots.lock();
                let found = slots.entry(slot.clone()).or_default();
                if let Some(claim) = found.claim(&request.expected, now) {
                    return Ok((claim, provenance));
                }
                found.dial.get_or_insert_with(|| self.start(slot, request, dial())).outcome.clone()
            };
            provenance = Provenance::Fresh;
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(error))) => return Err(error.clone()),
                Ok(_) => {}
                Err(_) => return Err(HboneError::Forgotten(slot.key.address)),
            }
        }
    }

    /// Starts the task of a new connection. Its handle is the pool's: dropping it ends the connection.
    fn start<IO>(
        &self,
        slot: &SlotId,
        request: &ConnectRequest,
        dial: impl Future<Output = Result<(IO, Authenticated), HboneError>> + Send + 'static,
    ) -> Dial
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let number = self.shared.dials.fetch_add(1, Ordering::Relaxed);
        let (tell, outcome) = watch::channel(None);
        let ticket = Ticket { shared: Arc::downgrade(&self.shared), slot: slot.clone(), number };
        let connect = connect(dial, slot.key.address, request.timeout);
        let task = tokio::spawn(async move {
            match connect.await {
                Ok((connection, driver)) => {
                    ticket.admit(connection);
                    tell.send_replace(Some(Ok(())));
                    driver.run(|| ticket.retire_idle()).await;
                    ticket.remove();
                }
                Err(error) => {
                    ticket.remove();
                    tell.send_replace(Some(Err(error)));
                }
            }
        });
        Dial { number, outcome, task: AbortOnDropHandle::new(task) }
    }
}

/// What the pool's handles share.
struct Shared {
    /// Written by openers, by the connections' tasks as they come and go, and by `forget`. Never held across an await.
    slots: Mutex<HashMap<SlotId, Slot>>,
    /// Numbers the dials, so that a task finds its own entry and no successor's.
    dials: AtomicU64,
    /// The time that certificates are judged by.
    now: Box<dyn Fn() -> UnixTime + Send + Sync>,
}

/// What connections must have in common to be shared.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SlotId {
    key: PoolKey,
    svid: Arc<str>,
    /// Whose event loop has the connection's socket.
    worker: WorkerId,
}

impl SlotId {
    /// The calling worker's.
    fn own(key: &PoolKey, svid: &Arc<str>) -> Self {
        Self { key: key.clone(), svid: Arc::clone(svid), worker: WorkerId::current() }
    }
}

/// The connections of one slot, and the dial that is under way.
#[derive(Default)]
struct Slot {
    connections: Vec<Pooled>,
    dial: Option<Dial>,
}

/// A dial under way: openers wait for `outcome`.
struct Dial {
    number: u64,
    outcome: watch::Receiver<Option<Result<(), HboneError>>>,
    task: AbortOnDropHandle<()>,
}

/// A connection and its task.
struct Pooled {
    number: u64,
    /// `None` once nothing new may be opened on it: it ends with its last tunnel.
    connection: Option<Arc<Connection>>,
    _task: AbortOnDropHandle<()>,
}

/// Whether a connection was there before it was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Provenance {
    Pooled,
    Fresh,
}

impl Shared {
    /// Opens nothing more on a connection that turned out to be broken.
    fn retire(&self, slot: &SlotId, broken: &Arc<Connection>) {
        let mut slots = self.slots.lock();
        for pooled in slots.get_mut(slot).into_iter().flat_map(|slot| &mut slot.connections) {
            pooled.connection.take_if(|connection| Arc::ptr_eq(connection, broken));
        }
    }
}

impl Slot {
    /// A place on the first connection that has room and whose peer is expected and still proven.
    fn claim(&self, expected: &[SpiffeId], now: UnixTime) -> Option<Claim> {
        let mut usable = self.connections.iter().filter_map(|pooled| pooled.connection.as_ref());
        usable.find_map(|connection| connection.proves(expected, now).then(|| connection.claim()).flatten())
    }
}

/// How a connection's task finds its entry in the pool.
struct Ticket {
    shared: Weak<Shared>,
    slot: SlotId,
    number: u64,
}

impl Ticket {
    /// Turns the dial into a connection.
    fn admit(&self, connection: Arc<Connection>) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut slots = shared.slots.lock();
        let Some(slot) = slots.get_mut(&self.slot) else { return };
        if let Some(dial) = slot.dial.take_if(|dial| dial.number == self.number) {
            slot.connections.push(Pooled {
                number: self.number,
                connection: Some(connection),
                _task: dial.task,
            });
        }
    }

    /// Opens nothing more on the connection if nobody uses it. True where that is so.
    fn retire_idle(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return true };
        let mut slots = shared.slots.lock();
        let connections = slots.get_mut(&self.slot).map(|slot| &mut slot.connections);
        let Some(pooled) = connections.and_then(|all| all.iter_mut().find(|one| one.number == self.number))
        else {
            return true;
        };
        // Places are claimed under the same lock, so an idle connection stays idle until it is out of the pool.
        pooled.connection.take_if(|connection| connection.is_idle());
        pooled.connection.is_none()
    }

    /// Takes the dial or the connection out of the pool; the task ends after that.
    fn remove(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut slots = shared.slots.lock();
        let Some(slot) = slots.get_mut(&self.slot) else { return };
        slot.dial.take_if(|dial| dial.number == self.number);
        slot.connections.retain(|pooled| pooled.number != self.number);
        if slot.dial.is_none() && slot.connections.is_empty() {
            slots.remove(&self.slot);
        }
    }
}

/// Dials and greets, within `timeout`.
async fn connect<IO>(
    dial: impl Future<Output = Result<(IO, Authenticated), HboneError>>,
    address: SocketAddr,
    timeout: Duration,
) -> Result<(Arc<Connection>, Driver<IO>), HboneError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let connected = tokio::time::timeout(timeout, async {
        let (io, peer) = dial.await?;
        client::handshake(io, address, peer).await
    });
    connected.await.map_err(|_| HboneError::Timeout(address, timeout))?
}

/// TCP from the workload's namespace, then mTLS.
pub(in crate::proxy) async fn dial(
    netns: Netns,
    endpoint: Endpoint,
    request: ConnectRequest,
) -> Result<(SecureStream<TcpStream>, Authenticated), HboneError> {
    let address = request.key.address;
    let tcp = net::dial(&netns, address, request.timeout).await;
    let tcp = tcp.map_err(|error| HboneError::Dial(address, Arc::new(error)))?;
    let sni = request.key.sni_port.map(sni::for_port);
    let secured = endpoint.connect(tcp, &request.expected, sni.as_deref()).await;
    secured.map_err(|error| HboneError::Handshake(address, Arc::new(error)))
}
