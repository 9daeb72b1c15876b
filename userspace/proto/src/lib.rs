//! The protobuf contracts Signet speaks, and the code generated from them at build time.
//!
//! The `.proto` files under `proto/` are written by hand to the field numbers of the original services; only what Signet
//! uses is in them. Generated types stop at the door that speaks the protocol (`svid` in the node engine, the gRPC
//! service in the CA): nothing else may import this crate. It holds no logic.

/// The Istio CA API (package `istio.v1.auth`, istio/ztunnel `proto/citadel.proto`): client and server.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod istio_ca {
    tonic::include_proto!("istio.v1.auth");

    /// The metadata key by which a node proxy names the workload it asks for
    /// (istio/istio `security/pkg/server/ca/node_auth.go`).
    pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
}
