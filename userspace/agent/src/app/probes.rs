//! What `signet check` asks of others: the CA, and the API server for the time.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::discovery::ApiServer;
use crate::kernel::Finding;
use crate::svid::IstioAuthority;

/// Whom there is to ask.
pub(super) struct Probes {
    pub(super) authority: Option<Arc<IstioAuthority>>,
    pub(super) api_server: Option<ApiServer>,
}

impl Probes {
    /// One line each. Blocks, for some seconds where nobody answers.
    pub(super) fn findings(&self) -> Vec<Finding> {
        Handle::current().block_on(async {
            let authority = async { Some(("ca", self.authority.as_ref()?.reach().await)) };
            let clock = async { Some(("clock", self.api_server.as_ref()?.compare_clocks().await)) };
            let (authority, clock) = tokio::join!(authority, clock);
            authority.into_iter().chain(clock).map(|(name, seen)| Finding::of(name, seen)).collect()
        })
    }
}
