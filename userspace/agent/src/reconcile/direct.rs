//! Flows that go past the engine: who may, and what becomes of them when that changes.
//!
//! The proxies tell of each connection that they carry between two workloads of this node ([`Served`]): both sides were
//! proven. That makes a [`DirectRoute`] a candidate; policy is asked here, for every address that the client may come
//! from, and the permit written. When an answer may have changed, the kernel's epoch is moved on first, so that nothing new
//! goes past. Then, once the burst of events is over, the permits that were in use are asked for again, and every live flow
//! with them: what has lost its right is ended. Flows that are published under an older epoch after that are told of by the
//! kernel, one by one.
//!
//! Which Services the kernel resolves by itself is settled in the same way (`services`).
//!
//! Only the reconciler's task is in here; what a workload's departure means for its flows is in `leaving`.

mod services;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use self::services::Written;
use super::{Door, Local, Reconciler, Sandboxes};
use crate::addr::{CgroupId, ENGINE_PORTS, WorkloadUid};
use crate::config::SameNode;
use crate::kernel::{DirectFlow, DirectRoute, DirectServer};
use crate::policy::{Denial, Flow, Permit};
use crate::state::{State, Workload};

/// A connection between two workloads of this node that the engine has carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The client.
    pub client: WorkloadUid,
    /// The server.
    pub server: WorkloadUid,
    /// Where the server was reached.
    pub to: SocketAddr,
}

/// What is written into the kernel, and what is still to be done.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// The kernel can end flows, and the sources have told all they had.
    possible: bool,
    permits: HashMap<DirectRoute, Ends>,
    /// Routes on which somebody else has answered: the engine can reach the server and the client cannot.
    unfit: HashSet<DirectRoute>,
    /// Answers may have changed since.
    outdated: Option<Instant>,
    /// The Services that the kernel resolves.
    services: Written,
    /// They may have changed since.
    services_outdated: Option<Instant>,
    /// Live flows could not be ended, or not be read.
    unsettled: bool,
}

/// Between whom.
#[derive(Clone, Debug)]
struct Ends {
    client: WorkloadUid,
    server: WorkloadUid,
    /// Written since the last settling: not judged by its use yet.
    fresh: bool,
}

/// Why a flow may not be direct.
#[derive(Debug)]
enum Refusal {
    /// Policy denies it altogether.
    Denied(Denial),
    /// One of the workloads has left, or wants mTLS.
    NotDirect,
}

impl Direct {
    /// When the settling is due at the latest.
    pub(super) fn settle_at(&self) -> Option<Instant> {
        let since = self.outdated.into_iter().chain(self.services_outdated).min();
        since.map(|since| since + SETTLED_WITHIN)
    }

    /// A Service, its endpoints, or who is captured here may have changed.
    pub(super) fn outdate_services(&mut self) {
        self.services_outdated.get_or_insert_with(Instant::now);
    }
}

impl<S: Sandboxes, K: Door> Reconciler<S, K> {
    /// The sources have told all: from here on flows may be direct, and those of a predecessor are looked at.
    pub(super) fn start_direct(&mut self) {
        self.direct.possible = self.kernel.direct().is_possible();
        if !self.direct.possible {
            warn!(
                "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY): connections within the node go through the engine"
            );
        }
        self.direct.outdate_services();
        self.outdate_direct();
    }

    /// Takes every permit back, and has all of them asked for again soon.
    pub(super) fn outdate_direct(&mut self) {
        if let Err(e) = self.kernel.direct().set_epoch(self.state.epoch()) {
            error!(error = %e, "permits of an older policy still hold");
        }
        self.direct.outdated.get_or_insert_with(Instant::now);
    }

    /// The engine has carried a connection; the next one may go by itself.
    pub(super) fn on_served(&mut self, served: &Served) {
        let (Some(client), Some(server)) = (self.locals.get(&served.client), self.locals.get(&served.server))
        else {
            return;
        };
        let Some((route, place)) = route(client, server, served.to) else { return };
        if !self.direct.possible
            || self.direct.permits.contains_key(&route)
            || self.direct.unfit.contains(&route)
        {
            return;
        }
        let Ok(permit) = self.permit(&served.client, &served.server, served.to) else { return };
        self.write_permit(route, place, &permit, Ends::of(served));
    }

    /// Asks for everything again: permits that were in use, and live flows.
    pub(super) fn settle_direct(&mut self) {
        let answers = self.direct.outdated.take();
        let services = self.direct.services_outdated.take();
        if !self.synced {
            return;
        }
        if services.is_some() && self.direct.possible {
            self.settle_services();
        }
        if answers.is_none() {
            return;
        }
        for (route, ends) in std::mem::take(&mut self.direct.permits) {
            self.renew(route, ends);
        }
        self.judge_all();
    }

    /// What could not be ended before, maybe can be now.
    pub(super) fn retry_direct(&mut self) {
        if self.direct.unsettled {
            self.judge_all();
        }
    }

    /// Ends a flow that may not be any more.
    pub(super) fn judge_direct(&mut self, flow: &DirectFlow) {
        // Before the sources have told all, nothing is known that could be held against it; it is looked at then.
        if self.synced {
            let locals = self.by_cgroup();
            self.judge(flow, &locals);
        }
    }

    /// The route does not lead where it should: nothing goes that way again until one of its ends is another.
    pub(super) fn on_stray(&mut self, flow: &DirectFlow) {
        let route = DirectRoute { client: flow.client, to: flow.destination };
        warn!(
            source = %flow.source, destination = %flow.destination,
            "a direct connection was answered by somebody else than its server (translated addresses?): this way goes \
             through the engine from now on"
        );
        if self.direct.unfit.len() == MAX_UNFIT {
            self.direct.unfit.clear();
        }
        self.direct.unfit.insert(route);
        self.forbid(route);
        self.direct.permits.remove(&route);
        self.end(flow, None);
    }

    /// Takes back what a workload was permitted, and what was permitted to reach it, and ends its flows.
    pub(super) fn withdraw_direct(&mut self, workload: &Workload, cgroup: CgroupId) {
        let concerned = |ends: &Ends| ends.client == workload.uid || ends.server == workload.uid;
        let routes: Vec<_> =
            self.direct.permits.iter().filter(|(_, ends)| concerned(ends)).map(|(route, _)| *route).collect();
        for route in routes {
            self.direct.permits.remove(&route);
            self.forbid(route);
        }
        let others =
            |route: &DirectRoute| route.client != cgroup && !workload.addresses.contains(&route.to.ip());
        self.direct.unfit.retain(others);
        for flow in self.live() {
            if flow.client == cgroup || flow.server == cgroup {
                self.end(&flow, None);
            }
        }
    }

    fn renew(&mut self, route: DirectRoute, ends: Ends) {
        let used = ends.fresh || self.kernel.direct().is_used(route);
        let place = self.locals.get(&ends.client).zip(self.locals.get(&ends.server));
        let place = place.and_then(|(client, server)| self::route(client, server, route.to));
        match (place, self.permit(&ends.client, &ends.server, route.to)) {
            (Some((now, place)), Ok(permit)) if used && now == route => {
                self.write_permit(route, place, &permit, Ends { fresh: false, ..ends });
            }
            _ => self.forbid(route),
        }
    }

    fn write_permit(&mut self, route: DirectRoute, place: DirectServer, permit: &Permit, ends: Ends) {
        match self.kernel.direct().permit(route, place, permit) {
            Ok(()) => {
                debug!(client = %ends.client, server = %ends.server, to = %route.to, "direct from now on");
                self.direct.permits.insert(route, ends);
            }
            // A full map: these connections go on through the engine.
            Err(e) => debug!(error = %e, "no permit"),
        }
    }

    fn forbid(&mut self, route: DirectRoute) {
        if let Err(e) = self.kernel.direct().forbid(route) {
            error!(error = %e, "a permit could not be taken back; it ends with the next change of policy");
            self.outdate_direct();
        }
    }

    fn judge_all(&mut self) {
        self.direct.unsettled = false;
        let locals = self.by_cgroup();
        for flow in self.live() {
            self.judge(&flow, &locals);
        }
    }

    fn judge(&mut self, flow: &DirectFlow, locals: &HashMap<CgroupId, WorkloadUid>) {
        let ends = locals.get(&flow.client).zip(locals.get(&flow.server));
        let right = ends.ok_or(Refusal::NotDirect).and_then(|(client, server)| {
            let (client, server) = pair(&self.state, client, server, flow.destination)?;
            authorize(&self.state, &client, &server, flow.source.ip(), flow.destination)
        });
        match right {
            Ok(_) => {}
            Err(Refusal::Denied(denial)) => self.end(flow, Some(denial)),
            Err(Refusal::NotDirect) => self.end(flow, None),
        }
    }

    fn end(&mut self, flow: &DirectFlow, denial: Option<Denial>) {
        self.sandboxes.revoked(flow, denial);
        match self.kernel.direct().destroy(flow) {
            Ok(destroyed) => {
                info!(source = %flow.source, destination = %flow.destination, destroyed, "direct connection ended");
            }
            Err(e) => {
                // Its client's namespace may be served again in a moment, after a restart.
                warn!(source = %flow.source, destination = %flow.destination, error = %e, "a direct connection cannot be ended yet");
                self.direct.unsettled = true;
            }
        }
    }

    fn live(&mut self) -> Vec<DirectFlow> {
        self.kernel.direct().live().unwrap_or_else(|e| {
            error!(error = %e, "direct connections could not be looked at");
            self.direct.unsettled = true;
            Vec::new()
        })
    }

    fn by_cgroup(&self) -> HashMap<CgroupId, WorkloadUid> {
        let known = self.locals.iter().filter_map(|(uid, local)| Some((local.cgroup_id()?, uid.clone())));
        known.collect()
    }

    /// The permit for all that a client may do on a route: from each of its addresses.
    fn permit(&self, client: &WorkloadUid, server: &WorkloadUid, to: SocketAddr) -> Result<Permit, Refusal> {
        let (client, server) = pair(&self.state, client, server, to)?;
        let sources = client.addresses.iter().filter(|address| address.is_ipv4() == to.is_ipv4());
        let mut permit = Err(Refusal::NotDirect);
        for source in sources {
            permit = Ok(authorize(&self.state, &client, &server, *source, to)?);
        }
        permit
    }
}

impl Ends {
    fn of(served: &Served) -> Self {
        Self { client: served.client.clone(), server: served.server.clone(), fresh: true }
    }
}

/// The way between two captured workloads of this node.
fn route(client: &Local, server: &Local, to: SocketAddr) -> Option<(DirectRoute, DirectServer)> {
    client.sandbox()?;
    let route = DirectRoute { client: client.cgroup_id()?, to };
    let place = DirectServer {
        cgroup: server.cgroup_id()?,
        netns: server.sandbox()?,
        host_network: server.workload.host_network,
    };
    Some((route, place))
}

/// Both ends as the state knows them now, where they may be direct at all.
fn pair(
    state: &State,
    client: &WorkloadUid,
    server: &WorkloadUid,
    to: SocketAddr,
) -> Result<(Arc<Workload>, Arc<Workload>), Refusal> {
    let direct = |workload: &Arc<Workload>| workload.enrolled && workload.same_node == SameNode::Direct;
    let client = state.workload(client).filter(direct).ok_or(Refusal::NotDirect)?;
    let server = state.workload(server).filter(direct).ok_or(Refusal::NotDirect)?;
    let is_servers = server.addresses.contains(&to.ip()) && !ENGINE_PORTS.contains(&to.port());
    if is_servers { Ok((client, server)) } else { Err(Refusal::NotDirect) }
}

/// As the server's side of an mTLS connection would: the kernel vouches for who the client is.
fn authorize(
    state: &State,
    client: &Workload,
    server: &Workload,
    source: IpAddr,
    to: SocketAddr,
) -> Result<Permit, Refusal> {
    let flow = Flow {
        identity: Some(&client.identity),
        source_ip: source,
        remote_ip: source,
        namespace: &server.namespace,
        labels: &server.labels,
        destination_ip: to.ip(),
        destination_port: to.port(),
    };
    state.authorize(&flow).map_err(Refusal::Denied)
}

/// A lost permit ends its flows within a second.
const SETTLED_WITHIN: Duration = Duration::from_millis(250);
/// Where more routes than this lead astray, remembering them is not what helps.
const MAX_UNFIT: usize = 4096;
