//! The source against an API server whose every answer the test gives: what is asked, in which order, and what is made of
//! answers that a real one gives only on bad days. The good days are tested on a real cluster.

use std::collections::HashMap;

use serde_json::json;
use signet_apiserver::testing::{Asked, Server, Watching};

use super::*;
use crate::discovery::{Origin, testing};

mod stages;

fn pod(name: &str, version: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version},
        "spec": {"nodeName": "n1"}, "status": {"podIP": "10.0.0.1"},
    })
}
