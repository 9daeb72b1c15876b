//! The configuration file, parsed once into types that cannot be wrong.
//!
//! One YAML file (`signetd --config`), every field named in its error; there is no second place where a setting is read.
//! Unknown fields are refused: a misspelt `unknownPods` must not silently mean "pass". It does not watch the file:
//! a change is a restart, which keeps the pins and so the capture.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

mod capture;
mod duration;
mod mesh;

pub use capture::{Capture, UnknownPods, Unprotected};
pub use mesh::{Mesh, OutboundTrafficPolicy, SameNode, Tunnel};

/// `signetd`'s configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Names this engine's pins, so that several can share a kernel.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// This node.
    pub node: Node,
    /// The mesh.
    #[serde(default)]
    pub mesh: Mesh,
    /// Where workloads, services and policy come from.
    pub source: Source,
    /// Where SVIDs come from.
    pub ca: Ca,
    /// The kernel side.
    #[serde(default)]
    pub capture: Capture,
    /// What the node listens on.
    #[serde(default)]
    pub listen: Listen,
    /// Bounds.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// What is logged, and how.
    #[serde(default)]
    pub log: Log,
}

/// `node`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// `spec.nodeName` of this node's pods.
    pub name: String,
    /// `topology.kubernetes.io/zone`.
    #[serde(default)]
    pub zone: String,
    /// Threads that serve connections; absent: half of the cores, and at least two.
    #[serde(default)]
    pub workers: Option<NonZeroUsize>,
}

/// `source`: exactly one.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Source {
    /// A directory of manifests, watched.
    Files {
        /// The directory.
        directory: PathBuf,
    },
    /// An API server.
    Kubernetes {
        /// How to reach it; absent in a pod, which has a token and knows where it is.
        #[serde(default)]
        kubeconfig: Option<PathBuf>,
    },
}

/// `ca`: exactly one.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Ca {
    /// CreateCertificate: istiod or signet-ca.
    #[serde(rename_all = "camelCase")]
    Istio {
        /// `https://host:15012`.
        address: String,
        /// The name its certificate must carry; the host of `address` where absent.
        #[serde(default)]
        server_name: Option<String>,
        /// PEM roots for its TLS.
        roots: PathBuf,
        /// The node's token; read anew at each use, since it is rotated.
        token: PathBuf,
        /// How long an SVID shall live.
        #[serde(default = "default_ttl", with = "duration")]
        ttl: Duration,
    },
    /// `<directory>/<namespace>/<service account>/{cert-chain,key,root-cert}.pem`, for static set-ups.
    File {
        /// The directory.
        directory: PathBuf,
    },
}

/// `listen`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Listen {
    /// `/metrics`, `/stats/prometheus`.
    pub metrics: SocketAddr,
    /// `/healthz/ready`.
    pub readiness: SocketAddr,
    /// The admin socket, mode 0600.
    pub admin: PathBuf,
}

/// `timeouts`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP connect, to a peer or an application.
    #[serde(with = "duration")]
    pub connect: Duration,
    /// A TLS handshake, either side, and the wait for an inbound client's first bytes.
    #[serde(with = "duration")]
    pub handshake: Duration,
    /// How long a connection waits for its workload's SVID.
    #[serde(with = "duration")]
    pub svid: Duration,
    /// How long a connection waits for the source to tell of an address inside the cluster.
    #[serde(with = "duration")]
    pub discovery: Duration,
    /// How long a connection waits for the engine of its server's node where that does not listen.
    #[serde(with = "duration")]
    pub engine: Duration,
    /// How long connections may finish at shutdown.
    #[serde(with = "duration")]
    pub drain: Duration,
}

/// `log`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A tracing filter, `info` by default.
    pub filter: String,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no YAML.
    #[error("{} is no YAML: {reason}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Place and reason.
        reason: String,
    },
    /// A field is wrong.
    #[error("{}: {mistake}", path.display())]
    Field {
        /// Which.
        path: PathBuf,
        /// Field and reason.
        mistake: Mistake,
    },
}

/// What is wrong with a field.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Mistake {
    /// The field's path from the top of the file; `.` is the file itself.
    pub field: String,
    /// What it should be.
    pub reason: String,
}

impl Mistake {
    fn new(field: &str, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

impl Config {
    /// Reads and checks the file. `node` is the node's name where the file, which many nodes share, has none.
    ///
    /// # Errors
    /// File, field and reason.
    pub fn read(path: &Path, node: Option<&str>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text, node)
    }

    fn parse(path: &Path, text: &str, node: Option<&str>) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let value: serde_json::Value = match serde_saphyr::from_str(text) {
            Ok(value) => value,
            Err(e) => return Err(ConfigError::Syntax { path, reason: e.without_snippet().to_string() }),
        };
        let parsed = match node {
            Some(name) => named(value, name),
            None => Ok(value),
        };
        parsed.and_then(Self::from_value).map_err(|mistake| ConfigError::Field { path, mistake })
    }

    fn from_value(value: serde_json::Value) -> Result<Self, Mistake> {
        let config: Self = serde_path_to_error::deserialize(value)
            .map_err(|e| Mistake::new(&e.path().to_string(), e.inner().to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Mistake> {
        if self.node.name.is_empty() {
            return Err(Mistake::new(
                "node.name",
                "is empty: give the name this node's pods carry in spec.nodeName",
            ));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.instance.is_empty() || self.instance.len() > 64 || !self.instance.chars().all(legal) {
            let reason = format!("{:?}: 1 to 64 of [A-Za-z0-9_-], since it names a directory", self.instance);
            return Err(Mistake::new("instance", reason));
        }
        self.capture.check()?;
        self.check_durations()
    }

    fn check_durations(&self) -> Result<(), Mistake> {
        for (field, value) in [
            ("capture.engineTimeout", self.capture.engine_timeout),
            ("timeouts.connect", self.timeouts.connect),
            ("timeouts.handshake", self.timeouts.handshake),
            ("timeouts.svid", self.timeouts.svid),
            ("timeouts.discovery", self.timeouts.discovery),
        ] {
            if value < Duration::from_millis(100) || value > MAX_TIMEOUT {
                return Err(Mistake::new(field, format!("is {value:?}: give 100ms to 1h")));
            }
        }
        for (field, value) in
            [("timeouts.drain", self.timeouts.drain), ("timeouts.engine", self.timeouts.engine)]
        {
            if value > MAX_TIMEOUT {
                return Err(Mistake::new(field, format!("is {value:?}: give 0s to 1h")));
            }
        }
        match self.ca {
            Ca::Istio { ttl, .. } if !(MIN_TTL..=MAX_TTL).contains(&ttl) => {
                Err(Mistake::new("ca.istio.ttl", format!("is {ttl:?}: give 10s to 90days")))
            }
            _ => Ok(()),
        }
    }

    /// Where this instance's programs, links and maps are pinned.
    #[must_use]
    pub fn pin_root(&self) -> PathBuf {
        self.capture.pin_root.join(&self.instance)
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            metrics: SocketAddr::from(([0, 0, 0, 0], 15020)),
            readiness: SocketAddr::from(([0, 0, 0, 0], 15021)),
            admin: "/run/signet/admin.sock".into(),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            svid: Duration::from_secs(10),
            discovery: Duration::from_secs(5),
            engine: Duration::from_secs(20),
            drain: Duration::from_secs(10),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

/// The file with the name from the command line in it.
fn named(mut value: serde_json::Value, name: &str) -> Result<serde_json::Value, Mistake> {
    if value.pointer("/node/name").is_some() {
        return Err(Mistake::new("node.name", "is given by --node too: leave one of them out"));
    }
    if let Some(node) = value
        .as_object_mut()
        .map(|file| file.entry("node").or_insert_with(|| serde_json::json!({})))
        .and_then(serde_json::Value::as_object_mut)
    {
        node.insert("name".to_owned(), name.into());
    }
    Ok(value)
}

fn default_instance() -> String {
    "default".into()
}

fn default_ttl() -> Duration {
    Duration::from_secs(24 * 3600)
}

/// No step of a connection is worth a longer wait.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// Below it an SVID would be renewed without end.
const MIN_TTL: Duration = Duration::from_secs(10);

/// What `signet-ca` signs at most: revocation is by expiry.
const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

#[cfg(test)]
mod tests;
