//! Why a request was refused: the label for metrics, the words for the log, and the little that the caller hears.
//!
//! Who is not authenticated or not authorised hears the same sentence in every case, as from istiod
//! (`node_auth.go`: "all errors … are returned as Unauthenticated"): it must not learn which nodes, accounts or workloads
//! there are. Who is authorised hears what is wrong with its request.

use signet_identity::SpiffeId;
use tonic::Status;

use crate::csr::CsrError;
use crate::grant::GrantError;
use crate::issuer::IssueError;
use crate::token::TokenError;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The caller is nobody.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The caller may not have that identity.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The caller may, but its request is no good.
    #[error("node {node} asks for {identity}: {source}")]
    Csr {
        /// Who asked.
        node: String,
        /// What for.
        identity: SpiffeId,
        /// What is wrong.
        source: CsrError,
    },
    /// We cannot.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl Refusal {
    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Token(e) => e.label(),
            Self::Grant(e) => e.label(),
            Self::Csr { source, .. } => source.label(),
            Self::Issue(e) => e.label(),
        }
    }

    /// For the caller.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Token(e) if e.is_ours() => Status::unavailable("the CA cannot check tokens now"),
            Self::Grant(GrantError::Unavailable { .. }) => {
                Status::unavailable("the CA cannot check workloads now")
            }
            Self::Token(_) | Self::Grant(_) => Status::unauthenticated("request authentication failed"),
            Self::Csr { source, .. } => Status::invalid_argument(source.to_string()),
            Self::Issue(_) => Status::unavailable("the CA cannot sign now"),
        }
    }
}
