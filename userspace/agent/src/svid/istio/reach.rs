//! Whether the CA can be reached right now, for `signet check`: a connection of its own, and nothing is asked for.
//!
//! What the store last heard of the CA may be hours old: SVIDs are renewed at half of their lifetime.

use std::time::Instant;

use rustls::CertificateError;

use super::connection::ConnectError;
use super::{IstioAuthority, MAX_ROOTS_BYTES};
use crate::svid::bounded;

impl IstioAuthority {
    /// Reads roots and token, and makes a TLS connection. What was seen; or what is wrong, and what to do.
    ///
    /// # Errors
    /// A file cannot be used, nobody answers, or it is not the CA.
    pub async fn reach(&self) -> Result<String, String> {
        let roots = bounded::read(&self.options.roots, MAX_ROOTS_BYTES).await.map_err(|e| e.to_string())?;
        self.authorization().await.map_err(|e| e.to_string())?;
        let tls = self.target.connector(&roots);
        let tls = tls.map_err(|reason| format!("{}: {reason}", self.options.roots.display()))?;
        let (begun, address) = (Instant::now(), self.target.address());
        match self.target.connect(&tls).await {
            Ok(_) => Ok(format!("{address} answered in {} ms", begun.elapsed().as_millis())),
            Err(error) => Err(format!("{address}: {error}{}", advice(&error))),
        }
    }
}

fn advice(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Untrusted(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYetContext { .. } | CertificateError::ExpiredContext { .. },
        )) => ": is this node's clock right?",
        ConnectError::Untrusted(_) => {
            ": are ca.istio.roots those of this CA, and is ca.istio.serverName its name?"
        }
        ConnectError::Tls(_) => ": is it the port of the CA?",
        ConnectError::Tcp(_) | ConnectError::Timeout(_) => {
            ": does the CA run, and does a NetworkPolicy or firewall let this node in?"
        }
    }
}
