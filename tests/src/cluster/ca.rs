//! `signet-ca` on a cluster: replicas as processes of the control plane's machine, with the rights of its account in the
//! chart, and node tokens as the API server gives them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::network::CONTROL_IP;
use super::release::NAMESPACE;
use super::{Cluster, Helm};
use crate::process::{Process, stdout};
use crate::svid::{Authority, Svid};
use crate::token::AUDIENCE;
use crate::{binaries, wait};

/// Replicas of the CA. Dropping it ends them.
#[derive(Debug)]
pub struct Ca {
    replicas: Vec<Replica>,
    roots: PathBuf,
}

/// One of them.
#[derive(Debug)]
pub struct Replica {
    process: Mutex<Option<Process>>,
    config: PathBuf,
    log: PathBuf,
    port: u16,
}

impl Ca {
    /// Starts so many replicas at once, and waits until they are ready and their roots are published. `settings` are put
    /// over the configuration of each.
    ///
    /// # Errors
    /// One did not become ready; carries the end of its log.
    pub fn start(cluster: &Cluster, replicas: u16, settings: &Value) -> Result<Self> {
        let directory = cluster.layout.directory().join("signet-ca");
        fs::create_dir_all(&directory)?;
        cluster.kubectl().apply(&Helm::new(cluster)?.template(Some("ca-account.yaml"), &[])?)?;
        cluster.write_account_kubeconfig(NAMESPACE, "signet-ca", &directory.join("kubeconfig"))?;
        let replica = |index| Replica::prepare(cluster, FIRST_PORT + index * APART, settings);
        let replicas = (0..replicas).map(replica).collect::<Result<Vec<_>>>()?;
        replicas.iter().try_for_each(|replica| replica.launch(cluster))?;
        replicas.iter().try_for_each(|replica| replica.wait_ready(cluster))?;
        let roots = directory.join("roots.pem");
        fs::write(&roots, cluster.roots_in(NAMESPACE)?)?;
        Ok(Self { replicas, roots })
    }

    /// The replicas.
    #[must_use]
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// A file with its roots.
    #[must_use]
    pub fn roots(&self) -> &Path {
        &self.roots
    }
}

impl Replica {
    /// Writes its configuration; `port` is that of the CA API, two further are its pages. [`Ca::start`] must have made the
    /// account.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn prepare(cluster: &Cluster, port: u16, settings: &Value) -> Result<Self> {
        let directory = cluster.layout.directory().join("signet-ca");
        let mut config = json!({
            "trustDomain": "cluster.local",
            "listen": {"grpc": format!("{CONTROL_IP}:{port}"), "metrics": format!("0.0.0.0:{}", port + 2)},
            "root": {"secret": {"name": "signet-ca-root", "namespace": NAMESPACE}},
            "serving": {"names": [SERVER_NAME], "addresses": [CONTROL_IP]},
            "tokens": {
                "review": {}, "audience": AUDIENCE, "trustedNodeAccounts": [format!("{NAMESPACE}/{DAEMON}")],
            },
            "inventory": {"kubernetes": {}},
            "publish": {"configMap": ROOTS},
            "kubernetes": {"kubeconfig": directory.join("kubeconfig")},
        });
        let fields = config.as_object_mut().context("an object")?;
        fields.extend(settings.as_object().cloned().unwrap_or_default());
        let path = directory.join(format!("{port}.yaml"));
        fs::write(&path, config.to_string())?;
        let log = cluster.layout.log(&format!("signet-ca-{port}"));
        Ok(Self { process: Mutex::new(None), config: path, log, port })
    }

    /// Starts it, again where it has ended, and waits until it is ready.
    ///
    /// # Errors
    /// It did not become ready; carries the end of its log.
    pub fn start(&self, cluster: &Cluster) -> Result<()> {
        self.launch(cluster)?;
        self.wait_ready(cluster)
    }

    /// Starts it, and does not wait.
    ///
    /// # Errors
    /// It has not been built.
    pub fn launch(&self, cluster: &Cluster) -> Result<()> {
        let argv = [super::signet::text(&binaries::path("signet-ca")?)?, super::signet::text(&self.config)?];
        let process = Process::start(cluster.outside(&[&argv[0], "--config", &argv[1]])?, &self.log)?;
        *self.process.lock().expect("no holder panics") = Some(process);
        Ok(())
    }

    /// Waits until readiness says yes.
    ///
    /// # Errors
    /// It did not in time; carries the end of its log.
    pub fn wait_ready(&self, cluster: &Cluster) -> Result<()> {
        let ready = wait::until("signet-ca is ready", WITHIN, || self.page(cluster, "/healthz/ready"));
        ready.map(drop).with_context(|| fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop(&self) -> Result<()> {
        let process = self.process.lock().expect("no holder panics").take();
        let process = process.context("the replica does not run")?;
        process.stop(Signal::SIGTERM, WITHIN).map(drop)
    }

    /// Waits until it has ended by itself, with a line that has all of these parts.
    ///
    /// # Errors
    /// It runs on, or says something else.
    pub fn wait_for_end(&self, parts: &[&str]) -> Result<String> {
        let process = self.process.lock().expect("no holder panics").take();
        let mut process = process.context("the replica does not run")?;
        wait::until("signet-ca ends", WITHIN, || match process.check_alive() {
            Ok(()) => bail!("it runs"),
            Err(_) => Ok(()),
        })?;
        process.wait_for_line(parts, Duration::ZERO)
    }

    /// Waits until its log has a line with all of these parts.
    ///
    /// # Errors
    /// It has none in time.
    pub fn wait_for_log(&self, parts: &[&str]) -> Result<String> {
        wait::until(&format!("signet-ca says {parts:?}"), WITHIN, || {
            let log = self.log()?;
            let line = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            line.map(str::to_owned).context("no such line")
        })
    }

    /// What it has written.
    ///
    /// # Errors
    /// There is no log.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Its process id.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        let process = self.process.lock().expect("no holder panics");
        Ok(process.as_ref().context("the replica does not run")?.pid())
    }

    /// A page of it.
    ///
    /// # Errors
    /// It does not answer, or says no; carries what it says.
    pub fn page(&self, cluster: &Cluster, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.port + 2);
        let curl = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "5", &url];
        stdout(&cluster.outside(&curl)?.output()?)
    }

    /// A sample of its metrics, with its labels as they are written; 0 where there is none.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metric(&self, cluster: &Cluster, name: &str) -> Result<i64> {
        let page = self.page(cluster, "/metrics")?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(Ok(0), |value| value.parse().with_context(|| value.to_owned()))
    }

    /// Asks for an SVID as a node engine does, over a connection of its own.
    ///
    /// # Errors
    /// It refused; the text says why.
    pub fn svid(&self, cluster: &Cluster, token: &str, spiffe_id: &str) -> Result<Svid> {
        self.ask(cluster, cluster.roots_in(NAMESPACE)?, token, spiffe_id)
    }

    /// The same, with its roots from a file: the API server may be away.
    ///
    /// # Errors
    /// As [`Self::svid`].
    pub fn svid_with(&self, cluster: &Cluster, roots: &Path, token: &str, spiffe_id: &str) -> Result<Svid> {
        self.ask(cluster, fs::read_to_string(roots)?, token, spiffe_id)
    }

    fn ask(&self, cluster: &Cluster, roots: String, token: &str, spiffe_id: &str) -> Result<Svid> {
        let authority = Authority {
            netns: cluster.control.netns(),
            address: format!("https://{CONTROL_IP}:{}", self.port),
            server_name: SERVER_NAME.to_owned(),
            roots,
        };
        authority.svid(token, spiffe_id)
    }
}

impl Cluster {
    /// The roots that a namespace's ConfigMap has, once it is there.
    ///
    /// # Errors
    /// It is not there in time.
    pub fn roots_in(&self, namespace: &str) -> Result<String> {
        self.kubectl().wait(namespace, &format!("configmap/{ROOTS}"), "create", WITHIN)?;
        let map = self.kubectl().json(&["get", "configmap", ROOTS, "--namespace", namespace])?;
        map["data"]["root-cert.pem"].as_str().map(str::to_owned).context("it has no roots")
    }

    /// Makes the engines' namespace and their account, with its rights in the chart.
    ///
    /// # Errors
    /// The namespace exists, or the chart is wrong.
    pub fn add_engine_account(&self) -> Result<()> {
        self.kubectl().create_namespace(NAMESPACE)?;
        self.kubectl().apply(&Helm::new(self)?.template(Some("signetd-account.yaml"), &[])?)
    }

    /// Runs a pod of the engines' account on a node, which does nothing: node tokens are bound to it.
    ///
    /// # Errors
    /// It does not start.
    pub fn add_daemon_pod(&self, node: &str) -> Result<()> {
        let image = concat!("localhost/signet-workload:", env!("CARGO_PKG_VERSION"));
        let token = json!({"serviceAccountToken": {"audience": AUDIENCE, "path": "istio-token"}});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": daemon(node), "namespace": NAMESPACE},
            "spec": {
                "nodeName": node, "serviceAccountName": DAEMON, "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "c", "image": image, "command": ["sleep", "86400"],
                    "volumeMounts": [{"name": "tokens", "mountPath": "/var/run/secrets/tokens"}],
                }],
                "volumes": [{"name": "tokens", "projected": {"sources": [token]}}],
            },
        });
        self.kubectl().apply(&pod.to_string())?;
        self.kubectl().wait_ready(NAMESPACE, &daemon(node), WITHIN)
    }

    /// The token in the pod of [`Self::add_daemon_pod`], as the kubelet has put it there.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn projected_token(&self, node: &str) -> Result<String> {
        self.kubectl().exec(NAMESPACE, &daemon(node), &["cat", "/var/run/secrets/tokens/istio-token"])
    }

    /// A token bound to the pod of [`Self::add_daemon_pod`], for eight hours.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn node_token(&self, node: &str) -> Result<String> {
        let pod = daemon(node);
        self.token(DAEMON, &["--bound-object-kind=Pod", "--bound-object-name", &pod])
    }

    /// A token of an account of the engines' namespace, with the arguments of `kubectl create token`.
    ///
    /// # Errors
    /// The API server refused.
    pub fn token(&self, account: &str, arguments: &[&str]) -> Result<String> {
        let common = ["create", "token", account, "--namespace", NAMESPACE, "--duration=8h"];
        let audience: &[&str] = if arguments.iter().any(|argument| argument.starts_with("--audience")) {
            &[]
        } else {
            &AUDIENCES
        };
        let token = self.kubectl().run(&[&common[..], audience, arguments].concat())?;
        Ok(token.trim().to_owned())
    }
}

fn daemon(node: &str) -> String {
    format!("{DAEMON}-{node}")
}

/// The name in the CA's certificate.
pub const SERVER_NAME: &str = "signet-ca.signet-system.svc";
/// Where it publishes its roots.
pub const ROOTS: &str = "istio-ca-root-cert";
/// The account of node engines.
const DAEMON: &str = "signetd";
const AUDIENCES: [&str; 2] = ["--audience", AUDIENCE];
/// Of the CA API of the first replica.
const FIRST_PORT: u16 = 15012;
/// Between the ports of two replicas.
const APART: u16 = 100;
/// For a machine that is busy with a build.
const WITHIN: Duration = Duration::from_secs(90);
