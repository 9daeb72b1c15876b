//! The configuration file, parsed once into types that cannot be wrong. Errors name file and field.
//!
//! Unknown fields are refused. It is not watched: a change is a restart. What it points to is read anew when it changes:
//! the token keys and the inventory.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::DnsName;
use serde::{Deserialize, Deserializer};
use signet_identity::TrustDomain;

/// `signet-ca`'s configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// The only trust domain it signs for.
    #[serde(deserialize_with = "trust_domain")]
    pub(crate) trust_domain: TrustDomain,
    #[serde(default)]
    pub(crate) listen: Listen,
    /// What signs.
    pub(crate) root: Root,
    /// Its own TLS certificate.
    pub(crate) serving: Serving,
    /// Whose tokens it believes.
    pub(crate) tokens: Tokens,
    /// Which workloads there are.
    pub(crate) inventory: Inventory,
    #[serde(default)]
    pub(crate) svid: Lifetimes,
    #[serde(default)]
    pub(crate) log: Log,
}

/// `listen`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Listen {
    /// The CA API, over TLS.
    pub(crate) grpc: SocketAddr,
    /// `/metrics` and `/healthz/ready`.
    pub(crate) metrics: SocketAddr,
}

/// `root`: exactly one.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Root {
    /// A root of its own in this directory, generated at the first start.
    Directory(PathBuf),
    /// An intermediate of somebody else's root.
    Plugged {
        /// PEM: the issuing certificate first, then those above it, without the root.
        chain: PathBuf,
        /// PEM: the issuing certificate's key.
        key: PathBuf,
        /// PEM: the root, or several.
        root: PathBuf,
    },
}

/// `serving`: what its TLS certificate is valid for.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Serving {
    /// DNS names.
    #[serde(default, deserialize_with = "dns_names")]
    pub(crate) names: Vec<String>,
    /// IP addresses.
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
}

/// `tokens`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Tokens {
    /// The JWK Set that signs them; read anew when it changes.
    pub(crate) jwks: PathBuf,
    /// `iss`.
    pub(crate) issuer: String,
    /// One of `aud`.
    pub(crate) audience: String,
    /// `<namespace>/<service account>` of the node daemons.
    pub(crate) trusted_node_accounts: Vec<String>,
}

/// `inventory`: exactly one.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Inventory {
    /// A directory of manifests, watched.
    Files {
        /// The directory.
        directory: PathBuf,
    },
}

/// `svid`: how long SVIDs live.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Lifetimes {
    /// Where the request does not say.
    #[serde(deserialize_with = "duration")]
    pub(crate) ttl: Duration,
    /// At most, whatever the request says.
    #[serde(deserialize_with = "duration")]
    pub(crate) max_ttl: Duration,
    /// At least, whatever the request says.
    #[serde(deserialize_with = "duration")]
    pub(crate) min_ttl: Duration,
}

/// `log`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Log {
    /// `text` or `json`.
    pub(crate) format: LogFormat,
    /// A tracing filter.
    pub(crate) filter: String,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no YAML.
    #[error("{}: {reason}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Place and reason.
        reason: String,
    },
    /// A field is wrong.
    #[error("{}: {field}: {reason}", path.display())]
    Field {
        /// Which.
        path: PathBuf,
        /// The field's path.
        field: String,
        /// What it should be.
        reason: String,
    },
}

impl Config {
    /// Reads and checks the file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let value: serde_json::Value = match serde_saphyr::from_str(text) {
            Ok(value) => value,
            Err(e) => return Err(ConfigError::Syntax { path, reason: e.without_snippet().to_string() }),
        };
        let config: Self = match serde_path_to_error::deserialize(value) {
            Ok(config) => config,
            Err(e) => {
                let (field, reason) = (e.path().to_string(), e.inner().to_string());
                return Err(ConfigError::Field { path, field, reason });
            }
        };
        match config.check() {
            Ok(()) => Ok(config),
            Err((field, reason)) => {
                Err(ConfigError::Field { path, field: field.into(), reason: reason.into() })
            }
        }
    }

    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.serving.names.is_empty() && self.serving.addresses.is_empty() {
            return Err(("serving", "give names or addresses: clients check them"));
        }
        if self.tokens.trusted_node_accounts.is_empty() {
            return Err(("tokens.trustedNodeAccounts", "is empty: nobody could ask for anything"));
        }
        if !self.tokens.trusted_node_accounts.iter().all(|account| is_account(account)) {
            return Err(("tokens.trustedNodeAccounts", "write <namespace>/<service account>"));
        }
        if self.tokens.issuer.is_empty() {
            return Err(("tokens.issuer", "is empty"));
        }
        if self.tokens.audience.is_empty() {
            return Err(("tokens.audience", "is empty"));
        }
        let Lifetimes { ttl, max_ttl, min_ttl } = self.svid;
        if min_ttl < Duration::from_secs(1) || min_ttl > ttl || ttl > max_ttl || max_ttl > MAX_TTL {
            return Err(("svid", "needs 1s <= minTtl <= ttl <= maxTtl <= 90days"));
        }
        Ok(())
    }
}

fn is_account(account: &str) -> bool {
    account
        .split_once('/')
        .is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([0, 0, 0, 0], 15012)),
            metrics: SocketAddr::from(([0, 0, 0, 0], 15014)),
        }
    }
}

impl Default for Lifetimes {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self { ttl: day, max_ttl: day, min_ttl: Duration::from_secs(10) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

fn trust_domain<'de, D: Deserializer<'de>>(d: D) -> Result<TrustDomain, D::Error> {
    TrustDomain::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    humantime::parse_duration(&String::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn dns_names<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(d)?;
    match names.iter().find(|name| DnsName::try_from(name.as_str()).is_err()) {
        Some(name) => Err(serde::de::Error::custom(format!("{name:?} is no DNS name"))),
        None => Ok(names),
    }
}

/// Revocation is by expiry, so nothing lives longer.
const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "
trustDomain: cluster.local
root: {directory: /var/lib/signet-ca}
serving: {names: [signet-ca], addresses: [10.0.0.1]}
tokens: {jwks: /j.json, issuer: https://signet.test, audience: istio-ca, trustedNodeAccounts: [signet-system/signetd]}
inventory: {files: {directory: /m}}
";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/ca.yaml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_minimal_file_gets_the_documented_defaults() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!((config.listen.grpc.port(), config.listen.metrics.port()), (15012, 15014));
        assert_eq!(config.svid.ttl, Duration::from_secs(86_400));
        assert!(matches!(config.root, Root::Directory(path) if path == Path::new("/var/lib/signet-ca")));
    }

    #[test]
    fn a_plugged_root_names_its_three_files() {
        let text =
            MINIMAL.replace("{directory: /var/lib/signet-ca}", "{plugged: {chain: c, key: k, root: r}}");
        assert!(matches!(parse(&text).unwrap().root, Root::Plugged { .. }));
    }

    #[test]
    fn every_mistake_is_named_by_file_and_field() {
        for (from, to, field) in [
            ("trustDomain: cluster.local", "trustDomain: a/b", "trustDomain"),
            ("trustDomain: cluster.local\n", "", "."),
            ("{names: [signet-ca], addresses: [10.0.0.1]}", "{names: ['a b']}", "serving.names"),
            ("{names: [signet-ca], addresses: [10.0.0.1]}", "{}", "serving"),
            ("audience: istio-ca", "audiences: istio-ca", "tokens.audiences"),
            ("[signet-system/signetd]", "[signetd]", "tokens.trustedNodeAccounts"),
            ("[signet-system/signetd]", "[]", "tokens.trustedNodeAccounts"),
            ("inventory:", "svid: {ttl: 1y, maxTtl: 24h}\ninventory:", "svid"),
            ("inventory:", "svid: {ttl: soon}\ninventory:", "svid.ttl"),
            ("inventory:", "listen: {grpc: '15012'}\ninventory:", "listen.grpc"),
            ("{directory: /var", "{dir: /var", "root"),
        ] {
            let error = parse(&MINIMAL.replace(from, to)).unwrap_err();
            assert!(error.starts_with(&format!("/etc/ca.yaml: {field}: ")), "{to}: {error}");
        }
    }
}
