//! Single questions: one object read, created or replaced, some of them listed.
//!
//! Each is bounded in time and tried once: who asks knows whether trying again helps. The client's own decoding is not
//! used, because it logs an answer that it cannot decode, and some answers are secrets; texts are wiped once decoded.

use std::fmt;
use std::time::Duration;

use http::Request as HttpRequest;
use kube::Error;
use kube::api::{GetParams, ListParams, PostParams};
use kube::core::Request;
use kube::core::request::Error as BuildError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::connect::ApiServer;
use crate::fault::{Access, Fault};
use crate::resource::Resource;

/// Where objects of a kind are.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Their kind.
    pub resource: Resource,
    /// Its version.
    pub version: &'a str,
    /// `None` where the kind has none.
    pub namespace: Option<&'a str>,
}

/// What became of an object that was to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created<T> {
    /// It is there, as this.
    New(T),
    /// There was one of its name before.
    Before,
}

/// What became of an object that was to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// It is as wanted.
    Done,
    /// Somebody was faster, or it is gone.
    Outrun,
}

impl ApiServer {
    /// The object of that name, `None` where there is none.
    ///
    /// # Errors
    /// There was no answer to the question.
    pub async fn get<T: DeserializeOwned>(&self, place: Place<'_>, name: &str) -> Result<Option<T>, Fault> {
        let access = place.access("get");
        match self.ask(&access, place.request().get(name, &GetParams::default())).await {
            Ok(text) => decode(access, &text).map(Some),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.fault(access, &error)),
        }
    }

    /// Creates an object.
    ///
    /// # Errors
    /// It was refused, or nobody knows what became of it.
    pub async fn create<T: DeserializeOwned>(
        &self,
        place: Place<'_>,
        body: &[u8],
    ) -> Result<Created<T>, Fault> {
        let access = place.access("create");
        let request = place.request().create(&PostParams::default(), body.to_vec());
        match self.ask(&access, request).await {
            Ok(text) => decode(access, &text).map(Created::New),
            Err(error) if code(&error) == Some(409) => Ok(Created::Before),
            Err(error) => Err(self.fault(access, &error)),
        }
    }

    /// Replaces an object. The body's `resourceVersion` says which one is meant.
    ///
    /// # Errors
    /// It was refused, or nobody knows what became of it.
    pub async fn replace(&self, place: Place<'_>, name: &str, body: &[u8]) -> Result<Replaced, Fault> {
        let access = place.access("update");
        let request = place.request().replace(name, &PostParams::default(), body.to_vec());
        match self.ask(&access, request).await {
            Ok(_) => Ok(Replaced::Done),
            Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(Replaced::Outrun),
            Err(error) => Err(self.fault(access, &error)),
        }
    }

    /// The objects that a field selector (`spec.nodeName=n1`) fits, as they are now.
    ///
    /// # Errors
    /// There was no answer to the question, or there are more than [`AT_MOST`].
    pub async fn list<T: DeserializeOwned>(&self, place: Place<'_>, fields: &str) -> Result<Vec<T>, Fault> {
        #[derive(Deserialize)]
        #[serde(bound = "T: DeserializeOwned")]
        struct List<T> {
            metadata: Metadata,
            items: Vec<T>,
        }
        #[derive(Deserialize)]
        struct Metadata {
            r#continue: Option<String>,
        }
        let access = place.access("list");
        let params = ListParams { limit: Some(AT_MOST), ..ListParams::default().fields(fields) };
        let answer = self.ask(&access, place.request().list(&params)).await;
        let text = answer.map_err(|error| self.fault(access.clone(), &error))?;
        let list: List<T> = decode(access.clone(), &text)?;
        match list.metadata.r#continue.is_none_or(|more| more.is_empty()) {
            true => Ok(list.items),
            false => Err(Fault::nonsense(access, &format_args!("more than {AT_MOST} objects"))),
        }
    }

    async fn ask(
        &self,
        access: &Access,
        request: Result<HttpRequest<Vec<u8>>, BuildError>,
    ) -> Result<Zeroizing<String>, Error> {
        let request = request.map_err(Error::BuildRequest)?;
        let slot = tokio::time::timeout(QUEUE, self.slots.acquire()).await;
        let _slot = slot.map_err(|_| Error::Service(Box::new(Busy)))?;
        let answer = tokio::time::timeout(TIMEOUT, self.client.request_text(request)).await;
        let text = answer.unwrap_or_else(|_| Err(Error::Service(Box::new(NoAnswer))))?;
        self.allowed(access);
        Ok(Zeroizing::new(text))
    }
}

impl Place<'_> {
    fn access(&self, verb: &'static str) -> Access {
        Access::of(verb, &self.resource, self.namespace)
    }

    fn request(&self) -> Request {
        Request::new(self.resource.path(self.version, self.namespace))
    }
}

/// The decoder's error names a place and a type, and a value where it is of the wrong type: nothing of it is told.
fn decode<T: DeserializeOwned>(access: Access, text: &str) -> Result<T, Fault> {
    serde_json::from_str(text)
        .map_err(|e| Fault::nonsense(access, &format_args!("at line {} column {}", e.line(), e.column())))
}

fn code(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}

#[derive(Debug)]
struct NoAnswer;

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {TIMEOUT:?}")
    }
}

impl std::error::Error for NoAnswer {}

#[derive(Debug)]
struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it was not asked: too many questions are being asked")
    }
}

impl std::error::Error for Busy {}

/// How long a question waits for its turn.
const QUEUE: Duration = Duration::from_secs(2);
/// Shorter than a node's patience with the CA.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Objects of a list: those of one node in one namespace.
const AT_MOST: u32 = 1000;
