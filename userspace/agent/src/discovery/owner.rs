//! What a pod belongs to, as Istio's telemetry names it (istio/istio `pkg/kube/util.go`, `GetWorkloadMetaFromPod`).
//!
//! Only Deployments, CronJobs and Jobs have a name of their own there (`workload.proto`, `WorkloadType`); the pods of
//! all other controllers go by the pod's name.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::discovery::enrolment::Labels;

/// The controller's name, where the pod does not go by its own, and the key it has in baggage.
pub(crate) fn workload(metadata: &ObjectMeta) -> (Option<&str>, &'static str) {
    let controller = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let none = Labels::new();
    let labels = metadata.labels.as_ref().unwrap_or(&none);
    match controller.map(|owner| (owner.kind.as_str(), owner.name.as_str())) {
        Some(("Deployment", name)) => (Some(name), "deployment"),
        Some(("ReplicaSet", name)) => match deployment(name, labels) {
            Some(deployment) => (Some(deployment), "deployment"),
            None => (None, "pod"),
        },
        Some(("CronJob", name)) => (Some(name), "cronjob"),
        Some(("Job", name)) => match cron_job(name) {
            Some(cron_job) => (Some(cron_job), "cronjob"),
            None => (Some(name), "job"),
        },
        _ => (None, "pod"),
    }
}

/// `service.istio.io/canonical-name` and the labels that stand in for it.
pub(crate) fn canonical_name(labels: &Labels) -> Option<&str> {
    first(labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
}

/// `service.istio.io/canonical-revision` and what stands in for it.
pub(crate) fn canonical_revision(labels: &Labels) -> &str {
    first(labels, &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
        .unwrap_or("latest")
}

fn first<'a>(labels: &'a Labels, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| labels.get(*key)).map(String::as_str)
}

/// A Deployment's ReplicaSet is called `<deployment>-<pod-template-hash>`.
fn deployment<'a>(replica_set: &'a str, labels: &Labels) -> Option<&'a str> {
    let hash = labels.get("pod-template-hash").filter(|hash| !hash.is_empty())?;
    replica_set.strip_suffix(hash.as_str())?.strip_suffix('-').filter(|name| !name.is_empty())
}

/// A CronJob's Job is called `<cron job>-<scheduled time in minutes>`, 8 to 10 digits.
fn cron_job(job: &str) -> Option<&str> {
    let (name, minutes) = job.rsplit_once('-')?;
    let scheduled = (8..=10).contains(&minutes.len()) && minutes.bytes().all(|b| b.is_ascii_digit());
    (scheduled && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    fn owned(kind: &str, name: &str, labels: &[(&str, &str)]) -> (Option<String>, &'static str) {
        let owner = OwnerReference {
            kind: kind.into(),
            name: name.into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let metadata =
            ObjectMeta { owner_references: Some(vec![owner]), labels: Some(labels), ..ObjectMeta::default() };
        let (name, key) = workload(&metadata);
        (name.map(str::to_owned), key)
    }

    #[test]
    fn a_replica_set_stands_for_its_deployment() {
        let hash = [("pod-template-hash", "6d4b75cb6d")];
        assert_eq!(owned("ReplicaSet", "web-6d4b75cb6d", &hash), (Some("web".into()), "deployment"));
        assert_eq!(owned("ReplicaSet", "web", &[]), (None, "pod"));
        assert_eq!(owned("ReplicaSet", "6d4b75cb6d", &hash), (None, "pod"));
    }

    #[test]
    fn a_scheduled_job_stands_for_its_cron_job() {
        assert_eq!(owned("Job", "report-28123456", &[]), (Some("report".into()), "cronjob"));
        assert_eq!(owned("Job", "report-12", &[]), (Some("report-12".into()), "job"));
    }

    #[test]
    fn other_pods_go_by_their_own_name() {
        assert_eq!(owned("StatefulSet", "db", &[]), (None, "pod"));
        assert_eq!(workload(&ObjectMeta::default()), (None, "pod"));
    }

    #[test]
    fn canonical_names_follow_istios_order_of_labels() {
        let labels: Labels = [("app", "c"), ("app.kubernetes.io/name", "b"), ("version", "v2")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
        assert_eq!(canonical_name(&labels), Some("b"));
        assert_eq!(canonical_revision(&labels), "v2");
        assert_eq!((canonical_name(&Labels::new()), canonical_revision(&Labels::new())), (None, "latest"));
    }
}
