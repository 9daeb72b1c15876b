//! nginx in a pod: the ordinary application that knows nothing of the mesh.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::pod::Pod;
use crate::process::Process;

/// A running nginx that serves a directory on port 80, both families. Dropping it ends it.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
    directory: PathBuf,
}

impl Nginx {
    /// Starts it in a pod, with one page.
    ///
    /// # Errors
    /// nginx is missing, or the port is taken.
    pub fn start(pod: &Pod, page: &str) -> Result<Self> {
        let directory = pod.directory()?.join("nginx");
        fs::create_dir_all(directory.join("html"))?;
        fs::write(directory.join("html/index.html"), page)?;
        let path = directory.to_str().context("a path in UTF-8")?;
        fs::write(directory.join("nginx.conf"), CONFIG.replace("@", path))?;
        let process = pod.spawn("nginx", &["nginx", "-p", path, "-c", "nginx.conf", "-e", "stderr"])?;
        let nginx = Self { _process: process, directory };
        nginx.wait_until_it_listens(pod)?;
        Ok(nginx)
    }

    /// Puts a file of `megabytes` of noise next to the page, and returns its SHA-256 in hex.
    ///
    /// # Errors
    /// The disk is full.
    pub fn put_noise(&self, name: &str, megabytes: usize) -> Result<String> {
        write_noise(&self.directory.join("html").join(name), megabytes)
    }

    /// The lines of its access log: `<client address> <server address>:<port> <request>`.
    ///
    /// # Errors
    /// There is none yet.
    pub fn access_log(&self) -> Result<String> {
        fs::read_to_string(self.directory.join("access.log")).context("nginx has no access log")
    }

    /// Asked from inside the pod over loopback, which the mesh leaves alone.
    fn wait_until_it_listens(&self, pod: &Pod) -> Result<()> {
        crate::wait::until("nginx listens", Duration::from_secs(10), || {
            pod.run(&["curl", "-sS", "--max-time", "5", "http://127.0.0.1/"]).map(drop)
        })
    }
}

/// Writes `megabytes` of noise to a file, and returns its SHA-256 in hex.
///
/// # Errors
/// The disk is full.
pub fn write_noise(path: &Path, megabytes: usize) -> Result<String> {
    fs::write(path, noise(megabytes * 1024 * 1024))
        .with_context(|| format!("cannot write {}", path.display()))?;
    sha256(path)
}

/// The SHA-256 of a file, in hex.
///
/// # Errors
/// The file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let output = std::process::Command::new("sha256sum").arg(path).output()?;
    let text = crate::process::stdout(&output)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Bytes without a period that a stuck or repeated block could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| next()).collect()
}

/// `@` is the directory. One process: nothing to reload, nothing to leave behind.
const CONFIG: &str = "daemon off;
master_process off;
pid @/nginx.pid;
events {}
http {
    log_format addresses '$remote_addr $server_addr:$server_port $request';
    access_log @/access.log addresses;
    client_body_temp_path @/body;
    proxy_temp_path @/proxy;
    fastcgi_temp_path @/fastcgi;
    uwsgi_temp_path @/uwsgi;
    scgi_temp_path @/scgi;
    server {
        listen 80;
        listen [::]:80;
        root @/html;
    }
}
";
