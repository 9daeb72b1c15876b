//! The roots, as a ConfigMap in every namespace, where nodes and workloads find them.
//!
//! Namespaces and the ConfigMaps of that one name are watched; what is missing is made, and what was edited or deleted is
//! put back. Every replica does so, and writes only what differs from what its watches say: two of them do no harm. What
//! to do next is [`plan`]'s, without any input or output.
//!
//! Istio's control plane writes a ConfigMap of the same name. Where one carries its label and other roots it is left
//! alone and told of: two that put back each other's would never end.

mod plan;

use std::sync::Arc;
use std::time::Instant;

use serde::de::IgnoredAny;
use serde_json::{Value, json};
use signet_apiserver::Keep::{self, All, Fields};
use signet_apiserver::{
    ApiServer, Created, Fault, Follower, Health, Heard, Kind, KindHealth, Place, Replaced, Resource,
};
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tracing::{info, warn};

use self::plan::{Held, Plan, Step, Subject};
use crate::metrics::{Metrics, Published};

/// Publishes the roots. Owned by its task.
#[derive(Debug)]
pub(crate) struct Publisher {
    namespaces: Follower<Subject>,
    maps: Follower<Subject>,
    heard: mpsc::Receiver<(Subject, Heard)>,
    writer: Writer,
}

#[derive(Debug)]
struct Writer {
    api_server: ApiServer,
    name: String,
    roots: Arc<str>,
    plan: Plan,
    metrics: Metrics,
    /// How writing goes.
    health: KindHealth,
}

#[derive(Debug)]
struct Namespaces;

impl Kind for Namespaces {
    const RESOURCE: Resource = Resource { group: "", kind: "Namespace", plural: "namespaces" };
    const KEEP: Keep = Fields(&[(
        "metadata",
        Fields(&[("name", All), ("resourceVersion", All), ("deletionTimestamp", All)]),
    )]);
}

#[derive(Debug)]
struct ConfigMaps;

impl Kind for ConfigMaps {
    const RESOURCE: Resource = Resource { group: "", kind: "ConfigMap", plural: "configmaps" };
    const KEEP: Keep = Fields(&[
        (
            "metadata",
            Fields(&[
                ("namespace", All),
                ("name", All),
                ("resourceVersion", All),
                ("labels", Fields(&[(ISTIOS_LABEL, All)])),
            ]),
        ),
        ("data", Fields(&[(KEY, All)])),
    ]);
}

impl Publisher {
    /// Nothing is asked yet.
    pub(crate) fn open(
        api_server: &ApiServer,
        health: &Health,
        name: String,
        roots: String,
        metrics: Metrics,
    ) -> Self {
        let (to, heard) = mpsc::channel(WAITING);
        let follower = |resource: Resource, name, tag| Follower {
            api_server: api_server.clone(),
            resource,
            version: "v1".to_owned(),
            name,
            tag,
            to: to.clone(),
            health: health.kind(resource.kind),
        };
        let namespaces = follower(Namespaces::RESOURCE, None, Subject::Namespaces);
        let maps = follower(ConfigMaps::RESOURCE, Some(name.clone()), Subject::Maps);
        let writing = health.kind(WRITING);
        writing.listed();
        let (api_server, roots) = (api_server.clone(), roots.into());
        let writer = Writer { api_server, name, roots, plan: Plan::default(), metrics, health: writing };
        Self { namespaces, maps, heard, writer }
    }

    /// Publishes for ever.
    pub(crate) async fn run(self) {
        let Self { namespaces, maps, heard, writer } = self;
        tokio::join!(namespaces.run::<Namespaces>(), maps.run::<ConfigMaps>(), writer.run(heard));
    }
}

impl Writer {
    async fn run(mut self, mut from: mpsc::Receiver<(Subject, Heard)>) {
        loop {
            let due = self.plan.due();
            tokio::select! {
                heard = from.recv() => match heard {
                    Some((subject, heard)) => self.hear(subject, heard),
                    None => return,
                },
                () = until(due) => self.step().await,
            }
        }
    }

    fn hear(&mut self, subject: Subject, heard: Heard) {
        let now = Instant::now();
        match (subject, heard) {
            (subject, Heard::Listing) => self.plan.listing(subject),
            (subject, Heard::Listed) => self.plan.listed(subject, now),
            (Subject::Namespaces, Heard::Put(value)) => {
                let ends = !value["metadata"]["deletionTimestamp"].is_null();
                self.plan.namespace(&text(&value, "name"), !ends, now);
            }
            (Subject::Namespaces, Heard::Gone(value)) => {
                self.plan.namespace(&text(&value, "name"), false, now)
            }
            (Subject::Maps, Heard::Put(value)) => {
                let held = held(&value, &self.roots);
                if held == Held::Istios {
                    warn!(
                        namespace = text(&value, "namespace"),
                        config_map = self.name,
                        "not published: Istio's control plane keeps other roots there; see publish.configMap"
                    );
                }
                self.plan.map(&text(&value, "namespace"), held, now);
            }
            (Subject::Maps, Heard::Gone(value)) => {
                self.plan.map(&text(&value, "namespace"), Held::Nothing, now);
            }
        }
        self.metrics.set_unpublished(self.plan.unpublished());
    }

    async fn step(&mut self) {
        let Some((namespace, step)) = self.plan.next(Instant::now()) else { return };
        let done = match step {
            Step::Create => self.create(&namespace).await,
            Step::PutBack => self.put_back(&namespace).await,
        };
        match done {
            Ok(published) => {
                self.health.connected();
                if let Some(published) = published {
                    self.metrics.published(published);
                    info!(namespace = &*namespace, config_map = self.name, ?published, "roots published");
                }
                self.plan.done(&namespace, step, Instant::now());
            }
            Err(fault) => {
                self.metrics.published(Published::Failed);
                self.health.failed(&fault);
                self.plan.failed(&namespace, Instant::now());
            }
        }
    }

    /// `None`: another replica was faster.
    async fn create(&self, namespace: &str) -> Result<Option<Published>, Fault> {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": self.name, "labels": {"app.kubernetes.io/managed-by": "signet-ca"}},
            "data": {KEY: &*self.roots},
        });
        let created =
            self.api_server.create::<IgnoredAny>(maps(namespace), body.to_string().as_bytes()).await?;
        Ok(matches!(created, Created::New(_)).then_some(Published::Created))
    }

    /// Changes the one value, and leaves everything else of the object as it is.
    async fn put_back(&self, namespace: &str) -> Result<Option<Published>, Fault> {
        let Some(mut map) = self.api_server.get::<Value>(maps(namespace), &self.name).await? else {
            return Ok(None);
        };
        // What the watch has not told of yet.
        if held(&map, &self.roots) != Held::Others {
            return Ok(None);
        }
        map["data"][KEY] = (*self.roots).into();
        let body = map.to_string();
        let replaced = self.api_server.replace(maps(namespace), &self.name, body.as_bytes()).await?;
        Ok((replaced == Replaced::Done).then_some(Published::PutBack))
    }
}

/// What a ConfigMap holds.
fn held(map: &Value, roots: &str) -> Held {
    if map["data"][KEY] == *roots {
        return Held::Roots;
    }
    match map["metadata"]["labels"][ISTIOS_LABEL].is_null() {
        true => Held::Others,
        false => Held::Istios,
    }
}

fn text(value: &Value, field: &str) -> String {
    value["metadata"][field].as_str().unwrap_or_default().to_owned()
}

fn maps(namespace: &str) -> Place<'_> {
    Place { resource: ConfigMaps::RESOURCE, version: "v1", namespace: Some(namespace) }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Where Istio's proxies look for it.
const KEY: &str = "root-cert.pem";
/// `istio/pilot/pkg/serviceregistry/kube/controller/namespacecontroller.go`.
const ISTIOS_LABEL: &str = "istio.io/config";
/// The line of health that tells how writing goes.
const WRITING: &str = "published ConfigMap";
/// What waits to be taken in.
const WAITING: usize = 256;

#[cfg(test)]
mod tests;
