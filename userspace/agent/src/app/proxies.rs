//! The reconciler's view of the proxies: sandboxes opened by the one are accepted on by the other.
//!
//! Lives here because neither floor-4 module may know the other. Owned by the reconciler's task; dropping it closes
//! every listener and connection.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::addr::{CgroupId, NetnsCookie, WorkloadUid};
use crate::kernel::DirectFlow;
use crate::net::Listeners;
use crate::policy::Denial;
use crate::proxy::earlier::Earlier;
use crate::proxy::{self, Context, LocalWorkload, Running, Sandbox};
use crate::reconcile::{Opened, Sandboxes};
use crate::state::Workload;
use crate::svid::Credentials;

/// The open sandboxes and their accept loops.
pub(super) struct Proxies {
    context: Arc<Context>,
    earlier: Arc<Earlier>,
    epoch: watch::Sender<u64>,
    told: watch::Sender<()>,
    open: HashMap<NetnsCookie, Open>,
}

/// A sandbox, and who serves it. Until its first workload is known it accepts nobody: there is no one to serve them for.
struct Open {
    sandbox: Arc<Sandbox>,
    /// Until then.
    listeners: Option<Listeners>,
    /// From then on.
    running: Option<Running>,
}

impl Open {
    /// Somebody lives there.
    fn serve(&mut self, context: &Arc<Context>) {
        if let Some(listeners) = self.listeners.take() {
            self.running = Some(proxy::start(context.clone(), self.sandbox.clone(), listeners));
        }
    }
}

impl Proxies {
    pub(super) fn new(
        context: Arc<Context>,
        earlier: Arc<Earlier>,
        epoch: watch::Sender<u64>,
        told: watch::Sender<()>,
    ) -> Self {
        Self { context, earlier, epoch, told, open: HashMap::new() }
    }

    /// Once the drain has begun: waits until no listener is open any more.
    pub(super) async fn closed(&mut self) {
        for open in self.open.values_mut() {
            open.listeners = None;
            if let Some(running) = &mut open.running {
                running.closed().await;
            }
        }
    }

    /// Waits until every connection has ended, at most `until`; then the caller drops.
    pub(super) async fn finished(&mut self, until: Instant) {
        let all = async {
            for running in self.open.values_mut().filter_map(|open| open.running.as_mut()) {
                running.finished().await;
            }
        };
        let _ = timeout_at(until, all).await;
    }
}

impl Sandboxes for Proxies {
    fn open(&mut self, Opened { netns, cookie, host, listeners }: Opened) {
        let sandbox = Arc::new(Sandbox {
            netns,
            cookie,
            host,
            workloads: Default::default(),
            in_clear: Default::default(),
            dialled: Default::default(),
        });
        self.open.insert(cookie, Open { sandbox, listeners: Some(listeners), running: None });
    }

    fn put(
        &mut self,
        cookie: NetnsCookie,
        cgroup: CgroupId,
        workload: Arc<Workload>,
        credentials: Credentials,
    ) {
        let Some(open) = self.open.get_mut(&cookie) else { return };
        let mut workloads = open.sandbox.workloads.write();
        if workloads.get(&cgroup).is_some_and(|present| present.workload == workload) {
            return;
        }
        self.context.direct.put(cgroup, Arc::clone(&workload));
        workloads.insert(cgroup, Arc::new(LocalWorkload::new(workload, credentials, self.context.tunnel)));
        drop(workloads);
        // Of the node's own namespace others may be known in a moment; they are all by the time that any is captured.
        if !open.sandbox.host {
            open.serve(&self.context);
        }
    }

    fn captured(&mut self, cookie: NetnsCookie, cgroup: CgroupId, workload: Arc<Workload>) {
        if let Some(open) = self.open.get_mut(&cookie) {
            open.serve(&self.context);
        }
        self.earlier.put(cookie, cgroup, workload);
    }

    fn remove(&mut self, cookie: NetnsCookie, cgroup: CgroupId) {
        self.earlier.remove(cgroup);
        let Some(open) = self.open.get(&cookie) else { return };
        self.context.direct.depart(cgroup);
        let gone = open.sandbox.workloads.write().remove(&cgroup);
        if let Some(gone) = gone {
            self.context.connections.close_workload(&gone.workload.uid);
        }
    }

    fn close(&mut self, cookie: NetnsCookie) {
        self.open.remove(&cookie);
    }

    fn policy_changed(&mut self, epoch: u64) {
        debug!(epoch, "policy");
        self.context.direct.policy_changed();
        self.epoch.send_replace(epoch);
    }

    fn told(&mut self) {
        self.told.send_replace(());
    }

    fn forget(&mut self, workload: &WorkloadUid) {
        self.context.pool.forget(workload);
        self.context.native.forget(workload);
        self.context.connections.close_tunnels(workload);
    }

    fn revoked(&mut self, flow: &DirectFlow, denial: Option<Denial>) {
        self.context.direct.revoked(flow, denial);
    }
}
