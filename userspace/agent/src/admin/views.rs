//! What the admin socket answers: the shapes, and how they are made from the sources.
//!
//! The JSON is an interface: fields are added, never renamed or removed. Keys are snake case, times are seconds since
//! 1970, and what is not known is `null`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::Sources;
use crate::addr::WorkloadUid;
use crate::kernel::Finding;
use crate::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::reconcile::{LocalStatus, Phase};
use crate::state::Workload;
use crate::svid::{CertificateView, Status};

/// `/v1/status`.
#[derive(Clone, Debug, Serialize)]
pub struct StatusView {
    /// The build's version.
    pub version: &'static str,
    /// Whose pins these are.
    pub instance: String,
    /// This node.
    pub node: String,
    /// The trust domain of workloads that name none.
    pub trust_domain: String,
    /// Since the start.
    pub uptime_seconds: u64,
    /// All conditions hold.
    #[serde(flatten)]
    pub readiness: ReadinessView,
    /// How much there is.
    pub counts: Counts,
}

/// `/healthz/ready`.
#[derive(Clone, Debug, Serialize)]
pub struct ReadinessView {
    /// All conditions hold.
    pub ready: bool,
    /// What must hold.
    pub conditions: Vec<Finding>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counts {
    /// In the mesh, on all nodes.
    pub workloads: usize,
    /// On this node.
    pub local_workloads: usize,
    /// On this node, enrolled and carried.
    pub captured: usize,
    /// On this node, enrolled and refused for now.
    pub waiting: usize,
    /// Services.
    pub services: usize,
    /// Policies of both kinds.
    pub policies: usize,
    /// SVIDs kept.
    pub certificates: usize,
    /// Live connections.
    pub connections: usize,
}

/// One line of `/v1/workloads`.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadView {
    /// Unique for its lifetime.
    pub uid: WorkloadUid,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Where it runs.
    pub node: Arc<str>,
    /// On this node.
    pub local: bool,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
    /// The SPIFFE ID it must present.
    pub identity: String,
    /// In the mesh.
    pub enrolled: bool,
    /// It shares the node's address.
    pub host_network: bool,
    /// How far this node is with it; `null` for workloads of other nodes.
    pub state: Option<&'static str>,
    /// Why the last step failed, or what is missing.
    pub error: Option<String>,
}

/// One line of `/v1/policies`.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyView {
    /// `AuthorizationPolicy` or `PeerAuthentication`.
    pub kind: &'static str,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `mesh`, `namespace` or `workload`.
    pub scope: &'static str,
    /// `spec.selector.matchLabels`.
    pub selector: BTreeMap<String, String>,
    /// `ALLOW`, `DENY`, or the mTLS mode.
    pub effect: String,
    /// Evaluated and logged, never enforced.
    pub dry_run: bool,
    /// What could not be kept, and how it fails safe.
    pub warnings: Vec<String>,
    /// The object, as understood.
    pub spec: serde_json::Value,
}

/// The engine as a whole.
pub(super) fn status(sources: &Sources) -> StatusView {
    let about = &sources.about;
    StatusView {
        version: env!("CARGO_PKG_VERSION"),
        instance: about.instance.clone(),
        node: about.node.clone(),
        trust_domain: about.trust_domain.clone(),
        uptime_seconds: about.started.elapsed().as_secs(),
        readiness: readiness(sources),
        counts: counts(sources),
    }
}

/// Whether pods may be started here. A workload that fails is its own trouble and does not make the node unready.
pub(super) fn readiness(sources: &Sources) -> ReadinessView {
    let mut conditions = vec![capture_condition(sources.statuses.attached())];
    // Cut off from its source a node goes on with what it knows: pods may still be started.
    conditions.extend(source_finding(sources).map(|finding| Finding { ok: true, ..finding }));
    conditions.extend(clock_finding(&(sources.certificates)()));
    ReadinessView { ready: conditions.iter().all(|condition| condition.ok), conditions }
}

/// Every workload of the mesh; this node's with how far they are.
pub(super) fn workloads(sources: &Sources) -> Vec<WorkloadView> {
    let local: BTreeMap<_, _> =
        sources.statuses.all().into_iter().map(|status| (status.workload.uid.clone(), status)).collect();
    let mut views: Vec<_> = sources
        .state
        .workloads()
        .iter()
        .map(|workload| workload_view(workload, local.get(&workload.uid)))
        .collect();
    views.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    views
}

/// Every policy that this node knows.
pub(super) fn policies(sources: &Sources) -> Vec<PolicyView> {
    let root = sources.about.root_namespace.as_str();
    let (authorizations, authentications) = sources.state.policies();
    let authorizations = authorizations.iter().map(|policy| authorization_view(policy, root));
    let authentications = authentications.iter().map(|policy| authentication_view(policy, root));
    let mut views: Vec<_> = authorizations.chain(authentications).collect();
    views.sort_by(|a, b| (&a.namespace, a.kind, &a.name).cmp(&(&b.namespace, b.kind, &b.name)));
    views
}

/// What the machine lacks, and what does not work right now.
pub(super) fn check(sources: &Sources) -> Vec<Finding> {
    let mut findings = (sources.preflight)();
    findings.push(capture_condition(sources.statuses.attached()));
    findings.extend(source_finding(sources));
    findings.extend((sources.probes)());
    findings.push(workload_finding(&sources.statuses.all()));
    findings.push(certificate_finding(sources));
    findings.push(policy_finding(&policies(sources)));
    findings
}

fn counts(sources: &Sources) -> Counts {
    let local = sources.statuses.all();
    let enrolled = || local.iter().filter(|status| status.phase != Phase::Bypassed);
    let captured = enrolled().filter(|status| status.phase == Phase::Captured).count();
    let (authorizations, authentications) = sources.state.policies();
    Counts {
        workloads: sources.state.workloads().len(),
        local_workloads: local.len(),
        captured,
        waiting: enrolled().count() - captured,
        services: sources.state.services().len(),
        policies: authorizations.len() + authentications.len(),
        certificates: (sources.certificates)().len(),
        connections: (sources.connections)().len(),
    }
}

fn capture_condition(attached: bool) -> Finding {
    let detail = if attached {
        "the source has told all it had, the programs are attached"
    } else {
        "waiting for the source's first pass: is `source` right, can it be read?"
    };
    finding("capture", attached, detail.into())
}

fn source_finding(sources: &Sources) -> Option<Finding> {
    let (ok, detail) = sources.source.as_ref()?.summary();
    Some(finding("source", ok, detail))
}

fn workload_view(workload: &Workload, local: Option<&LocalStatus>) -> WorkloadView {
    WorkloadView {
        uid: workload.uid.clone(),
        namespace: workload.namespace.clone(),
        name: workload.name.clone(),
        node: workload.node.clone(),
        local: local.is_some(),
        addresses: workload.addresses.to_vec(),
        identity: workload.identity.to_string(),
        enrolled: workload.enrolled,
        host_network: workload.host_network,
        state: local.map(|status| status.phase.name()),
        error: local.and_then(|status| failure(&status.phase).or_else(|| kept(workload, status))),
    }
}

fn failure(phase: &Phase) -> Option<String> {
    phase.missing().map(str::to_owned)
}

/// The manifest has lost its cgroup, and the engine has not.
fn kept(workload: &Workload, status: &LocalStatus) -> Option<String> {
    let cgroup = status.workload.cgroup.as_ref().filter(|_| workload.cgroup.is_none())?;
    Some(format!("its manifest names no cgroup any more: kept in {cgroup}; annotate it again, or remove it"))
}

fn authorization_view(policy: &AuthorizationPolicy, root: &str) -> PolicyView {
    PolicyView {
        kind: "AuthorizationPolicy",
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        scope: scope(&policy.namespace, &policy.selector, root),
        selector: policy.selector.clone(),
        effect: upper(&policy.action),
        dry_run: policy.dry_run,
        warnings: policy.warnings.clone(),
        spec: serde_json::to_value(policy).unwrap_or_default(),
    }
}

fn authentication_view(policy: &PeerAuthentication, root: &str) -> PolicyView {
    PolicyView {
        kind: "PeerAuthentication",
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        scope: scope(&policy.namespace, &policy.selector, root),
        selector: policy.selector.clone(),
        effect: upper(&policy.mode),
        dry_run: false,
        warnings: policy.warnings.clone(),
        spec: serde_json::to_value(policy).unwrap_or_default(),
    }
}

fn scope(namespace: &str, selector: &BTreeMap<String, String>, root: &str) -> &'static str {
    match (selector.is_empty(), namespace == root) {
        (false, _) => "workload",
        (true, true) => "mesh",
        (true, false) => "namespace",
    }
}

/// The word that serde writes for a unit variant.
fn upper<T: Serialize>(variant: &T) -> String {
    let value = serde_json::to_value(variant).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

fn workload_finding(local: &[LocalStatus]) -> Finding {
    let failed: Vec<String> = local
        .iter()
        .filter_map(|status| Some((status, failure(&status.phase)?)))
        .map(|(status, error)| format!("{}/{}: {error}", status.workload.namespace, status.workload.name))
        .collect();
    list_finding("workloads", failed, format!("{} on this node", local.len()))
}

fn certificate_finding(sources: &Sources) -> Finding {
    let certificates = (sources.certificates)();
    let broken: Vec<String> = certificates
        .iter()
        .filter(|certificate| !matches!(certificate.status, Status::Valid | Status::Pending))
        .map(|certificate| {
            let why = certificate.error.as_deref().unwrap_or("no reason known");
            format!("{} ({}): {why}", certificate.id, certificate.status)
        })
        .collect();
    list_finding("certificates", broken, format!("{} kept", certificates.len()))
}

/// Other than what a workload fails by, a clock that differs from the CA's is the node's trouble: no pod gets an SVID.
fn clock_finding(certificates: &[CertificateView]) -> Option<Finding> {
    let off = certificates.iter().find(|certificate| certificate.reason == Some("clock"))?;
    Some(finding("clock", false, off.error.clone().unwrap_or_default()))
}

fn policy_finding(policies: &[PolicyView]) -> Finding {
    let warnings: Vec<String> = policies
        .iter()
        .flat_map(|policy| policy.warnings.iter().map(move |warning| (policy, warning)))
        .map(|(policy, warning)| format!("{} {}/{}: {warning}", policy.kind, policy.namespace, policy.name))
        .collect();
    list_finding("policies", warnings, format!("{} known", policies.len()))
}

fn list_finding(name: &str, broken: Vec<String>, fine: String) -> Finding {
    let ok = broken.is_empty();
    finding(name, ok, if ok { fine } else { broken.join("; ") })
}

fn finding(name: &str, ok: bool, detail: String) -> Finding {
    Finding { name: name.into(), ok, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_policy_of_the_root_namespace_is_mesh_wide_unless_it_selects() {
        assert_eq!(scope("istio-system", &selector(&[]), "istio-system"), "mesh");
        assert_eq!(scope("istio-system", &selector(&[("app", "a")]), "istio-system"), "workload");
        assert_eq!(scope("default", &selector(&[]), "istio-system"), "namespace");
    }

    #[test]
    fn a_finding_with_broken_items_is_not_ok_and_lists_them() {
        let finding = list_finding("workloads", vec!["a/b: gone".into(), "a/c: late".into()], "2".into());
        assert!(!finding.ok);
        assert_eq!(finding.detail, "a/b: gone; a/c: late");
    }

    #[test]
    fn a_capture_that_waits_says_for_what() {
        assert!(capture_condition(false).detail.contains("source"));
        assert!(capture_condition(true).ok);
    }
}
