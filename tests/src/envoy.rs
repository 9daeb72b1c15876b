//! Envoy as the other side of HBONE, as a client and as a server, with an SVID of the mesh.

mod pair;

pub use pair::Pair;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::pod::Pod;
use crate::process::Process;
use crate::svid::Svid;
use crate::{binaries, netns, wait};

/// A running Envoy. Dropping it ends it.
#[derive(Debug)]
pub struct Envoy {
    _process: Process,
    cgroup: PathBuf,
}

impl Envoy {
    /// The cgroup that it has for itself.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// In `pod`: takes TCP on `listen` and carries it by HBONE to `port` of `server`.
    ///
    /// # Errors
    /// Envoy is not installed, or does not start; carries the end of its log.
    pub fn client(pod: &Pod, svid: &Svid, listen: u16, server: &Pod, port: u16) -> Result<Self> {
        let authority = format!("{}:{port}", server.ipv4());
        let proxy = json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "hbone", "cluster": "hbone", "tunneling_config": {"hostname": authority},
            },
        });
        let tls = transport("UpstreamTlsContext", common_tls(svid));
        let config = json!({"static_resources": {
            "listeners": [listener("0.0.0.0", listen, json!({"filters": [proxy]}))],
            "clusters": [cluster("hbone", server.ipv4(), HBONE_PORT, Some(tls))],
        }});
        Self::start(pod, "client", &config, listen, 1)
    }

    /// In `pod`: terminates HBONE on 15008 for the application on `port`.
    ///
    /// # Errors
    /// Envoy is not installed, or does not start; carries the end of its log.
    pub fn server(pod: &Pod, svid: &Svid, port: u16) -> Result<Self> {
        let connect = json!({
            "match": {"connect_matcher": {}},
            "route": {"cluster": "application", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
        });
        let manager = json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "hbone", "codec_type": "HTTP2",
                "http2_protocol_options": {"allow_connect": true},
                "upgrade_configs": [{"upgrade_type": "CONNECT"}],
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [connect]}]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }],
            },
        });
        let mut tls = transport("DownstreamTlsContext", common_tls(svid));
        tls["typed_config"]["require_client_certificate"] = true.into();
        let chain = json!({"filters": [manager], "transport_socket": tls});
        let config = json!({"static_resources": {
            "listeners": [listener("0.0.0.0", HBONE_PORT, chain)],
            "clusters": [cluster("application", "127.0.0.1", port, None)],
        }});
        Self::start(pod, "server", &config, HBONE_PORT, 1)
    }

    fn start(pod: &Pod, role: &str, config: &Value, port: u16, concurrency: u16) -> Result<Self> {
        let concurrency = concurrency.to_string();
        let binary = binaries::tool("envoy")?;
        let file = pod.directory()?.join(format!("envoy-{role}.json"));
        fs::write(&file, serde_json::to_string_pretty(config)?)?;
        let argv = [
            binary.to_str().context("a path in UTF-8")?,
            "--config-path",
            file.to_str().context("a path in UTF-8")?,
            "--concurrency",
            &concurrency,
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ];
        let (mut process, cgroup) = pod.spawn_apart("envoy", &argv)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait::until("Envoy listens", STARTED_WITHIN, || {
            process.check_alive()?;
            netns::enter(&pod.place().netns, || TcpStream::connect(address))?.map(drop).map_err(Into::into)
        })?;
        Ok(Self { _process: process, cgroup })
    }
}

fn listener(address: &str, port: u16, chain: Value) -> Value {
    json!({"address": socket_address(address, port), "filter_chains": [chain]})
}

fn cluster(name: &str, address: &str, port: u16, tls: Option<Value>) -> Value {
    let endpoint = json!({"endpoint": {"address": socket_address(address, port)}});
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {"allow_connect": true}},
            },
        });
    }
    cluster
}

fn socket_address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn transport(context: &str, common: Value) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}"),
            "common_tls_context": common,
        },
    })
}

fn common_tls(svid: &Svid) -> Value {
    let inline = |text: &str| json!({"inline_string": text});
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": inline(&svid.chain), "private_key": inline(&svid.key)}],
        "validation_context": {"trusted_ca": inline(&svid.roots)},
    })
}

/// Contracts §1.
const HBONE_PORT: u16 = 15008;
/// Envoy reads 100 MB of itself first.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
