//! What the reconciler does outside of its process, as one trait: so that the order of its steps is tested without a kernel.
//!
//! [`Kernel`] is the door, together with `net` for what happens inside a network namespace; tests have a fake that
//! remembers what it was asked. Nothing is decided here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use super::local::ReconcileError;
use crate::addr::{CgroupId, NetnsCookie};
use crate::kernel::{
    CapturedWorkload, Cgroup, Direct, DirectFlow, DirectRoute, DirectServer, DirectService, Kernel,
    KernelError, SteeredListeners, netns_cookie,
};
use crate::net::{self, Listeners, NetError, Netns};
use crate::policy::Permit;

/// The kernel, and network namespaces, as the reconciler needs them. Called by its task alone.
pub trait Door: Send + 'static {
    /// [`Kernel::attach`].
    ///
    /// # Errors
    /// As there.
    fn attach(&mut self) -> Result<(), KernelError>;
    /// [`Kernel::heartbeat`].
    ///
    /// # Errors
    /// As there.
    fn heartbeat(&mut self) -> Result<(), KernelError>;
    /// [`Kernel::put_workload`].
    ///
    /// # Errors
    /// As there.
    fn put_workload(&mut self, workload: &CapturedWorkload) -> Result<(), KernelError>;
    /// [`Kernel::remove_workload`].
    ///
    /// # Errors
    /// As there.
    fn remove_workload(&mut self, cgroup: CgroupId) -> Result<(), KernelError>;
    /// [`Kernel::workloads`].
    ///
    /// # Errors
    /// As there.
    fn workloads(&self) -> Result<Vec<CgroupId>, KernelError>;
    /// The network namespace of a cgroup's processes; `None` while it has none in one of their own.
    ///
    /// # Errors
    /// Its processes or the namespace cannot be looked at.
    fn netns_of(&self, cgroup: &Cgroup, host: bool) -> Result<Option<(Netns, NetnsCookie)>, ReconcileError>;
    /// Opens the engine's listeners in a namespace and steers inbound connections to them.
    ///
    /// # Errors
    /// Which step failed. None is left half done that a second call would not redo.
    fn listen(&mut self, netns: &Netns, cookie: NetnsCookie, host: bool)
    -> Result<Listeners, ReconcileError>;
    /// [`Kernel::unsteer`].
    ///
    /// # Errors
    /// As there.
    fn unsteer(&mut self, cookie: NetnsCookie) -> Result<(), KernelError>;
    /// [`net::restore`].
    ///
    /// # Errors
    /// As there.
    fn restore(&self, netns: &Netns) -> Result<(), NetError>;
    /// [`Kernel::steered`].
    fn steered(&self) -> Vec<NetnsCookie>;
    /// [`Kernel::direct`].
    fn direct(&mut self) -> &mut dyn DirectDoor;
}

/// What concerns direct flows, as the reconciler needs it. Called by its task alone.
pub trait DirectDoor {
    /// [`Direct::is_possible`].
    fn is_possible(&self) -> bool;
    /// [`Direct::set_epoch`].
    ///
    /// # Errors
    /// As there.
    fn set_epoch(&mut self, policy_epoch: u64) -> Result<(), KernelError>;
    /// [`Direct::permit`].
    ///
    /// # Errors
    /// As there.
    fn permit(
        &mut self,
        route: DirectRoute,
        server: DirectServer,
        permit: &Permit,
    ) -> Result<(), KernelError>;
    /// [`Direct::is_used`].
    fn is_used(&self, route: DirectRoute) -> bool;
    /// [`Direct::forbid`].
    ///
    /// # Errors
    /// As there.
    fn forbid(&mut self, route: DirectRoute) -> Result<(), KernelError>;
    /// [`Direct::put_service`].
    ///
    /// # Errors
    /// As there.
    fn put_service(&mut self, vip: SocketAddr, service: &DirectService) -> Result<bool, KernelError>;
    /// [`Direct::remove_service`].
    ///
    /// # Errors
    /// As there.
    fn remove_service(&mut self, vip: SocketAddr) -> Result<(), KernelError>;
    /// [`Direct::live`].
    ///
    /// # Errors
    /// As there.
    fn live(&self) -> Result<Vec<DirectFlow>, KernelError>;
    /// [`Direct::destroy`].
    ///
    /// # Errors
    /// As there.
    fn destroy(&mut self, flow: &DirectFlow) -> io::Result<bool>;
}

impl Door for Kernel {
    fn attach(&mut self) -> Result<(), KernelError> {
        Kernel::attach(self)
    }

    fn heartbeat(&mut self) -> Result<(), KernelError> {
        Kernel::heartbeat(self)
    }

    fn put_workload(&mut self, workload: &CapturedWorkload) -> Result<(), KernelError> {
        Kernel::put_workload(self, workload)
    }

    fn remove_workload(&mut self, cgroup: CgroupId) -> Result<(), KernelError> {
        Kernel::remove_workload(self, cgroup)
    }

    fn workloads(&self) -> Result<Vec<CgroupId>, KernelError> {
        Kernel::workloads(self)
    }

    fn netns_of(&self, cgroup: &Cgroup, host: bool) -> Result<Option<(Netns, NetnsCookie)>, ReconcileError> {
        let Some(fd) = cgroup.netns(host)? else { return Ok(None) };
        let cookie = netns_cookie(fd.as_fd()).map_err(ReconcileError::Cookie)?;
        Ok(Some((Netns::new(fd), cookie)))
    }

    fn listen(
        &mut self,
        netns: &Netns,
        cookie: NetnsCookie,
        host: bool,
    ) -> Result<Listeners, ReconcileError> {
        let steering = self.steering(cookie, host)?;
        let listeners = net::prepare(netns)?;
        let to = SteeredListeners { plaintext: listeners.plaintext.as_fd(), hbone: listeners.hbone.as_fd() };
        self.steer(netns.as_fd(), cookie, steering, to)?;
        Ok(listeners)
    }

    fn unsteer(&mut self, cookie: NetnsCookie) -> Result<(), KernelError> {
        Kernel::unsteer(self, cookie)
    }

    fn restore(&self, netns: &Netns) -> Result<(), NetError> {
        net::restore(netns)
    }

    fn steered(&self) -> Vec<NetnsCookie> {
        Kernel::steered(self)
    }

    fn direct(&mut self) -> &mut dyn DirectDoor {
        Kernel::direct(self)
    }
}

impl DirectDoor for Direct {
    fn is_possible(&self) -> bool {
        Direct::is_possible(self)
    }

    fn set_epoch(&mut self, policy_epoch: u64) -> Result<(), KernelError> {
        Direct::set_epoch(self, policy_epoch)
    }

    fn permit(
        &mut self,
        route: DirectRoute,
        server: DirectServer,
        permit: &Permit,
    ) -> Result<(), KernelError> {
        Direct::permit(self, route, server, permit)
    }

    fn is_used(&self, route: DirectRoute) -> bool {
        Direct::is_used(self, route)
    }

    fn forbid(&mut self, route: DirectRoute) -> Result<(), KernelError> {
        Direct::forbid(self, route)
    }

    fn put_service(&mut self, vip: SocketAddr, service: &DirectService) -> Result<bool, KernelError> {
        Direct::put_service(self, vip, service)
    }

    fn remove_service(&mut self, vip: SocketAddr) -> Result<(), KernelError> {
        Direct::remove_service(self, vip)
    }

    fn live(&self) -> Result<Vec<DirectFlow>, KernelError> {
        Direct::live(self)
    }

    fn destroy(&mut self, flow: &DirectFlow) -> io::Result<bool> {
        Direct::destroy(self, flow)
    }
}
