//! A DaemonSet of engines turned into one that removes them: `signetd --withdraw`, before the DaemonSet is deleted.
//!
//! The one place that writes to the cluster, with rights of an account of its own. The DaemonSet's controller does the
//! work: it replaces every node's pod, and its status says when all are done.

use std::pin::pin;

use futures_util::TryStreamExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use kube::Error;
use kube::api::{Api, ListParams, Patch, PatchParams, WatchParams};
use kube::core::WatchEvent;
use serde_json::{Value, json};
use signet_apiserver::ApiServer;

use super::ClientError;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum WithdrawError {
    /// The name is none.
    #[error("{0:?}: write <namespace>/<name> of the DaemonSet")]
    Name(String),
    /// There is no client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The API server said no, or nothing.
    #[error(
        "cannot {verb} the DaemonSet {name}: {source}; the account needs the verb {verb:?} on daemonsets.apps there"
    )]
    Refused {
        /// What was tried.
        verb: &'static str,
        /// On which.
        name: String,
        /// Why.
        source: Box<Error>,
    },
}

/// Has the DaemonSet `<namespace>/<name>` uninstall on its nodes, and waits until all of them have; without the DaemonSet
/// there is nothing to do. `told` hears how far it is.
///
/// # Errors
/// The API server refuses, or cannot be reached.
pub async fn withdraw(name: &str, mut told: impl FnMut(String)) -> Result<(), WithdrawError> {
    let Some((namespace, object)) = name.split_once('/') else {
        return Err(WithdrawError::Name(name.to_owned()));
    };
    let api_server = ApiServer::open(None, "signetd").await.map_err(ClientError::from)?;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(api_server.client(), namespace);
    let refused = |verb| move |e| WithdrawError::Refused { verb, name: name.to_owned(), source: Box::new(e) };
    match daemon_sets.patch(object, &PatchParams::default(), &Patch::Strategic(removal(object))).await {
        Err(Error::Api(status)) if status.code == 404 => {
            told(format!("there is no DaemonSet {name}"));
            return Ok(());
        }
        patched => drop(patched.map_err(refused("patch"))?),
    }
    // The API server ends a watch now and then.
    while !done(&daemon_sets, object, &mut told).await.map_err(|(verb, e)| refused(verb)(e))? {}
    Ok(())
}

/// The engine's container with other arguments, on all nodes at once, and in place of the engine: it does not stand by.
fn removal(object: &str) -> Value {
    let container = json!({"name": object, "args": ARGUMENTS, "startupProbe": null});
    json!({"spec": {
        "updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "100%"}},
        "template": {"spec": {"containers": [container]}},
    }})
}

/// Whether every node is done, now (`true`), or not yet when the watch ends (`false`).
async fn done(
    daemon_sets: &Api<DaemonSet>,
    object: &str,
    told: &mut impl FnMut(String),
) -> Result<bool, (&'static str, Error)> {
    let name = format!("metadata.name={object}");
    let list = daemon_sets.list(&ListParams::default().fields(&name)).await.map_err(|e| ("list", e))?;
    let Some(now) = list.items.first() else { return Ok(true) };
    let mut last = None;
    if is_done(now, &mut last, told) {
        return Ok(true);
    }
    let from = list.metadata.resource_version.unwrap_or_default();
    let events = daemon_sets.watch(&WatchParams::default().fields(&name), &from).await;
    let mut events = pin!(events.map_err(|e| ("watch", e))?);
    while let Some(event) = events.try_next().await.map_err(|e| ("watch", e))? {
        match event {
            WatchEvent::Added(changed) | WatchEvent::Modified(changed)
                if is_done(&changed, &mut last, told) =>
            {
                return Ok(true);
            }
            WatchEvent::Deleted(_) => return Ok(true),
            WatchEvent::Error(status) => return Err(("watch", Error::Api(status))),
            _ => {}
        }
    }
    Ok(false)
}

fn is_done(daemon_set: &DaemonSet, last: &mut Option<(i32, i32)>, told: &mut impl FnMut(String)) -> bool {
    let (done, of) = progress(daemon_set);
    if last.replace((done, of)) != Some((done, of)) {
        told(format!("{} of {of} nodes are done", done.max(0)));
    }
    done == of
}

/// How many nodes are done, and how many there are. Nodes count once the controller has seen the change.
fn progress(daemon_set: &DaemonSet) -> (i32, i32) {
    let generation = daemon_set.metadata.generation.unwrap_or(i64::MAX);
    let status = daemon_set.status.clone().unwrap_or_default();
    let DaemonSetStatus { desired_number_scheduled: of, number_ready, updated_number_scheduled, .. } = status;
    let seen = status.observed_generation.is_some_and(|observed| observed >= generation);
    let done = if seen { number_ready.min(updated_number_scheduled.unwrap_or(0)) } else { -1 };
    (done, of)
}

/// Of the engine's container, which has its configuration where it was.
const ARGUMENTS: [&str; 6] =
    ["--config", "/etc/signet/signetd.yaml", "--node", "$(NODE_NAME)", "--uninstall", "--stay"];

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_set(observed: i64, ready: i32, updated: i32) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"generation": 2}, "status": {
                "observedGeneration": observed, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
                "numberMisscheduled": 0, "numberReady": ready, "updatedNumberScheduled": updated,
            },
        }))
        .unwrap()
    }

    #[test]
    fn engines_that_are_still_ready_are_not_done() {
        assert_ne!(progress(&daemon_set(1, 2, 2)), (2, 2), "of before the change");
        assert_eq!(progress(&daemon_set(2, 2, 1)), (1, 2));
        assert_eq!(progress(&daemon_set(2, 1, 2)), (1, 2), "not ready");
        assert_eq!(progress(&daemon_set(2, 2, 2)), (2, 2));
    }
}
