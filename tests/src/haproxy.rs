//! Two HAProxys as stream proxies with mutual TLS between them: what one would run without a mesh.
//!
//! Debian's package with its defaults but for what the job asks for. Both ends verify the other's certificate against the
//! mesh's root; HAProxy cannot check a URI SAN in this place, so any holder of an SVID would do.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::pod::Pod;
use crate::process::Process;
use crate::svid::Svid;
use crate::{netns, wait};

/// A running HAProxy. Dropping it ends it.
#[derive(Debug)]
pub struct Haproxy {
    _process: Process,
    cgroup: PathBuf,
}

impl Haproxy {
    /// In `pod`: takes TCP on 127.0.0.1:`listen` and carries it over TLS to port `between` of `server`.
    ///
    /// # Errors
    /// HAProxy is not installed, or does not start; carries the end of its log.
    pub fn client(pod: &Pod, svid: &Svid, listen: u16, server: &Pod, between: u16) -> Result<Self> {
        let to = format!("{}:{between} ssl {TLS}", server.ipv4());
        Self::start(pod, svid, "client", &format!("127.0.0.1:{listen}"), &to, listen)
    }

    /// In `pod`: terminates TLS on port `between` for the application on 127.0.0.1:`port`.
    ///
    /// # Errors
    /// HAProxy is not installed, or does not start; carries the end of its log.
    pub fn server(pod: &Pod, svid: &Svid, between: u16, port: u16) -> Result<Self> {
        let bind = format!("0.0.0.0:{between} ssl {TLS}");
        Self::start(pod, svid, "server", &bind, &format!("127.0.0.1:{port}"), between)
    }

    /// The cgroup that it has for itself.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn start(pod: &Pod, svid: &Svid, role: &str, bind: &str, to: &str, port: u16) -> Result<Self> {
        let directory = pod.directory()?.join(format!("haproxy-{role}"));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("own.pem"), format!("{}{}", svid.chain, svid.key))?;
        fs::write(directory.join("roots.pem"), &svid.roots)?;
        let path = directory.to_str().context("a path in UTF-8")?;
        let file = directory.join("haproxy.cfg");
        fs::write(&file, CONFIG.replace("@bind", bind).replace("@to", to).replace('@', path))?;
        let argv = ["haproxy", "-db", "-f", file.to_str().context("a path in UTF-8")?];
        let (mut process, cgroup) = pod.spawn_apart("haproxy", &argv)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait::until("HAProxy listens", STARTED_WITHIN, || {
            process.check_alive()?;
            netns::enter(&pod.place().netns, || TcpStream::connect(address))?.map(drop).map_err(Into::into)
        })?;
        Ok(Self { _process: process, cgroup })
    }
}

/// `@` is the directory. Two threads, as the other contenders have; without them as many as the machine has cores. As many
/// connections as it may have files for, which is its default.
const CONFIG: &str = "global
    nbthread 2
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen pair
    bind @bind
    server next @to
";
const TLS: &str = "crt @/own.pem ca-file @/roots.pem verify required ssl-min-ver TLSv1.3";
const STARTED_WITHIN: Duration = Duration::from_secs(20);
