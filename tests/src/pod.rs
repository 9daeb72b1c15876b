//! Pods: a network namespace with a link to the node, a cgroup with a process in it, and the manifest that tells of both.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::manifests::Manifests;
use crate::netns::Netns;
use crate::node::Node;
use crate::process::{Place, Process, stdout};

/// How a pod says whether it is in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// `istio.io/dataplane-mode: ambient`.
    Ambient,
    /// `signet.dev/mode: enabled`.
    Signet,
    /// `istio.io/dataplane-mode: none`.
    OptOut,
    /// No label: its namespace decides.
    Inherit,
}

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    namespace: String,
    name: String,
    service_account: String,
    labels: BTreeMap<String, String>,
    enrolment: Enrolment,
    host_network: bool,
    addresses: Option<[String; 2]>,
}

impl PodSpec {
    /// An enrolled pod with a service account and an `app` label of its own name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            enrolment: Enrolment::Ambient,
            host_network: false,
            addresses: None,
        }
    }

    /// Under another service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        self.service_account = name.to_owned();
        self
    }

    /// With one more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Enrolled in another way, or not at all.
    #[must_use]
    pub fn enrolment(mut self, enrolment: Enrolment) -> Self {
        self.enrolment = enrolment;
        self
    }

    /// In the node's own network namespace, with the node's addresses.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// With the addresses of a pod that is gone.
    #[must_use]
    pub fn addresses(mut self, addresses: &[String; 2]) -> Self {
        self.addresses = Some(addresses.clone());
        self
    }
}

/// A running pod. Dropping it ends its processes, then removes its cgroup, its network namespace and its manifest.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    uid: String,
    node: String,
    place: Place,
    addresses: [String; 2],
    manifests: Manifests,
    /// No two processes share a log.
    spawned: AtomicU32,
    // In the order in which they end.
    cgroup: Cgroup,
    _pause: Process,
    netns: Option<Netns>,
}

impl Node {
    /// Starts a pod: network namespace, cgroup, first process, manifest, as a kubelet does.
    ///
    /// # Errors
    /// One of them could not be made.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let pod = self.pod_without_manifest(spec)?;
        pod.publish()?;
        Ok(pod)
    }

    /// As [`Node::pod`], for tests in which the manifest comes later; see [`Pod::publish`].
    ///
    /// # Errors
    /// Its namespace, cgroup or first process could not be made.
    pub fn pod_without_manifest(&self, spec: PodSpec) -> Result<Pod> {
        let uid = next_uid();
        let addresses = self.addresses_for(&spec);
        let netns = (!spec.host_network).then(|| self.link_pod(&uid, &addresses)).transpose()?;
        let cgroup = self.host().cgroup().child(format!("kubepods/pod{uid}"))?;
        let place = Place {
            netns: netns.as_ref().map_or_else(|| self.host().netns().path(), Netns::path),
            cgroup: cgroup.path().to_owned(),
        };
        let pause = place.spawn(&["sleep", "infinity"], &self.host().directory().join("pause.log"))?;
        let node = self.name().to_owned();
        let manifests = self.manifests().clone();
        let spawned = AtomicU32::new(0);
        Ok(Pod { spec, uid, node, place, addresses, manifests, spawned, cgroup, _pause: pause, netns })
    }

    fn addresses_for(&self, spec: &PodSpec) -> [String; 2] {
        let own = || self.next_addresses();
        match &spec.addresses {
            Some(addresses) => addresses.clone(),
            None if spec.host_network => [self.host().ipv4(), self.host().ipv6()],
            None => own(),
        }
    }

    /// A point-to-point link, as Calico makes it: a host route per pod on the node, one gateway for every pod.
    fn link_pod(&self, uid: &str, [ipv4, ipv6]: &[String; 2]) -> Result<Netns> {
        let host = self.host().netns();
        let short = uid.rsplit('-').next().unwrap_or(uid).trim_start_matches('0');
        let netns = Netns::add(&format!("{}-p{short}", host.name()))?;
        netns.ip(&format!(
            "link add eth0 type veth peer name p{short} netns {}\n\
             addr add {ipv4}/32 dev eth0\naddr add {ipv6}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add 169.254.1.1 dev eth0\nroute add default via 169.254.1.1 dev eth0",
            host.name()
        ))?;
        host.ip(&format!(
            "addr add 169.254.1.1/32 dev p{short}\naddr add fe80::1/64 dev p{short} nodad\nlink set p{short} up\n\
             route replace {ipv4}/32 dev p{short}\nroute replace {ipv6}/128 dev p{short}"
        ))?;
        netns.ip("route add default via fe80::1 dev eth0")?;
        Ok(netns)
    }
}

impl Pod {
    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// `metadata.namespace`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.spec.namespace
    }

    /// `metadata.uid`.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The SPIFFE ID it should get.
    #[must_use]
    pub fn spiffe_id(&self) -> String {
        let PodSpec { namespace, service_account, .. } = &self.spec;
        format!("spiffe://{}/ns/{namespace}/sa/{service_account}", crate::ca::TRUST_DOMAIN)
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> &str {
        &self.addresses[0]
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> &str {
        &self.addresses[1]
    }

    /// Both addresses, for a successor.
    #[must_use]
    pub fn addresses(&self) -> &[String; 2] {
        &self.addresses
    }

    /// `spec.nodeName`.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// A directory for its files; it goes with the testbed.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(&self) -> Result<PathBuf> {
        let directory = self.manifests.directory().with_file_name(&self.node).join("pods").join(&self.uid);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(directory)
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Where its processes run.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its network namespace; `None` for hostNetwork.
    #[must_use]
    pub fn netns(&self) -> Option<&Netns> {
        self.netns.as_ref()
    }

    /// Runs a command inside, to its end.
    ///
    /// # Errors
    /// It could not be started or did not end.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.place.exec(argv)
    }

    /// Runs a command inside and returns what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        stdout(&self.exec(argv)?).with_context(|| format!("in {}: {}", self.name(), argv.join(" ")))
    }

    /// Starts a command inside and keeps it running; `name` begins its log's name.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> Result<Process> {
        let count = self.spawned.fetch_add(1, Ordering::Relaxed);
        self.place.spawn(argv, &self.directory()?.join(format!("{name}-{count}.log")))
    }

    /// As [`Pod::spawn`], in a cgroup of its own below the pod's, as a container has: what it uses can be told from the rest.
    ///
    /// # Errors
    /// The cgroup could not be made, or the command not be started.
    pub fn spawn_apart(&self, name: &str, argv: &[&str]) -> Result<(Process, PathBuf)> {
        let count = self.spawned.fetch_add(1, Ordering::Relaxed);
        // The pod's guard removes it too.
        let cgroup = self.cgroup.child(format!("{name}-{count}")).map(std::mem::ManuallyDrop::new)?;
        let place = Place { cgroup: cgroup.path().to_owned(), ..self.place.clone() };
        let process = place.spawn(argv, &self.directory()?.join(format!("{name}-{count}.log")))?;
        Ok((process, place.cgroup))
    }

    /// Writes its manifest.
    ///
    /// # Errors
    /// The directory is gone.
    pub fn publish(&self) -> Result<()> {
        self.manifests.put(&self.manifest_name(), &self.manifest()?.to_string())
    }

    /// Enrols or un-enrols it while it runs.
    ///
    /// # Errors
    /// The manifest cannot be written.
    pub fn enrol(&mut self, enrolment: Enrolment) -> Result<()> {
        self.spec.enrolment = enrolment;
        self.publish()
    }

    /// Gives it one more label while it runs.
    ///
    /// # Errors
    /// The manifest cannot be written.
    pub fn label(&mut self, key: &str, value: &str) -> Result<()> {
        self.spec.labels.insert(key.to_owned(), value.to_owned());
        self.publish()
    }

    /// Its labels say that it is in the mesh.
    #[must_use]
    pub fn is_enrolled(&self) -> bool {
        matches!(self.spec.enrolment, Enrolment::Ambient | Enrolment::Signet)
    }

    fn manifest_name(&self) -> String {
        format!("pod-{}-{}-{}", self.spec.namespace, self.spec.name, self.uid)
    }

    fn manifest(&self) -> Result<Value> {
        let spec = &self.spec;
        let mut labels = spec.labels.clone();
        labels.extend(enrolment_label(spec.enrolment).map(|(k, v)| (k.to_owned(), v.to_owned())));
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": spec.name, "namespace": spec.namespace, "uid": self.uid, "labels": labels,
                "annotations": {"signet.dev/cgroup": self.cgroup.relative()?},
            },
            "spec": {
                "nodeName": self.node, "serviceAccountName": spec.service_account,
                "hostNetwork": spec.host_network, "containers": [{"name": "app"}],
            },
            "status": {
                "phase": "Running", "podIP": self.addresses[0],
                "podIPs": self.addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The directory may be gone with its testbed; a pod that dies is gone from the kernel before the API server knows.
        let _ = crate::cgroup::remove(self.cgroup.path());
        let _ = self.manifests.remove(&self.manifest_name());
    }
}

fn enrolment_label(enrolment: Enrolment) -> Option<(&'static str, &'static str)> {
    match enrolment {
        Enrolment::Ambient => Some(("istio.io/dataplane-mode", "ambient")),
        Enrolment::Signet => Some(("signet.dev/mode", "enabled")),
        Enrolment::OptOut => Some(("istio.io/dataplane-mode", "none")),
        Enrolment::Inherit => None,
    }
}

/// Shaped like a UUID, unique in this process; its tail is the counter, which names links and namespaces.
fn next_uid() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-5109-4000-8000-{counter:012x}", std::process::id())
}
