//! Istio's control plane in the cluster: the real istiod, beside the API server and outside of pods, found by pods at the
//! Service `istiod.istio-system` as anywhere.
//!
//! Its CA trusts the node accounts of [`TRUSTED_NODE_ACCOUNTS`]. No webhook is registered and no sidecar injected.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};

use super::Cluster;
use super::component::Component;
use super::control::READY_WITHIN;
use super::network::CONTROL_IP;
use crate::svid::{Authority, Svid};
use crate::{binaries, http};

/// A running istiod; it ends with its cluster.
#[derive(Debug)]
pub struct Istiod<'a> {
    cluster: &'a Cluster,
    _component: Component,
    roots: String,
}

impl Cluster {
    /// Starts istiod, with Istio's own custom resource definitions, and waits until its CA signs.
    ///
    /// # Errors
    /// It was not built, or is not ready in time; carries the end of its log.
    pub fn start_istiod(&self) -> Result<Istiod<'_>> {
        let kubectl = self.kubectl();
        let definitions = fs::read_to_string(binaries::tool("istio-definitions.yaml")?)?;
        kubectl.apply(&definitions)?;
        kubectl.apply(&include_str!("istio.yaml").replace("CONTROL_IP", CONTROL_IP))?;
        let component = self.launch_istiod()?;
        let ready = SocketAddr::from((Ipv4Addr::LOCALHOST, READINESS_PORT));
        component
            .wait_until("is ready", READY_WITHIN, || http::get(self.control.netns(), ready, "/ready"))?;
        kubectl.wait("istio-system", &format!("configmap/{ROOTS}"), "create", READY_WITHIN)?;
        let roots = kubectl.json(&["get", "--namespace=istio-system", "configmap", ROOTS])?;
        let roots = roots["data"]["root-cert.pem"].as_str().context("istiod published no roots")?.to_owned();
        Ok(Istiod { cluster: self, _component: component, roots })
    }

    fn launch_istiod(&self) -> Result<Component> {
        let files = self.layout.directory().join("istiod");
        fs::create_dir_all(&files)?;
        let mesh = files.join("mesh.yaml");
        fs::write(&mesh, "trustDomain: cluster.local\n")?;
        let environment = [
            ("POD_NAMESPACE", "istio-system"),
            ("POD_NAME", "istiod-0"),
            ("REVISION", "default"),
            ("CLUSTER_ID", "Kubernetes"),
            ("PILOT_ENABLE_AMBIENT", "true"),
            ("PILOT_CERT_PROVIDER", "istiod"),
            ("JWT_POLICY", "third-party-jwt"),
            ("CA_TRUSTED_NODE_ACCOUNTS", TRUSTED_NODE_ACCOUNTS),
        ];
        let mut argv = vec!["env".to_owned(), "-C".to_owned(), files.display().to_string()];
        argv.extend(environment.map(|(name, value)| format!("{name}={value}")));
        argv.push(format!("ROOT_CA_DIR={}", files.display()));
        argv.extend([binaries::tool("pilot-discovery")?.display().to_string(), "discovery".to_owned()]);
        argv.push(format!("--kubeconfig={}", self.control.kubeconfig("admin").display()));
        argv.push(format!("--meshConfig={}", mesh.display()));
        Component::launch(&self.layout, self.control.spot(), "istiod", argv)
    }
}

impl Istiod<'_> {
    /// Its roots, in PEM, as it publishes them.
    #[must_use]
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// Asks its CA for an SVID, as a node engine does.
    ///
    /// # Errors
    /// It refused; the text says why.
    pub fn svid(&self, token: &str, spiffe_id: &str) -> Result<Svid> {
        let authority = Authority {
            netns: self.cluster.control.netns(),
            address: format!("https://{CONTROL_IP}:15012"),
            server_name: SERVER_NAME.to_owned(),
            roots: self.roots.clone(),
        };
        authority.svid(token, spiffe_id)
    }
}

/// Who may ask for the identities of others, if they have a pod on the asking node.
pub const TRUSTED_NODE_ACCOUNTS: &str = "signet-system/signetd,istio-system/ztunnel";
/// What its serving certificate is for.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";
const ROOTS: &str = "istio-ca-root-cert";
const READINESS_PORT: u16 = 8080;
