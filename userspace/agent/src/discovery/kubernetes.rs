//! The `kubernetes` source: an API server, watched.
//!
//! Each kind has a task that lists and watches it and hands on what is left of an object after trimming
//! ([`Follower`]). One task, [`Kubernetes::run`], owns what is known and turns it into events, in the order that [`subject`]
//! says. `Synced` waits until every kind has been listed once. When the API server is gone everything stays as it was,
//! [`Health`] says so, and the followers go on asking.
//!
//! Whoever can create a pod can write to this source: what an object says of itself is believed as far as Kubernetes
//! believes it, and no further. It changes nothing in the cluster.

mod kind;
mod subject;
mod withdraw;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use serde_json::Value;
use signet_apiserver::{ConnectError, Follower, Heard, Kind, Resource, Seen};
use signet_manifests::{Document, DocumentError};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use crate::discovery::files::log_warnings;
use crate::discovery::known::{Change, Known};
use crate::discovery::{DiscoveryOptions, faults};
use crate::drain::Watch;
use crate::state::Event;
use crate::telemetry::Registry;

pub use self::withdraw::{WithdrawError, withdraw};
pub use signet_apiserver::{ApiServer, Health};

use self::subject::{Custom, Progress, Subject, served_version};

/// The `kubernetes` source: an API server, watched.
pub struct Kubernetes {
    api_server: ApiServer,
    known: Known,
    health: Health,
    faults: Gauge,
    progress: Progress,
    followers: BTreeMap<Subject, Following>,
    /// What a list that runs now has had so far.
    lists: BTreeMap<Subject, Seen>,
    /// Counts followers, so that one that was stopped is not listened to any more.
    generation: u64,
    to: mpsc::Sender<(Tag, Heard)>,
    from: mpsc::Receiver<(Tag, Heard)>,
    second_stage: bool,
    synced: bool,
}

/// Which follower says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    subject: Subject,
    generation: u64,
}

#[derive(Debug)]
struct Following {
    generation: u64,
    resource: Resource,
    api_version: String,
    _task: AbortOnDropHandle<()>,
}

/// Why the source cannot be set up: a mistake in the configuration.
#[derive(Debug, thiserror::Error)]
#[error("source.kubernetes: {0}")]
pub struct ClientError(#[from] ConnectError);

impl Kubernetes {
    /// Reads the credentials; nothing is asked yet, and the API server need not be there.
    ///
    /// # Errors
    /// The credentials cannot be used.
    pub async fn open(
        kubeconfig: Option<&Path>,
        options: DiscoveryOptions,
        registry: &mut Registry,
    ) -> Result<Self, ClientError> {
        let api_server = ApiServer::open(kubeconfig, "signetd").await?;
        let (to, from) = mpsc::channel(WAITING);
        Ok(Self {
            api_server,
            known: Known::new(options),
            health: Health::register(registry, "signet_source"),
            faults: faults::register(registry),
            progress: Progress::default(),
            followers: BTreeMap::new(),
            lists: BTreeMap::new(),
            generation: 0,
            to,
            from,
            second_stage: false,
            synced: false,
        })
    }

    /// How the connection is.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// For questions that are not the source's.
    #[must_use]
    pub fn api_server(&self) -> ApiServer {
        self.api_server.clone()
    }

    /// Sends everything, then `Synced`, then changes as they happen, until the drain begins or nobody listens.
    pub async fn run(mut self, events: mpsc::Sender<Event>, drain: Watch) {
        let forward = async {
            Subject::FIRST.into_iter().for_each(|subject| self.follow(subject));
            while let Some((tag, heard)) = self.from.recv().await {
                for event in self.hear(tag, heard) {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
            }
        };
        tokio::select! {
            () = forward => {}
            () = drain.stopped() => {}
        }
    }

    fn hear(&mut self, tag: Tag, heard: Heard) -> Vec<Event> {
        if self.followers.get(&tag.subject).is_none_or(|following| following.generation != tag.generation) {
            return Vec::new();
        }
        let subject = tag.subject;
        let mut events = match heard {
            Heard::Listing => {
                self.lists.insert(subject, Seen::default());
                Vec::new()
            }
            Heard::Put(value) => self.put(subject, value),
            Heard::Gone(value) => self.gone(subject, value),
            Heard::Listed => self.listed(subject),
        };
        events.iter().for_each(log_warnings);
        self.faults.set(i64::try_from(self.known.faults().len()).unwrap_or(i64::MAX));
        events.extend(self.proceed());
        events
    }

    fn put(&mut self, subject: Subject, value: Value) -> Vec<Event> {
        if let Subject::Definition(custom) = subject {
            if let Some(seen) = self.lists.get_mut(&subject) {
                seen.note(&custom);
            }
            return self.serve(custom, served_version(&value));
        }
        let Some(document) = self.document(subject, value) else { return Vec::new() };
        if let Some(seen) = self.lists.get_mut(&subject) {
            seen.note(document.key());
        }
        let before = self.known.fault(document.key()).cloned();
        let key = document.key().clone();
        let events = self.known.update([Change::Put(document)]);
        log_fault(before.as_ref(), self.known.fault(&key));
        events
    }

    fn gone(&mut self, subject: Subject, value: Value) -> Vec<Event> {
        if let Subject::Definition(custom) = subject {
            return self.serve(custom, None);
        }
        let Some(document) = self.document(subject, value) else { return Vec::new() };
        self.known.update([Change::Gone(document.key().clone())])
    }

    /// What is known of the kind and was not in its list is gone.
    fn listed(&mut self, subject: Subject) -> Vec<Event> {
        self.progress.listed(subject);
        let Some(seen) = self.lists.remove(&subject) else { return Vec::new() };
        match subject {
            Subject::Definition(custom) if !seen.has(&custom) => self.serve(custom, None),
            Subject::Definition(_) => Vec::new(),
            subject => {
                let Some(Resource { group, kind, .. }) = self.resource(subject) else { return Vec::new() };
                self.known.retain(group, kind, |key| seen.has(key))
            }
        }
    }

    /// A kind of Istio's is there, in this version, or is not.
    fn serve(&mut self, custom: Custom, version: Option<String>) -> Vec<Event> {
        if !self.progress.serve(custom, version) {
            return Vec::new();
        }
        let subject = Subject::Custom(custom);
        let Resource { group, kind, .. } = resource(custom);
        match self.progress.version(custom).map(str::to_owned) {
            Some(version) => info!(kind, version, "kind found"),
            None => info!(kind, "the cluster does not have this kind: not followed"),
        }
        if self.progress.version(custom).is_some() {
            if self.second_stage || !subject.is_late() {
                self.follow(subject);
            }
            return Vec::new();
        }
        self.followers.remove(&subject);
        self.lists.remove(&subject);
        self.health.forget(subject.label());
        self.known.retain(group, kind, |_| false)
    }

    /// Begins the next stage where this one is complete.
    fn proceed(&mut self) -> Option<Event> {
        if !self.second_stage && self.progress.first_stage_is_complete() {
            self.second_stage = true;
            Subject::SECOND.into_iter().for_each(|subject| self.follow(subject));
            if self.progress.version(Custom::WorkloadEntries).is_some() {
                self.follow(Subject::Custom(Custom::WorkloadEntries));
            }
        }
        let synced = !self.synced && self.progress.is_complete();
        self.synced |= synced;
        synced.then_some(Event::Synced)
    }

    fn follow(&mut self, subject: Subject) {
        match subject {
            Subject::Namespaces => self.spawn::<kind::Namespaces>(subject, "v1", None),
            Subject::Nodes => self.spawn::<kind::Nodes>(subject, "v1", None),
            Subject::ServiceCidrs => self.spawn::<kind::ServiceCidrs>(subject, "v1", None),
            Subject::Pods => self.spawn::<kind::Pods>(subject, "v1", None),
            Subject::Services => self.spawn::<kind::Services>(subject, "v1", None),
            Subject::EndpointSlices => self.spawn::<kind::EndpointSlices>(subject, "v1", None),
            Subject::Definition(custom) => {
                self.spawn::<kind::Definitions>(subject, "v1", Some(resource(custom).name()));
            }
            Subject::Custom(custom) => {
                let Some(version) = self.progress.version(custom).map(str::to_owned) else { return };
                match custom {
                    Custom::AuthorizationPolicies => {
                        self.spawn::<kind::AuthorizationPolicies>(subject, &version, None);
                    }
                    Custom::PeerAuthentications => {
                        self.spawn::<kind::PeerAuthentications>(subject, &version, None);
                    }
                    Custom::WorkloadEntries => self.spawn::<kind::WorkloadEntries>(subject, &version, None),
                }
            }
        }
    }

    fn spawn<K: Kind>(&mut self, subject: Subject, version: &str, name: Option<String>) {
        self.generation += 1;
        let generation = self.generation;
        let follower = Follower {
            api_server: self.api_server.clone(),
            resource: K::RESOURCE,
            version: version.to_owned(),
            name,
            tag: Tag { subject, generation },
            to: self.to.clone(),
            health: self.health.kind(subject.label()),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run::<K>()));
        let api_version = K::RESOURCE.api_version(version);
        let following = Following { generation, resource: K::RESOURCE, api_version, _task: task };
        self.followers.insert(subject, following);
    }

    fn resource(&self, subject: Subject) -> Option<Resource> {
        self.followers.get(&subject).map(|following| following.resource)
    }

    fn document(&self, subject: Subject, value: Value) -> Option<Arc<Document>> {
        let following = self.followers.get(&subject)?;
        match Document::received(&following.api_version, following.resource.kind, value) {
            Ok(document) => Some(Arc::new(document)),
            Err(fault) => {
                error!(%fault, "object not taken");
                None
            }
        }
    }
}

fn resource(custom: Custom) -> Resource {
    match custom {
        Custom::AuthorizationPolicies => kind::AuthorizationPolicies::RESOURCE,
        Custom::PeerAuthentications => kind::PeerAuthentications::RESOURCE,
        Custom::WorkloadEntries => kind::WorkloadEntries::RESOURCE,
    }
}

/// Each fault is told once when it comes and once when it goes.
fn log_fault(before: Option<&DocumentError>, now: Option<&DocumentError>) {
    match (before, now) {
        (before, Some(fault)) if before != Some(fault) => warn!(%fault, "object not taken"),
        (Some(fault), None) => info!(%fault, "object's fault ended"),
        _ => {}
    }
}

/// What waits to be converted while `reconcile` is busy.
const WAITING: usize = 256;

#[cfg(test)]
mod tests;
