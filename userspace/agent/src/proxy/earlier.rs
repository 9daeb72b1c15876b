//! Connections of captured workloads from before capture: found, told of, and ended where policy lets no clear text in.
//!
//! Such a connection is in clear, of a client that has proved nothing. Policy is asked what it would say of one that came so
//! now; where it says no, both ends are reset, and a client that comes again comes by the mesh. What it lets be is told of,
//! listed, and asked for again when policies change. Both sides are judged by the server's policy: its own
//! node does so too, but a client's node need not wait for that. What would go past the mesh now as well, a client's connection to
//! outside of it, is nobody's business.
//!
//! A workload is looked at when it is captured, and once more a moment later, for what was between two steps of the kernel
//! then. A look lists the sockets of a network namespace, which takes a while for 100,000: it has a thread of its own, and
//! nobody waits for it. The lock is never held during one.

mod subjects;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{error, warn};

use self::subjects::Subjects;
use super::connections::ConnectionView;
use super::meter::Bytes;
use super::parties::{Direction, Parties, Path};
use crate::addr::{CgroupId, NetnsCookie};
use crate::drain::Watch;
use crate::kernel::{EarlierSocket, EarlierSockets, Owner, Role};
use crate::policy::{Denial, Flow};
use crate::state::{State, Workload};
use crate::telemetry::Registry;

/// The kernel's sockets.
pub trait Sockets: Send + Sync {
    /// See [`EarlierSockets::find`].
    ///
    /// # Errors
    /// As there.
    fn find(&self, netns: NetnsCookie, owners: &[Owner]) -> io::Result<Vec<EarlierSocket>>;
    /// See [`EarlierSockets::end`].
    ///
    /// # Errors
    /// As there.
    fn end(&self, netns: NetnsCookie, sockets: &[EarlierSocket]) -> io::Result<()>;
}

/// All of this node. One for the node.
pub struct Earlier {
    state: Arc<State>,
    sockets: Box<dyn Sockets>,
    /// Written by the reconciler's task and by looks; read by views.
    subjects: Mutex<Subjects>,
    /// Somebody is to be looked at.
    due: Notify,
    seen: Family<Labels, Counter>,
}

type Labels = [(&'static str, &'static str); 2];

/// One of them, and what policy says of it.
#[derive(Debug)]
struct Judged {
    socket: EarlierSocket,
    parties: Parties,
    denial: Option<Denial>,
}

impl Earlier {
    /// Of no workload yet. Registers `signet_earlier_connections_total` and `signet_earlier_connections_open`.
    #[must_use]
    pub fn new(state: Arc<State>, sockets: Box<dyn Sockets>, registry: &mut Registry) -> Arc<Self> {
        let seen = Family::<Labels, Counter>::default();
        let help = "Connections in clear from before their workload was captured, by what became of them";
        registry.register("signet_earlier_connections", help, seen.clone());
        let (subjects, due) = (Mutex::default(), Notify::new());
        let earlier = Arc::new(Self { state, sockets, subjects, due, seen });
        registry.register_collector(Box::new(Open(Arc::downgrade(&earlier))));
        earlier
    }

    /// A workload is captured from here on, or has changed: what is open now and not known was open before.
    pub fn put(&self, netns: NetnsCookie, cgroup: CgroupId, workload: Arc<Workload>) {
        if self.subjects.lock().put(netns, cgroup, workload) {
            self.due.notify_one();
        }
    }

    /// It is not any more.
    pub fn remove(&self, cgroup: CgroupId) {
        self.subjects.lock().remove(cgroup);
    }

    /// Looks whenever it is time to. Ends when the drain begins, once a look that has begun is over, or nobody is left to
    /// change the policy.
    pub async fn run(self: Arc<Self>, mut policy_epoch: watch::Receiver<u64>, drain: Watch) {
        loop {
            let next = self.subjects.lock().next();
            tokio::select! {
                biased;
                () = drain.stopped() => return,
                () = self.due.notified() => {}
                changed = policy_epoch.changed() => match changed {
                    Ok(()) => self.subjects.lock().outdate(Instant::now()),
                    Err(_) => return,
                },
                () = sleep_until(next), if next.is_some() => Arc::clone(&self).look_aside().await,
            }
        }
    }

    /// All that are open now, for `signet connections`.
    #[must_use]
    pub fn views(&self) -> Vec<ConnectionView> {
        let open = self.open();
        let subjects = self.subjects.lock();
        let view = |judged: Judged| {
            let since = subjects.since(judged.socket.cookie()).unwrap_or_else(SystemTime::now);
            let id = FIRST_ID + judged.socket.cookie();
            ConnectionView::of(id, judged.parties, since, carried(&judged.socket))
        };
        open.into_iter().map(view).collect()
    }

    async fn look_aside(self: Arc<Self>) {
        if let Err(panicked) = tokio::task::spawn_blocking(move || self.look(Instant::now())).await {
            error!(error = %panicked, "a look for connections from before was cut off");
        }
    }

    /// Looks at all that are due.
    fn look(&self, now: Instant) {
        let due = self.subjects.lock().take_due(now);
        for (netns, workloads) in due {
            match self.look_into(netns, &workloads) {
                Ok(()) => {}
                // It is not served any more: they have left.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    error!(%netns, error = %e, "connections from before cannot be found or ended yet: tried again");
                    self.subjects.lock().retry(&workloads, now);
                }
            }
        }
    }

    fn look_into(&self, netns: NetnsCookie, workloads: &[Subject]) -> io::Result<()> {
        let judged = self.judged(netns, workloads)?;
        let (refused, left): (Vec<_>, Vec<_>) = judged.into_iter().partition(|it| it.denial.is_some());
        let sockets: Vec<_> = refused.iter().map(|judged| judged.socket).collect();
        let ended = if sockets.is_empty() { Ok(()) } else { self.sockets.end(netns, &sockets) };
        let fresh = self.subjects.lock().note(workloads, left.iter().map(|judged| judged.socket));
        let is_fresh = |judged: &Judged| fresh.contains(&judged.socket.cookie());
        self.tell("left", left.into_iter().filter(is_fresh));
        self.tell(if ended.is_ok() { "closed" } else { "failed" }, refused.into_iter());
        ended
    }

    /// What there is of these workloads, but for what is outside of the mesh.
    fn judged(&self, netns: NetnsCookie, workloads: &[Subject]) -> io::Result<Vec<Judged>> {
        let owners: Vec<_> = workloads.iter().map(|(cgroup, workload)| owner(*cgroup, workload)).collect();
        let found = self.sockets.find(netns, &owners)?;
        let workload = |socket: &EarlierSocket| {
            let (_, workload) = workloads.iter().find(|(cgroup, _)| *cgroup == socket.owner)?;
            // The state's word: the copy here may be older than the policies.
            self.state.workload(&workload.uid)
        };
        let judge = |socket| self.judge(socket, workload(&socket)?);
        Ok(found.into_iter().filter_map(judge).collect())
    }

    fn judge(&self, socket: EarlierSocket, workload: Arc<Workload>) -> Option<Judged> {
        let EarlierSocket { local, remote, .. } = socket;
        let (parties, denial) = match socket.role {
            Role::Client => {
                let servers = self.state.enrolled_behind(remote);
                let parties =
                    parties(Direction::Outbound, workload, Some(servers.first()?.0.clone()), local, remote);
                let mut denials = servers.iter().map(|(server, at)| self.denial(server, local.ip(), *at));
                (parties, denials.find_map(|denial| denial))
            }
            Role::Server if self.is_left_over(&socket) => return None,
            Role::Server => {
                let denial = self.denial(&workload, remote.ip(), local);
                let client = self.state.workloads_at(remote.ip()).into_iter().find(|peer| !peer.host_network);
                (parties(Direction::Inbound, workload, client, local, remote), denial)
            }
        };
        Some(Judged { socket, parties, denial })
    }

    /// The server's end of a direct connection whose client has closed, and its record with it. One from before is met at
    /// the client's end, which is captured as well.
    fn is_left_over(&self, socket: &EarlierSocket) -> bool {
        socket.is_half_closed && self.subjects.lock().has_address(socket.remote.ip())
    }

    /// What policy has against a client that has proved nothing.
    fn denial(&self, server: &Workload, client: IpAddr, to: SocketAddr) -> Option<Denial> {
        let flow = Flow {
            identity: None,
            source_ip: client,
            remote_ip: client,
            namespace: &server.namespace,
            labels: &server.labels,
            destination_ip: to.ip(),
            destination_port: to.port(),
        };
        self.state.authorize(&flow).err()
    }

    /// Those that are there now, of the workloads that had any the last time.
    fn open(&self) -> Vec<Judged> {
        let subjects = self.subjects.lock().with_some_left();
        let found = subjects.into_iter().map(|(netns, workloads)| self.judged(netns, &workloads));
        found.filter_map(Result::ok).flatten().collect()
    }

    /// Counts them, and writes a line for each workload and direction.
    fn tell(&self, result: &'static str, judged: impl Iterator<Item = Judged>) {
        let mut alike = BTreeMap::<_, Vec<Judged>>::new();
        for judged in judged {
            alike.entry((judged.socket.owner, judged.parties.direction as u8)).or_default().push(judged);
        }
        for judged in alike.into_values() {
            let direction = name(judged[0].parties.direction);
            let labels = [("direction", direction), ("result", result)];
            self.seen.get_or_create(&labels).inc_by(judged.len() as u64);
            log(result, direction, &judged);
        }
    }
}

impl fmt::Debug for Earlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Earlier").finish_non_exhaustive()
    }
}

impl Sockets for EarlierSockets {
    fn find(&self, netns: NetnsCookie, owners: &[Owner]) -> io::Result<Vec<EarlierSocket>> {
        Self::find(self, netns, owners)
    }

    fn end(&self, netns: NetnsCookie, sockets: &[EarlierSocket]) -> io::Result<()> {
        Self::end(self, netns, sockets)
    }
}

/// Looked up when Prometheus asks, so that it cannot drift from what there is.
#[derive(Debug)]
struct Open(Weak<Earlier>);

impl Collector for Open {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(earlier) = self.0.upgrade() else { return Ok(()) };
        let open = earlier.open();
        let help = "Connections in clear from before their workload was captured that are open now";
        let mut family =
            encoder.encode_descriptor("signet_earlier_connections_open", help, None, MetricType::Gauge)?;
        for direction in [Direction::Outbound, Direction::Inbound] {
            let count = open.iter().filter(|judged| judged.parties.direction == direction).count();
            let count = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            count.encode(family.encode_family(&[("direction", name(direction))])?)?;
        }
        Ok(())
    }
}

/// A workload, and the cgroup it is captured by.
type Subject = (CgroupId, Arc<Workload>);

fn owner(cgroup: CgroupId, workload: &Workload) -> Owner {
    Owner { cgroup, addresses: workload.addresses.to_vec(), host_network: workload.host_network }
}

fn parties(
    direction: Direction,
    workload: Arc<Workload>,
    peer: Option<Arc<Workload>>,
    local: SocketAddr,
    remote: SocketAddr,
) -> Parties {
    let (source, destination, client, server) = match direction {
        Direction::Outbound => (local, remote, Some(workload), peer),
        Direction::Inbound => (remote, local, peer, Some(workload)),
    };
    let mut parties = Parties::between(direction, source, destination);
    parties.path = Some(Path::Earlier);
    parties.source.workload = client;
    parties.destination.workload = server;
    parties
}

/// What the client has sent and received.
fn carried(socket: &EarlierSocket) -> Bytes {
    match socket.role {
        Role::Client => Bytes { sent: socket.sent, received: socket.received },
        Role::Server => Bytes { sent: socket.received, received: socket.sent },
    }
}

fn log(result: &str, direction: &str, judged: &[Judged]) {
    let Some(Judged { socket, parties, denial }) = judged.first() else { return };
    let workload = parties.local().map(ToString::to_string).unwrap_or_default();
    let count = judged.len();
    let EarlierSocket { local, remote, .. } = socket;
    match denial {
        None => warn!(
            workload, direction, count, %local, %remote, result,
            "connections in clear from before the workload was captured: policy lets them be (one is shown)"
        ),
        Some(denial) => warn!(
            workload, direction, count, %local, %remote, result, error = %denial,
            "connections in clear from before the workload was captured: refused by policy (one is shown)"
        ),
    }
}

fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// As those of direct connections, which have other sockets' cookies.
const FIRST_ID: u64 = super::direct::FIRST_ID;
