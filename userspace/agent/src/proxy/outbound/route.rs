//! Where a captured destination leads: into the mesh with the SPIFFE IDs to expect there, or out of it in clear.
//!
//! Pure: it asks the node's view and decides nothing about time, sockets or identities.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use signet_identity::SpiffeId;

use crate::addr::OriginalDst;
use crate::proxy::failure::Failure;
use crate::proxy::parties::{Parties, Path};
use crate::state::{Service, State, Target, Workload};

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
    /// The workload; of several that share the address, the first.
    pub(super) workload: Arc<Workload>,
    /// The application.
    pub(super) application: SocketAddr,
    /// Who the server may be (secure naming).
    pub(super) expected: Arc<[SpiffeId]>,
    service: Option<Arc<Service>>,
}

impl Route {
    /// Finds the way to `destination`, past the endpoints in `except`.
    ///
    /// # Errors
    /// The Service that has no endpoint.
    pub(super) fn find(
        state: &State,
        destination: OriginalDst,
        zone: &str,
        except: &[SocketAddr],
    ) -> Result<Self, Arc<Service>> {
        match state.resolve(destination.ip(), destination.port(), zone, except) {
            Target::Workload { workload, address, port, service } => {
                Ok(to_workload(state, workload, SocketAddr::new(address, port), service))
            }
            Target::Endpoint { address, port, service } => Ok(Self::Passthrough {
                application: SocketAddr::new(address, port),
                workload: None,
                service: Some(service),
            }),
            Target::NoEndpoint { service } => Err(service),
            Target::Unknown => {
                Ok(Self::Passthrough { application: destination.socket(), workload: None, service: None })
            }
        }
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
        let port = if path == Path::Hbone { crate::addr::HBONE_PORT } else { application.port() };
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
    let servers = match (workload.enrolled, workload.host_network) {
        (false, _) => Vec::new(),
        (true, false) => vec![Arc::clone(&workload)],
        (true, true) => sharing(state, application.ip(), application.port()),
    };
    let Some(first) = servers.first().cloned() else {
        return Route::Passthrough { application, workload: Some(workload), service };
    };
    let expected = servers.iter().map(|server| server.identity.clone()).collect();
    Route::Mesh(Box::new(MeshRoute { workload: first, application, expected, service }))
}

/// The enrolled workloads that may listen on a port of a shared address: those that declare it; where nobody does, those
/// that declare none at all. The same order as [`State::resolve`]'s.
fn sharing(state: &State, address: IpAddr, port: u16) -> Vec<Arc<Workload>> {
    let sharing: Vec<_> = state.workloads_at(address).into_iter().filter(|w| w.host_network).collect();
    let declares = |workload: &&Arc<Workload>| workload.ports.iter().any(|declared| declared.port == port);
    let silent = |workload: &&Arc<Workload>| workload.ports.is_empty();
    let declaring: Vec<_> = sharing.iter().filter(declares).cloned().collect();
    let candidates =
        if declaring.is_empty() { sharing.iter().filter(silent).cloned().collect() } else { declaring };
    candidates.into_iter().filter(|workload| workload.enrolled).collect()
}
