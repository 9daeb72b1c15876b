//! The doors to the CAs: one trait, one store that keeps one SVID per workload fresh.
//!
//! | file | what |
//! |---|---|
//! | `store`, `schedule` | the task that fetches and rotates; when it does, as a pure core |
//! | `credentials` | what a workload's owner and its connections hold |
//! | `istio` | CreateCertificate: istiod or signet-ca |
//! | `file` | PEM files, for static set-ups |
//!
//! Every SVID has a key of its own, and is checked by [`X509Svid::new`] before anybody sees it. An old SVID serves until
//! it expires: a CA that is down, slow or lying never cuts live traffic before that, and is no start failure. SVIDs and
//! keys are in memory only and go with the [`Tracked`] that asked for them. Foreign types (tonic, prost) stay in here.

mod bounded;
mod credentials;
mod error;
mod file;
mod istio;
mod metrics;
mod schedule;
mod skew;
mod store;

use std::sync::Arc;

use signet_identity::{SpiffeId, X509Svid};

use crate::addr::WorkloadUid;

pub use credentials::{Credentials, Tracked};
pub use error::FetchError;
pub use file::FileAuthority;
pub use istio::{AddressError, IstioAuthority, IstioOptions};
pub use skew::Skew;
pub use store::Store;

/// Where SVIDs come from. One implementation per CA protocol.
pub trait Authority: Send + Sync + 'static {
    /// Fetches one SVID with a fresh key. Ends by itself: an implementation bounds its own time.
    fn fetch(
        &self,
        workload: &WorkloadUid,
        id: &SpiffeId,
    ) -> impl Future<Output = Result<X509Svid, FetchError>> + Send;
}

/// For one that others ask too.
impl<A: Authority> Authority for Arc<A> {
    async fn fetch(&self, workload: &WorkloadUid, id: &SpiffeId) -> Result<X509Svid, FetchError> {
        (**self).fetch(workload, id).await
    }
}

/// What `signet certificates` shows.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CertificateView {
    /// Whose.
    pub workload: WorkloadUid,
    /// Who.
    pub id: SpiffeId,
    /// How it stands.
    pub status: Status,
    /// Hex serial.
    pub serial: Option<String>,
    /// Seconds since 1970.
    pub not_before: Option<u64>,
    /// Seconds since 1970.
    pub not_after: Option<u64>,
    /// Seconds since 1970 of the next attempt; absent while one runs.
    pub next_attempt: Option<u64>,
    /// The last error, if the last attempt failed.
    pub error: Option<String>,
    /// Of which kind it is, as the label of `signet_ca_requests_total` has it.
    pub reason: Option<&'static str>,
}

/// How a workload's SVID stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There is one, and the last attempt went well.
    Valid,
    /// There is none yet, and no attempt has failed.
    Pending,
    /// The last attempt failed. An SVID that is there still serves.
    Failing,
    /// There is one that has expired.
    Expired,
}

impl Status {
    pub(crate) const ALL: [Self; 4] = [Self::Valid, Self::Pending, Self::Failing, Self::Expired];

    /// As in views and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Pending => "pending",
            Self::Failing => "failing",
            Self::Expired => "expired",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
