//! One kind, followed: listed page by page, then watched from there, and again after whatever goes wrong.
//!
//! A watch that ends is resumed where it stood, a place that the API server has forgotten (410) leads to a new list, and
//! every failure to a pause that grows. Our own loop over the client's two calls instead of kube-runtime's watcher: that
//! one does not say when it is connected again, and an outage that nobody can see the end of is half an answer.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use kube::Error;
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::connect::ApiServer;
use crate::fault::{Access, Fault};
use crate::health::KindHealth;
use crate::resource::{Kind, Resource};
use crate::trim::Trimmed;

/// What is heard of a kind.
#[derive(Debug)]
pub enum Heard {
    /// A list begins: what it does not have is gone.
    Listing,
    /// An object is there.
    Put(Value),
    /// An object is gone.
    Gone(Value),
    /// The list is complete.
    Listed,
}

/// What to follow, and who hears of it.
#[derive(Debug)]
pub struct Follower<T> {
    /// Where.
    pub api_server: ApiServer,
    /// Which kind.
    pub resource: Resource,
    /// In which version.
    pub version: String,
    /// Only objects with this name.
    pub name: Option<String>,
    /// Marks what is heard.
    pub tag: T,
    /// Who hears.
    pub to: mpsc::Sender<(T, Heard)>,
    /// Where it is told how that goes.
    pub health: KindHealth,
}

/// Nobody listens any more.
struct Deaf;

/// Why a list or a watch ended.
enum Ended {
    Deaf,
    /// The place to go on from is not known to the API server any more.
    Expired,
    /// The API server does not have the kind, and need not.
    Missing,
    Fault(Fault),
}

impl From<Deaf> for Ended {
    fn from(_: Deaf) -> Self {
        Self::Deaf
    }
}

impl<T: Copy> Follower<T> {
    /// Follows until nobody listens.
    pub async fn run<K: Kind>(self) {
        let mut place = None;
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let ended = match place.take() {
                None => self.list::<K>().await.map(|version| place = Some(version)),
                Some(mut version) => {
                    let ended = self.watch::<K>(&mut version).await;
                    place = Some(version);
                    ended
                }
            };
            match ended {
                Ok(()) => {}
                Err(Ended::Deaf) => return,
                Err(Ended::Expired) => place = None,
                Err(Ended::Missing) => {
                    self.health.missing();
                    if self.tell(Heard::Listed).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(UPGRADE).await;
                }
                Err(Ended::Fault(fault)) => self.health.failed(&fault),
            }
            if started.elapsed() >= STEADY {
                failures = 0;
            }
            // Whatever the reason: nothing that an API server does makes this loop spin.
            tokio::time::sleep(pause(failures, rand::random_range(0.5..1.5))).await;
            failures += 1;
        }
    }

    /// The version to watch from.
    async fn list<K: Kind>(&self) -> Result<String, Ended> {
        self.tell(Heard::Listing).await?;
        let mut page = ListParams { limit: Some(PAGE), ..self.selected() };
        loop {
            let list = self.page::<K>(&page).await?;
            for object in list.items {
                self.tell(Heard::Put(object.into_value())).await?;
            }
            page.continue_token = list.metadata.continue_.filter(|token| !token.is_empty());
            if page.continue_token.is_none() {
                self.health.listed();
                self.tell(Heard::Listed).await?;
                return list.metadata.resource_version.ok_or(Ended::Expired);
            }
        }
    }

    async fn page<K: Kind>(&self, page: &ListParams) -> Result<ObjectList<Trimmed<K>>, Ended> {
        let request = self.request().list(page).map_err(Error::BuildRequest);
        let answer = async { self.api_server.client.request(request?).await };
        let answer = tokio::time::timeout(LIST_TIMEOUT, answer).await;
        let list =
            answer.map_err(|_| self.fault("list", &"no answer"))?.map_err(|e| self.ended("list", &e))?;
        self.api_server.allowed(&self.access("list"));
        Ok(list)
    }

    /// Until the API server ends it, which it does after a while.
    async fn watch<K: Kind>(&self, version: &mut String) -> Result<(), Ended> {
        let seconds = rand::random_range(WATCH_SECONDS);
        let selected = self.selected().field_selector;
        let params = WatchParams { timeout: Some(seconds), field_selector: selected, ..Default::default() };
        let request = self.request().watch(&params, version).map_err(Error::BuildRequest);
        let opened = async { self.api_server.client.request_events::<Trimmed<K>>(request?).await };
        let opened = tokio::time::timeout(LIST_TIMEOUT, opened).await;
        let opened = opened.map_err(|_| self.fault("watch", &"no answer"))?;
        let mut events = pin!(opened.map_err(|e| self.ended("watch", &e))?);
        self.api_server.allowed(&self.access("watch"));
        self.health.connected();
        // A connection whose other end is gone never says so.
        let silence = Duration::from_secs(u64::from(seconds)) + SILENCE;
        loop {
            let next = tokio::time::timeout(silence, events.try_next()).await;
            let next = next.map_err(|_| self.fault("watch", &"the connection fell silent"))?;
            let Some(event) = next.map_err(|e| self.ended("watch", &e))? else { return Ok(()) };
            self.heard(event, version).await?;
        }
    }

    async fn heard<K>(&self, event: WatchEvent<Trimmed<K>>, version: &mut String) -> Result<(), Ended> {
        self.health.heard();
        let (object, gone) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                return Ok(());
            }
            WatchEvent::Error(status) => return Err(self.ended("watch", &Error::Api(status))),
        };
        let value = object.into_value();
        let at = value.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        let at = at.to_owned();
        self.tell(if gone { Heard::Gone(value) } else { Heard::Put(value) }).await?;
        if at.is_empty() {
            return Err(Ended::Expired);
        }
        *version = at;
        Ok(())
    }

    async fn tell(&self, heard: Heard) -> Result<(), Deaf> {
        self.to.send((self.tag, heard)).await.map_err(|_| Deaf)
    }

    fn request(&self) -> Request {
        Request::new(self.resource.path(&self.version, None))
    }

    fn selected(&self) -> ListParams {
        let named = self.name.as_ref().map(|name| format!("metadata.name={name}"));
        ListParams { field_selector: named, ..ListParams::default() }
    }

    fn ended(&self, verb: &'static str, error: &Error) -> Ended {
        match error {
            Error::Api(status) if status.code == 410 || is_too_new(status) => Ended::Expired,
            Error::Api(status) if status.code == 404 && self.resource.is_optional() => Ended::Missing,
            error => Ended::Fault(self.api_server.fault(self.access(verb), error)),
        }
    }

    fn fault(&self, verb: &'static str, what: &dyn std::fmt::Display) -> Ended {
        Ended::Fault(Fault::unreachable(self.access(verb), what))
    }

    fn access(&self, verb: &'static str) -> Access {
        Access::everywhere(verb, &self.resource)
    }
}

/// The place is one that this API server has not got to: its etcd was restored from a backup.
fn is_too_new(status: &kube::core::Status) -> bool {
    status.message.starts_with("Too large resource version")
}

/// 50 ms doubling to 10 s, spread, so that the nodes of a large cluster do not come back all at once.
fn pause(failures: u32, spread: f64) -> Duration {
    Duration::from_millis(50 << failures.min(8)).min(Duration::from_secs(10)).mul_f64(spread)
}

/// Objects of one page of a list: of pods 5 MB or so.
const PAGE: u32 = 500;
/// How long the API server may take for a page, or for the head of a watch.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the API server lets a watch run.
const WATCH_SECONDS: std::ops::Range<u32> = 240..300;
/// How often to look whether the API server has a kind now that it did not have: nothing tells of it.
const UPGRADE: Duration = Duration::from_secs(600);
const SILENCE: Duration = Duration::from_secs(5);
/// What has worked for so long has not failed.
const STEADY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
