//! `signet-ca` on a machine of its own, with the issuer whose tokens it trusts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::node::READY_WITHIN;
use crate::process::Process;
use crate::testbed::{Host, Testbed};
use crate::token::{AUDIENCE, ISSUER, Issuer};
use crate::{binaries, http, wait};

/// The cluster's CA. Dropping it ends it.
#[derive(Debug)]
pub struct Ca {
    process: Mutex<Option<Process>>,
    host: Host,
    issuer: Issuer,
    config: PathBuf,
    svid_ttl: String,
}

impl Testbed {
    /// Adds a CA and starts it. `svid_ttl` (`24h`, `20s`) is what its SVIDs live.
    ///
    /// # Errors
    /// It has not been built, ended, or was not ready in time.
    pub fn ca(&self, svid_ttl: &str) -> Result<Ca> {
        let ca = self.stopped_ca(svid_ttl)?;
        ca.start()?;
        Ok(ca)
    }

    /// Adds a CA that is not started yet; its roots do not exist before its first start.
    ///
    /// # Errors
    /// Its machine or its files could not be made.
    pub fn stopped_ca(&self, svid_ttl: &str) -> Result<Ca> {
        let host = self.host("ca")?;
        let issuer = Issuer::new()?;
        let jwks = host.directory().join("jwks.json");
        std::fs::write(&jwks, issuer.jwks()?.to_string())?;
        let config = json!({
            "trustDomain": TRUST_DOMAIN,
            "listen": {"grpc": format!("{}:15012", host.ipv4()), "metrics": format!("0.0.0.0:{METRICS_PORT}")},
            "root": {"directory": host.directory().join("root")},
            "serving": {"names": [SERVER_NAME], "addresses": [host.ipv4()]},
            "tokens": {
                "jwks": jwks, "issuer": ISSUER, "audience": AUDIENCE,
                "trustedNodeAccounts": ["signet-system/signetd"],
            },
            "inventory": {"files": {"directory": self.manifests().directory()}},
            "svid": {"ttl": svid_ttl, "maxTtl": svid_ttl, "minTtl": "10s"},
        });
        let path = host.directory().join("signet-ca.yaml");
        std::fs::write(&path, serde_json::to_string_pretty(&config)?)?;
        Ok(Ca { process: Mutex::new(None), host, issuer, config: path, svid_ttl: svid_ttl.to_owned() })
    }
}

impl Ca {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It has not been built, ended, or was not ready in time.
    pub fn start(&self) -> Result<()> {
        let binary = binaries::path("signet-ca")?;
        let argv = [
            binary.to_str().context("a path in UTF-8")?,
            "--config",
            self.config.to_str().context("a path in UTF-8")?,
        ];
        let log = self.host.directory().join("signet-ca.log");
        let mut process = self.host.place("signet-ca")?.spawn(&argv, &log)?;
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        wait::until("signet-ca is ready", READY_WITHIN, || {
            process.check_alive()?;
            http::get(self.host.netns(), health, "/healthz/ready")?;
            ensure!(self.roots().exists(), "it has written no root certificate");
            Ok(())
        })?;
        *self.process.lock().expect("no holder panics") = Some(process);
        Ok(())
    }

    /// Kills it: the outage of a CA.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> Result<()> {
        let process = self.process.lock().expect("no holder panics").take();
        process.context("signet-ca does not run")?.stop(Signal::SIGKILL, READY_WITHIN).map(drop)
    }

    /// The cgroup that it has for itself.
    ///
    /// # Errors
    /// It could not be made.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(self.host.place("signet-ca")?.cgroup)
    }

    /// What it has logged.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.host.directory().join("signet-ca.log"))?)
    }

    /// `https://…:15012`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("https://{}:15012", self.host.ipv4())
    }

    /// The name its TLS certificate carries.
    #[must_use]
    pub fn server_name(&self) -> &'static str {
        SERVER_NAME
    }

    /// How long its SVIDs live, and what engines ask for (`24h`, `20s`).
    #[must_use]
    pub fn svid_ttl(&self) -> &str {
        &self.svid_ttl
    }

    /// PEM of its root certificate: of its TLS, and of its SVIDs.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.root_directory().join("root-cert.pem")
    }

    /// Where it keeps its root certificate and key.
    #[must_use]
    pub fn root_directory(&self) -> PathBuf {
        self.host.directory().join("root")
    }

    /// Signs the tokens it trusts.
    #[must_use]
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Its machine.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }
}

/// The mesh's trust domain.
pub const TRUST_DOMAIN: &str = "cluster.local";
const SERVER_NAME: &str = "signet-ca";
const METRICS_PORT: u16 = 15014;
