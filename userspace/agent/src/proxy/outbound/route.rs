//! Where a captured destination leads: into the mesh with the SPIFFE IDs to expect there, or out of it in clear.
//!
//! Pure: it asks the node's view and decides nothing about time, sockets or identities.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use signet_identity::SpiffeId;

use crate::addr::{HBONE_PORT, OriginalDst};
use crate::proxy::failure::Failure;
use crate::proxy::parties::{Parties, Path};
use crate::state::{RangeKind, Service, State, Target, Wish, Workload};

/// A way to the destination.
#[derive(Debug)]
pub(super) enum Route {
    /// By HBONE.
    Mesh(Box<MeshRoute>),
    /// In clear: the destination is not in the mesh.
    Passthrough {
        /// The application.
        application: SocketAddr,
        /// The workload, where it is known.
        workload: Option<Arc<Workload>>,
        /// The Service, where the client asked for one.
        service: Option<Arc<Service>>,
    },
}

/// A destination in the mesh.
#[derive(Debug)]
pub(super) struct MeshRoute {
    /// The workload; of several that may be meant by the address and port, one.
    pub(super) workload: Arc<Workload>,
    /// The application.
    pub(super) application: SocketAddr,
    /// Who the server may be (secure naming).
    pub(super) expected: Arc<[SpiffeId]>,
    service: Option<Arc<Service>>,
}

/// Why there is no way to a destination.
#[derive(Debug)]
pub(super) enum Missing {
    /// The Service has no endpoint.
    Endpoint(Arc<Service>),
    /// The source has not told of it yet.
    Told(Expected),
}

/// What the source is still to tell of.
#[derive(Debug)]
pub(super) struct Expected {
    /// What it must be.
    pub(super) kind: RangeKind,
    /// Where.
    pub(super) address: IpAddr,
    pub(super) service: Option<Arc<Service>>,
}

impl Missing {
    /// The Service that the client asked for, where it is known.
    pub(super) fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Endpoint(service) => Some(service),
            Self::Told(expected) => expected.service.as_ref(),
        }
    }
}

impl Route {
    /// Finds the way to `destination`, past the endpoints in `except`.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn find(
        state: &State,
        destination: OriginalDst,
        zone: &str,
        wish: Wish,
        except: &[SocketAddr],
    ) -> Result<Self, Missing> {
        match state.resolve_for(wish, destination.socket(), zone, except) {
            Target::Workload { workload, address, port, service } => {
                Ok(to_workload(state, workload, SocketAddr::new(address, port), service))
            }
            Target::Endpoint { address, port, service } => Ok(Self::Passthrough {
                application: SocketAddr::new(address, port),
                workload: None,
                service: Some(service),
            }),
            Target::NoEndpoint { service } => Err(Missing::Endpoint(service)),
            Target::Awaited { kind, address, service } => {
                Err(Missing::Told(Expected { kind, address, service }))
            }
            Target::Unknown => Ok(Self::outside(destination.socket())),
        }
    }

    /// A destination that is nobody's of the cluster.
    pub(super) fn outside(application: SocketAddr) -> Self {
        Self::Passthrough { application, workload: None, service: None }
    }

    /// The application's address.
    #[must_use]
    pub(super) fn application(&self) -> SocketAddr {
        match self {
            Self::Mesh(mesh) => mesh.application,
            Self::Passthrough { application, .. } => *application,
        }
    }

    /// Tells views and metrics.
    pub(super) fn describe(&self, parties: &mut Parties) {
        let (path, workload, service) = match self {
            Self::Mesh(mesh) => (Path::Hbone, Some(&mesh.workload), &mesh.service),
            Self::Passthrough { workload, service, .. } => (Path::Passthrough, workload.as_ref(), service),
        };
        let application = self.application();
        let port = if path == Path::Hbone { HBONE_PORT } else { application.port() };
        parties.path = Some(path);
        parties.application = Some(application);
        parties.destination.address = SocketAddr::new(application.ip(), port);
        parties.destination.workload = workload.cloned();
        parties.service.clone_from(service);
    }
}

/// The last look before bytes go out in clear: an address of an enrolled pod never gets them.
///
/// # Errors
/// [`Failure::WouldLeak`].
pub(super) fn refuse_leak(state: &State, to: SocketAddr) -> Result<(), Failure> {
    // hostNetwork workloads share their address with what is not in the mesh; the port has told them apart.
    let enrolled = |workload: &Arc<Workload>| workload.enrolled && !workload.host_network;
    match state.workloads_at(to.ip()).iter().any(enrolled) {
        true => Err(Failure::WouldLeak(to)),
        false => Ok(()),
    }
}

fn to_workload(
    state: &State,
    workload: Arc<Workload>,
    application: SocketAddr,
    service: Option<Arc<Service>>,
) -> Route {
    if !workload.enrolled {
        return Route::Passthrough { application, workload: Some(workload), service };
    }
    let sharing = state.owners(application.ip(), application.port()).into_iter();
    let others = sharing.filter(|owner| owner.enrolled && owner.uid != workload.uid);
    let expected = std::iter::once(Arc::clone(&workload)).chain(others).map(|owner| owner.identity.clone());
    Route::Mesh(Box::new(MeshRoute { expected: expected.collect(), workload, application, service }))
}
