//! The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and CoreDNS, in a network namespace
//! of their own, outside of pods.
//!
//! Its certificates and tokens are real; etcd, which only the API server's machine reaches, has none. Beside it runs one
//! process of ours, which carries a port of the real machine's loopback to the API server, so that kubectl and helm work
//! from any shell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::component::{Component, Spot};
use super::kubectl::Kubectl;
use super::layout::{CONTROL, Layout, NODES};
use super::network::{API_SERVICE_IP, CONTROL_IP, DNS_SERVICE_IP, POD_RANGES, SERVICE_RANGES};
use super::pki;
use crate::binaries;
use crate::netns::Netns;

/// The running control plane.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    components: Vec<Component>,
    kubectl: Kubectl,
    files: PathBuf,
    spot: Spot,
    netns: Netns,
}

impl ControlPlane {
    /// Starts it and waits until the API server is ready.
    pub(crate) fn start(layout: &Layout, netns: Netns) -> Result<Self> {
        let files = layout.directory().join(CONTROL);
        fs::create_dir_all(&files)?;
        let tokens = write_credentials(&files)?;
        let inside = vec![format!("--net={}", netns.path().display())];
        let spot = Spot { enter: inside, cgroup: layout.cgroup().join(CONTROL) };
        let start = |name: &str, argv| Component::launch(layout, &spot, name, argv);
        let etcd = start("etcd", etcd(&files))?;
        let api_server = start("kube-apiserver", api_server(&files)?)?;
        let forward = start_forward(layout, &netns)?;
        let port = port_of(&forward)?;
        write_kubeconfigs(layout, &files, &tokens, &port)?;
        let kubectl = Kubectl::new(&layout.kubeconfig())?;
        api_server.wait_for_line(&["Serving securely on"], READY_WITHIN)?;
        wait_ready(&api_server, &kubectl)?;
        kubectl.wait("default", "namespace/kube-system", "create", READY_WITHIN)?;
        kubectl.apply(&dns_manifests())?;
        let controllers = start("kube-controller-manager", controller_manager(&files)?)?;
        let scheduler = start("kube-scheduler", scheduler(&files)?)?;
        let dns = start("coredns", dns(&files)?)?;
        let components = vec![etcd, api_server, controllers, scheduler, dns, forward];
        Ok(Self { components, kubectl, files, spot, netns })
    }

    /// A command on its machine.
    pub(crate) fn command(&self, argv: &[&str]) -> Result<Command> {
        self.spot.command("login", argv)
    }

    /// Its processes.
    pub(crate) fn components(&self) -> &[Component] {
        &self.components
    }

    /// Where its processes start.
    pub(crate) fn spot(&self) -> &Spot {
        &self.spot
    }

    /// Its network namespace.
    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// kubectl as the administrator.
    pub(crate) fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The kubeconfig of a component, to be read on the node.
    pub(crate) fn kubeconfig(&self, component: &str) -> PathBuf {
        kubeconfig(&self.files, component)
    }

    /// The certificate of the cluster's authority.
    pub(crate) fn ca(&self) -> PathBuf {
        self.files.join("ca.crt")
    }
}

/// Waits until an API server that was started answers that it is ready.
pub(crate) fn wait_ready(api_server: &Component, kubectl: &Kubectl) -> Result<()> {
    let ready = || kubectl.run(&["get", "--raw", "/readyz"]);
    api_server.wait_until("is ready", READY_WITHIN, ready).map(drop)
}

fn write_credentials(files: &Path) -> Result<Vec<String>> {
    let names = [
        CONTROL_IP,
        API_SERVICE_IP,
        "127.0.0.1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    pki::write(files, &names)?;
    let users = USERS.map(|user| (user.name, user.group));
    pki::write_tokens(&files.join("tokens.csv"), &users)
}

fn write_kubeconfigs(layout: &Layout, files: &Path, tokens: &[String], port: &str) -> Result<()> {
    let ca = files.join("ca.crt");
    for (user, token) in USERS.iter().zip(tokens) {
        let server = format!("https://{CONTROL_IP}:6443");
        pki::write_kubeconfig(&kubeconfig(files, user.component), &server, &ca, token)?;
    }
    pki::write_kubeconfig(&layout.kubeconfig(), &format!("https://127.0.0.1:{port}"), &ca, &tokens[0])
}

fn kubeconfig(files: &Path, component: &str) -> PathBuf {
    files.join(format!("{component}.kubeconfig"))
}

fn start_forward(layout: &Layout, netns: &Netns) -> Result<Component> {
    let outside = Spot { enter: Vec::new(), cgroup: layout.cgroup().join(CONTROL) };
    let program = binaries::path("signet-cluster")?.display().to_string();
    let argv =
        vec![program, "forward".to_owned(), netns.path().display().to_string(), format!("{CONTROL_IP}:6443")];
    Component::launch(layout, &outside, "forward", argv)
}

fn port_of(forward: &Component) -> Result<String> {
    let line = forward.wait_for_line(&[super::forward::LISTENS], READY_WITHIN)?;
    line.rsplit_once(':').map(|(_, port)| port.to_owned()).context("the forwarder names no port")
}

fn etcd(files: &Path) -> Vec<String> {
    let data = files.join("etcd");
    words(&format!(
        "etcd --data-dir {} --listen-client-urls {ETCD} --advertise-client-urls {ETCD} \
         --listen-peer-urls http://127.0.0.1:2380 --log-level warn",
        data.display()
    ))
}

fn api_server(files: &Path) -> Result<Vec<String>> {
    let program = binaries::tool("kube-apiserver")?;
    let files = files.display();
    Ok(words(&format!(
        "{} --etcd-servers={ETCD} --bind-address={CONTROL_IP} --advertise-address={CONTROL_IP} --secure-port=6443 \
         --tls-cert-file={files}/apiserver.crt --tls-private-key-file={files}/apiserver.key \
         --client-ca-file={files}/ca.crt --token-auth-file={files}/tokens.csv \
         --kubelet-client-certificate={files}/kubelet-client.crt --kubelet-client-key={files}/kubelet-client.key \
         --kubelet-preferred-address-types=InternalIP --authorization-mode=Node,RBAC \
         --enable-admission-plugins=NodeRestriction --allow-privileged=true \
         --service-account-key-file={files}/service-account.pub \
         --service-account-signing-key-file={files}/service-account.key \
         --service-account-issuer=https://kubernetes.default.svc.cluster.local \
         --api-audiences=https://kubernetes.default.svc.cluster.local,istio-ca \
         --service-cluster-ip-range={SERVICE_RANGES}",
        program.display()
    )))
}

fn controller_manager(files: &Path) -> Result<Vec<String>> {
    let program = binaries::tool("kube-controller-manager")?;
    let config = kubeconfig(files, "kube-controller-manager");
    let files = files.display();
    // The nodes' pod ranges are fixed by the routes between them.
    Ok(words(&format!(
        "{} --kubeconfig={} --service-account-private-key-file={files}/service-account.key \
         --root-ca-file={files}/ca.crt --cluster-signing-cert-file={files}/ca.crt \
         --cluster-signing-key-file={files}/ca.key --use-service-account-credentials=true \
         --controllers=*,-node-ipam-controller --cluster-cidr={POD_RANGES} --bind-address=127.0.0.1 \
         --leader-elect=false",
        program.display(),
        config.display()
    )))
}

fn scheduler(files: &Path) -> Result<Vec<String>> {
    let program = binaries::tool("kube-scheduler")?;
    let config = kubeconfig(files, "kube-scheduler");
    Ok(words(&format!(
        "{} --kubeconfig={} --bind-address=127.0.0.1 --leader-elect=false",
        program.display(),
        config.display()
    )))
}

fn dns(files: &Path) -> Result<Vec<String>> {
    let program = binaries::tool("coredns")?;
    let corefile = files.join("Corefile");
    let config = kubeconfig(files, "coredns");
    let text = format!(
        ".:53 {{\n  bind {CONTROL_IP}\n  errors\n  kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {} signet\n    \
         pods insecure\n    ttl 5\n  }}\n}}\n",
        config.display()
    );
    fs::write(&corefile, text)?;
    Ok(words(&format!("{} -conf {}", program.display(), corefile.display())))
}

/// The Service by which pods find CoreDNS, which is no pod, and what CoreDNS may read.
fn dns_manifests() -> String {
    include_str!("dns.yaml").replace("DNS_SERVICE_IP", DNS_SERVICE_IP).replace("CONTROL_IP", CONTROL_IP)
}

/// A command line without quoting: the build folder's path must have no spaces, which CNI and etcd demand too.
pub(crate) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Who asks the API server.
struct User {
    component: &'static str,
    name: &'static str,
    group: &'static str,
}

/// The first is who started the cluster.
const USERS: [User; 7] = [
    User { component: "admin", name: "admin", group: "system:masters" },
    User { component: NODES[0], name: "system:node:n1", group: "system:nodes" },
    User { component: NODES[1], name: "system:node:n2", group: "system:nodes" },
    User { component: "kube-controller-manager", name: "system:kube-controller-manager", group: "" },
    User { component: "kube-scheduler", name: "system:kube-scheduler", group: "" },
    User { component: "kube-proxy", name: "system:kube-proxy", group: "" },
    User { component: "coredns", name: "system:coredns", group: "" },
];
const ETCD: &str = "http://127.0.0.1:2379";
/// For a machine that is busy with a build.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(120);
