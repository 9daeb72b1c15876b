//! A gRPC server that is asked for nothing but its health, as kubelets ask (`grpc.health.v1.Health`).

use std::net::{Ipv4Addr, SocketAddr};

/// Serves on a port until killed, and says that it is healthy.
///
/// # Errors
/// The port is taken.
pub async fn health(port: u16) -> Result<(), tonic::transport::Error> {
    let (_reporter, service) = tonic_health::server::health_reporter();
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    tonic::transport::Server::builder().add_service(service).serve(address).await
}
