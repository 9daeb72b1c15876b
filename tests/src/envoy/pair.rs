//! Two Envoys as sidecars: TCP in clear on the inside, mutual TLS between them, each checks the other's SPIFFE ID.
//!
//! Envoy's defaults but for what the job asks for, so that the benchmark compares with what people run. One TLS
//! connection per application connection, as Istio's sidecars make it.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Envoy, cluster, listener, transport};
use crate::pod::Pod;
use crate::svid::Svid;

/// What tells one pair from another on the same pods.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Where the client's takes TCP, on 127.0.0.1.
    pub listen: u16,
    /// Where the server's takes TLS.
    pub between: u16,
    /// How many TLS sessions the client keeps for resumption; Envoy's default is one.
    pub session_keys: Option<u32>,
}

impl Envoy {
    /// In `pod`: takes TCP and carries it over TLS to the server's Envoy in `server`.
    ///
    /// # Errors
    /// Envoy is not installed, or does not start; carries the end of its log.
    pub fn pair_client(pair: Pair, pod: &Pod, svid: &Svid, server: &Pod) -> Result<Self> {
        let Pair { listen, between, session_keys } = pair;
        let mut next = unlimited(cluster("next", server.ipv4(), between, None));
        next["transport_socket"] = transport("UpstreamTlsContext", mutual(svid, &server.spiffe_id()));
        if let Some(keys) = session_keys {
            next["transport_socket"]["typed_config"]["max_session_keys"] = keys.into();
        }
        let config = json!({"static_resources": {
            "listeners": [listener("127.0.0.1", listen, json!({"filters": [proxy_to("next")]}))],
            "clusters": [next],
        }});
        Self::start(pod, &format!("pair-client-{listen}"), &config, listen, PAIR_CONCURRENCY)
    }

    /// In `pod`: terminates `client`'s TLS for the application on 127.0.0.1:`port`.
    ///
    /// # Errors
    /// Envoy is not installed, or does not start; carries the end of its log.
    pub fn pair_server(pair: Pair, pod: &Pod, svid: &Svid, client: &Pod, port: u16) -> Result<Self> {
        let mut tls = transport("DownstreamTlsContext", mutual(svid, &client.spiffe_id()));
        tls["typed_config"]["require_client_certificate"] = true.into();
        let chain = json!({"filters": [proxy_to("application")], "transport_socket": tls});
        let config = json!({"static_resources": {
            "listeners": [listener("0.0.0.0", pair.between, chain)],
            "clusters": [unlimited(cluster("application", "127.0.0.1", port, None))],
        }});
        Self::start(pod, &format!("pair-server-{}", pair.between), &config, pair.between, PAIR_CONCURRENCY)
    }
}

fn proxy_to(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster, "cluster": cluster,
        },
    })
}

fn mutual(svid: &Svid, peer: &str) -> Value {
    let inline = |text: &str| json!({"inline_string": text});
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": inline(&svid.chain), "private_key": inline(&svid.key)}],
        "validation_context": {
            "trusted_ca": inline(&svid.roots),
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    })
}

/// Without the default limit of 1,024 connections, which a thousand idle ones and a load reach.
fn unlimited(mut cluster: Value) -> Value {
    let most = u32::MAX;
    cluster["circuit_breakers"] =
        json!({"thresholds": [{"max_connections": most, "max_pending_requests": most}]});
    cluster
}

/// Istio's default for sidecars.
const PAIR_CONCURRENCY: u16 = 2;
