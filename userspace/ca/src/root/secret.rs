//! A root of its own in a Secret: made by the first replica that starts, read by all others.
//!
//! Whoever finds none makes a root and creates the Secret; of two that do so at once the API server lets one win, and the
//! other takes the winner's. It is created whole and immutable and never written over: a Secret that is not whole is an
//! error, because nodes may trust the root that it once held. One that is deleted is put back by the replicas that run.
//!
//! The key is wiped from our memory where it is held as text; the request that carries it once belongs to the HTTP client
//! and is freed, not wiped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyPair;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use signet_apiserver::{ApiServer, Created, Fault, KindHealth, Place as Kind, Resource};
use signet_identity::TrustDomain;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use super::generated::{self, CERTIFICATE, KEY};
use super::{Place, RootError, key_file, own, parse_certificates};
use crate::config::{Config, Lifetimes, Root};
use crate::issuer::Issuer;
use crate::metrics::Metrics;

/// The Secret.
#[derive(Clone, Debug)]
pub(crate) struct Secret {
    api_server: ApiServer,
    namespace: String,
    name: String,
}

/// What is read of it.
#[derive(Deserialize)]
struct Stored {
    #[serde(default)]
    data: BTreeMap<String, Text>,
}

/// Base64, wiped when it is dropped.
struct Text(Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new).map(Self)
    }
}

/// What the Secret is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Same,
    Another,
    /// A start would say what is wrong.
    Damage,
    Nothing,
}

/// The Secret holds another root than the one in use.
#[derive(Debug, thiserror::Error)]
#[error("the Secret {0} holds another root than this process signs with: starting anew to take it")]
pub(crate) struct Replaced(String);

impl Secret {
    /// The one that the configuration names, where it names one: in this pod's namespace where it does not say.
    ///
    /// # Panics
    /// The root is not in a Secret.
    pub(crate) fn of(config: &Config, api_server: &ApiServer) -> Self {
        let Root::Secret { name, namespace } = &config.root else { panic!("the root is in no Secret") };
        let namespace = namespace.clone().or_else(|| std::env::var("POD_NAMESPACE").ok());
        let namespace = namespace.unwrap_or_else(|| api_server.namespace().to_owned());
        Self { api_server: api_server.clone(), namespace, name: name.clone() }
    }

    /// One of its keys, for texts.
    pub(super) fn place(&self, key: &'static str) -> Place {
        Place::secret(&self.namespace, &self.name, key)
    }

    /// The root in it, made where there is none. An API server that does not answer is asked again for [`PATIENCE`].
    pub(super) async fn open(
        &self,
        trust_domain: &TrustDomain,
        lifetimes: Lifetimes,
    ) -> Result<Issuer, RootError> {
        let started = Instant::now();
        let mut told = None;
        loop {
            let fault = match self.take(trust_domain, lifetimes).await {
                Err(RootError::Secret { fault, .. }) if started.elapsed() < PATIENCE => fault.to_string(),
                other => return other,
            };
            if told.as_ref() != Some(&fault) {
                warn!(secret = %self, error = fault, "the root cannot be read yet");
                told = Some(fault);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn take(&self, trust_domain: &TrustDomain, lifetimes: Lifetimes) -> Result<Issuer, RootError> {
        for _ in 0..ROUNDS {
            if let Some(stored) = self.read().await? {
                return self.issuer(&stored, lifetimes);
            }
            self.make(trust_domain).await?;
        }
        Err(RootError::Fleeting { namespace: self.namespace.clone(), name: self.name.clone() })
    }

    async fn read(&self) -> Result<Option<Stored>, RootError> {
        self.api_server.get(self.kind(), &self.name).await.map_err(|fault| self.fault(fault))
    }

    /// Makes a root, unless somebody else is faster.
    async fn make(&self, trust_domain: &TrustDomain) -> Result<(), RootError> {
        let key = generated::new_key()?;
        let body = self.body(&key, &generated::certify(&key, trust_domain)?);
        let created = self.api_server.create::<IgnoredAny>(self.kind(), body.as_bytes()).await;
        match created.map_err(|fault| self.fault(fault))? {
            Created::New(_) => info!(secret = %self, %trust_domain, "root generated"),
            Created::Before => info!(secret = %self, "another replica was faster: taking its root"),
        }
        Ok(())
    }

    fn body(&self, key: &KeyPair, certificate: &str) -> Zeroizing<String> {
        let encode = |text: &str| Zeroizing::new(STANDARD.encode(text));
        let (certificate, key) = (encode(certificate), encode(&Zeroizing::new(key.serialize_pem())));
        // Written out: a JSON value would keep copies of the key that nobody wipes.
        Zeroizing::new(format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Secret\",\"type\":\"Opaque\",\"immutable\":true,\"metadata\":{},\
             \"data\":{{\"{CERTIFICATE}\":\"{}\",\"{KEY}\":\"{}\"}}}}",
            json!({"name": self.name, "labels": {"app.kubernetes.io/managed-by": "signet-ca"}}),
            *certificate,
            *key,
        ))
    }

    fn issuer(&self, stored: &Stored, lifetimes: Lifetimes) -> Result<Issuer, RootError> {
        let (place, key_place) = (self.place(CERTIFICATE), self.place(KEY));
        let roots = parse_certificates(&place, self.value(stored, CERTIFICATE)?.as_bytes())?;
        let key = key_file::parse(&key_place, &self.value(stored, KEY)?)?;
        own(key, &key_place, roots, &place, lifetimes)
    }

    fn value(&self, stored: &Stored, key: &'static str) -> Result<Zeroizing<String>, RootError> {
        let missing = || RootError::Incomplete { place: self.place(key) };
        let Text(text) = stored.data.get(key).ok_or_else(missing)?;
        let bytes = Zeroizing::new(STANDARD.decode(text.as_bytes()).map_err(|_| self.no_text(key))?);
        if bytes.is_empty() {
            return Err(missing());
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| self.no_text(key))?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    fn no_text(&self, key: &'static str) -> RootError {
        RootError::Text { place: self.place(key) }
    }

    /// Looks now and then whether the Secret still holds this root, puts it back where it is gone, and ends when it holds
    /// another one: the replicas must sign with the same. Asked for instead of watched, because that takes no right but to
    /// get this one object.
    pub(crate) async fn guard(self, issuer: &Issuer, health: KindHealth, metrics: Metrics) -> Replaced {
        health.listed();
        metrics.set_root_stored(true);
        let mut stored_before = true;
        loop {
            tokio::time::sleep(GUARD_EVERY).await;
            let found = match self.compare(issuer).await {
                Ok(Found::Another) => return Replaced(self.to_string()),
                Ok(Found::Nothing) => {
                    metrics.set_root_stored(false);
                    self.put_back(issuer).await
                }
                found => found,
            };
            match found {
                Ok(found) => {
                    health.connected();
                    stored_before = self.tell(found, stored_before, &metrics);
                }
                Err(fault) => health.failed(&fault),
            }
        }
    }

    fn tell(&self, found: Found, stored_before: bool, metrics: &Metrics) -> bool {
        let stored = found == Found::Same;
        metrics.set_root_stored(stored);
        if stored_before && !stored {
            error!(secret = %self, ?found, "the root's Secret is lost: replicas that start now will not have this root");
        }
        stored
    }

    /// As it was. Without it a replica that starts would make a new root, which no node trusts. What somebody else has stored
    /// in the meantime is for the next look.
    async fn put_back(&self, issuer: &Issuer) -> Result<Found, Fault> {
        let body = self.body(issuer.key(), &issuer.roots_pem());
        let created = self.api_server.create::<IgnoredAny>(self.kind(), body.as_bytes()).await?;
        if let Created::New(_) = created {
            warn!(secret = %self, "the root's Secret was gone, and is put back: who deletes it?");
        }
        Ok(Found::Same)
    }

    async fn compare(&self, issuer: &Issuer) -> Result<Found, Fault> {
        let Some(stored) = self.api_server.get::<Stored>(self.kind(), &self.name).await? else {
            return Ok(Found::Nothing);
        };
        let pem = self.value(&stored, CERTIFICATE);
        let roots = pem.and_then(|pem| parse_certificates(&self.place(CERTIFICATE), pem.as_bytes()));
        Ok(match roots {
            Ok(roots) if roots == issuer.roots() => Found::Same,
            Ok(_) => Found::Another,
            Err(_) => Found::Damage,
        })
    }

    fn fault(&self, fault: Fault) -> RootError {
        RootError::Secret { namespace: self.namespace.clone(), name: self.name.clone(), fault: fault.into() }
    }

    fn kind(&self) -> Kind<'_> {
        Kind { resource: SECRETS, version: "v1", namespace: Some(&self.namespace) }
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

const SECRETS: Resource = Resource { group: "", kind: "Secret", plural: "secrets" };
/// How long a start waits for the API server, before the process ends and says why.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(500);
/// None there, somebody else's there, and gone again: once is an accident.
const ROUNDS: usize = 3;
const GUARD_EVERY: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
