//! The tiers as a Deployment and a Service each: ordinary manifests that know nothing of a mesh.

use serde_json::{Value, json};

/// One of them. It serves a page, and is a client too.
pub(super) struct Tier {
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    node: &'static str,
    pub(super) page: &'static str,
}

pub(super) const FRONTEND: Tier =
    Tier { namespace: "photo-ns", name: "photo-frontend", node: "n1", page: "the photo frontend\n" };
/// Its page is the payload.
pub(super) const BACKEND: Tier = Tier { namespace: "photo-ns", name: "photo-backend", node: "n2", page: "" };
pub(super) const DATASTORE: Tier =
    Tier { namespace: "datastore-ns", name: "datastore", node: "n1", page: "the datastore\n" };
/// Stays outside of the mesh.
pub(super) const STRANGER: Tier =
    Tier { namespace: "legacy-ns", name: "legacy", node: "n2", page: "legacy\n" };
pub(super) const ALL: [&Tier; 4] = [&FRONTEND, &BACKEND, &DATASTORE, &STRANGER];
/// The namespaces that join.
pub(super) const ENROLLED: [&str; 2] = ["photo-ns", "datastore-ns"];

impl Tier {
    pub(super) fn spiffe_id(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.name)
    }

    /// By the Service's name.
    pub(super) fn url(&self) -> String {
        format!("http://{}.{}/", self.name, self.namespace)
    }

    pub(super) fn deployment(&self) -> String {
        format!("deployment/{}", self.name)
    }

    /// Its objects, as documents of one file.
    pub(super) fn manifests(&self, page: &str) -> String {
        let objects = [self.account(), self.configuration(page), self.pods(), self.service()];
        objects.map(|object| object.to_string()).join("\n---\n")
    }

    fn metadata(&self) -> Value {
        json!({"name": self.name, "namespace": self.namespace, "labels": {"app": self.name}})
    }

    fn account(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": self.metadata()})
    }

    fn configuration(&self, page: &str) -> Value {
        let data = json!({"nginx.conf": NGINX, "index.html": page});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": self.metadata(), "data": data})
    }

    fn pods(&self) -> Value {
        let start = "mkdir -p /tmp/web/html && cp /etc/web/index.html /tmp/web/html && \
                     exec nginx -p /tmp/web -c /etc/web/nginx.conf -e stderr";
        let container = json!({
            "name": "web", "image": concat!("localhost/signet-workload:", env!("CARGO_PKG_VERSION")),
            "command": ["sh", "-c", start],
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1, "timeoutSeconds": 5},
            "volumeMounts": [{"name": "web", "mountPath": "/etc/web"}],
        });
        let pod = json!({
            "nodeSelector": {"kubernetes.io/hostname": self.node}, "serviceAccountName": self.name,
            "terminationGracePeriodSeconds": 0, "containers": [container],
            "volumes": [{"name": "web", "configMap": {"name": self.name}}],
        });
        let spec = json!({
            "selector": {"matchLabels": {"app": self.name}},
            "template": {"metadata": {"labels": {"app": self.name}}, "spec": pod},
        });
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": self.metadata(), "spec": spec})
    }

    fn service(&self) -> Value {
        let spec = json!({"selector": {"app": self.name}, "ports": [{"port": 80}]});
        json!({"apiVersion": "v1", "kind": "Service", "metadata": self.metadata(), "spec": spec})
    }
}

/// One process, which writes each request to its log: `<client address> <server address>:<port> <request>`.
const NGINX: &str = "daemon off;
master_process off;
pid /tmp/web/nginx.pid;
events {}
http {
    log_format addresses '$remote_addr $server_addr:$server_port $request';
    access_log /dev/stdout addresses;
    client_body_temp_path /tmp/web/body;
    proxy_temp_path /tmp/web/proxy;
    fastcgi_temp_path /tmp/web/fastcgi;
    uwsgi_temp_path /tmp/web/uwsgi;
    scgi_temp_path /tmp/web/scgi;
    server {
        listen 80;
        root /tmp/web/html;
    }
}
";
