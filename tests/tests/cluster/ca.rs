//! `signet-ca` on a real API server: tokens as kubelets mount them and as an attacker would have them, pods as they are
//! bound, the root's Secret, the published roots. Its bad days are in `ca_outages`.

use anyhow::{Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use signet_testkit::cluster::ca::{ROOTS, Replica};
use signet_testkit::cluster::release::NAMESPACE;
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::issuing::{self, Issuing, pod};
use crate::shared::WITHIN;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    the_token_that_a_kubelet_mounts_gets_the_identities_of_its_own_node_only,
    a_token_that_is_forged_or_of_something_else_gets_nothing,
    a_pod_that_was_made_a_moment_ago_gets_its_identity_at_once,
    the_roots_are_in_every_namespace_and_put_back,
    replicas_that_race_for_the_root_have_one,
    a_secret_that_is_not_whole_is_named_and_left_as_it_is,
    a_secret_that_is_deleted_is_put_back_with_the_same_root,
    serving_certificates_of_both_replicas_are_renewed_under_the_same_root,
);

fn the_token_that_a_kubelet_mounts_gets_the_identities_of_its_own_node_only() -> Result<()> {
    let issuing = issuing::together()?;
    issuing.with_pod("on-one", "n1")?;
    issuing.with_pod("on-two", "n2")?;
    let (one, two) = (issuing.cluster.projected_token("n1")?, issuing.cluster.projected_token("n2")?);
    issuing.signs(&one, "on-one")?;
    issuing.signs(&two, "on-two")?;
    issuing.refuses(&one, "on-two", "identity_not_on_node")?;
    issuing.refuses(&two, "on-one", "identity_not_on_node")?;
    issuing.kubectl().run(&["delete", "pod", "workload", "--namespace=on-one", "--wait"])?;
    // The watch tells of the end a moment later.
    wait::until("a pod that is gone gives its node nothing", WITHIN, || {
        issuing.refuses(&one, "on-one", "identity_not_on_node")
    })
}

fn a_token_that_is_forged_or_of_something_else_gets_nothing() -> Result<()> {
    let issuing = issuing::together()?;
    let cluster = &issuing.cluster;
    issuing.with_pod("asked", "n1")?;
    let good = cluster.node_token("n1")?;
    issuing.signs(&good, "asked")?;
    let of_pod = ["--bound-object-kind=Pod", "--bound-object-name=signetd-n1"];
    issuing.refuses(&with_other_node(&good)?, "asked", "token_rejected")?;
    let elsewhere = [&of_pod[..], &["--audience=vault"]].concat();
    issuing.refuses(&cluster.token("signetd", &elsewhere)?, "asked", "token_rejected")?;
    issuing.refuses(&cluster.token("signetd", &[])?, "asked", "token_unbound")?;
    issuing.refuses(&cluster.token("default", &[])?, "asked", "token_account")?;
    let of_node = ["--bound-object-kind=Node", "--bound-object-name=n1"];
    issuing.refuses(&cluster.token("signetd", &of_node)?, "asked", "token_unbound")?;
    // A token ends with the pod that it is bound to, remembered or not.
    let mut short: Value = serde_json::from_str(&pod(NAMESPACE, "n1"))?;
    short["metadata"]["name"] = json!("short-lived");
    short["spec"]["serviceAccountName"] = json!("signetd");
    issuing.kubectl().apply(&short.to_string())?;
    issuing.kubectl().wait_ready(NAMESPACE, "short-lived", WITHIN)?;
    let token = ["--bound-object-kind=Pod", "--bound-object-name=short-lived"];
    let token = cluster.token("signetd", &token)?;
    issuing.signs(&token, "asked")?;
    issuing.kubectl().run(&["delete", "pod", "short-lived", "--namespace", NAMESPACE, "--wait"])?;
    wait::until("the token has ended with its pod", WITHIN, || {
        issuing.refuses(&token, "asked", "token_rejected")
    })
}

/// The claims name another node; the signature is that of the token as it was.
fn with_other_node(token: &str) -> Result<String> {
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else { bail!("no JWT") };
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(claims)?)?;
    let forged = claims.replace("\"name\":\"n1\"", "\"name\":\"n2\"");
    ensure!(forged != claims, "the token names no node: {claims}");
    Ok(format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(forged)))
}

/// Bound a moment before, without a container yet: the first request must not be refused.
fn a_pod_that_was_made_a_moment_ago_gets_its_identity_at_once() -> Result<()> {
    let issuing = issuing::together()?;
    let token = issuing.cluster.node_token("n1")?;
    for round in 0..ROUNDS {
        let namespace = format!("fresh-{round}");
        issuing.with_pod(&namespace, "n1")?;
        issuing.signs(&token, &namespace)?;
    }
    Ok(())
}

fn the_roots_are_in_every_namespace_and_put_back() -> Result<()> {
    let issuing = issuing::together()?;
    let (cluster, kubectl) = (&issuing.cluster, issuing.kubectl());
    let roots = cluster.roots_in(NAMESPACE)?;
    ensure!(cluster.roots_in("kube-system")? == roots, "kube-system has other roots");
    kubectl.create_namespace("newcomer")?;
    ensure!(cluster.roots_in("newcomer")? == roots, "a new namespace has other roots");
    let holds = |what: &str| {
        wait::until(what, WITHIN, || {
            ensure!(cluster.roots_in("newcomer")? == roots, "other roots");
            Ok(())
        })
    };
    let patch = |patch: Value| {
        let patch = patch.to_string();
        kubectl.run(&["patch", "configmap", ROOTS, "--namespace=newcomer", "--type=merge", "--patch", &patch])
    };
    patch(json!({"data": {"root-cert.pem": "mine", "other": "kept"}}))?;
    holds("an edit is put back")?;
    let map = kubectl.json(&["get", "configmap", ROOTS, "--namespace=newcomer"])?;
    ensure!(map["data"]["other"] == "kept", "what is not ours was changed: {map}");
    kubectl.run(&["delete", "configmap", ROOTS, "--namespace=newcomer"])?;
    holds("a deleted one is made again")?;
    // Istio's control plane: told of, and left alone.
    patch(
        json!({"metadata": {"labels": {"istio.io/config": "true"}}, "data": {"root-cert.pem": "istio's"}}),
    )?;
    for replica in issuing.signet.ca().replicas() {
        replica.wait_for_log(&["not published", "newcomer"])?;
        ensure!(replica.metric(cluster, "signet_ca_namespaces_unpublished")? == 1, "it is not counted");
    }
    ensure!(cluster.roots_in("newcomer")? == "istio's", "Istio's was overwritten");
    patch(json!({"metadata": {"labels": {"istio.io/config": null}}}))?;
    holds("without Istio's label it is put back")
}

/// Rights on Secrets of every name, in a namespace of the test's own.
fn namespace_of_roots(issuing: &Issuing, name: &str) -> Result<()> {
    let kubectl = issuing.kubectl();
    kubectl.create_namespace(name)?;
    let here = format!("--namespace={name}");
    kubectl.run(&["create", "role", "roots", "--verb=get,create", "--resource=secrets", &here])?;
    let account = format!("--serviceaccount={NAMESPACE}:signet-ca");
    kubectl.run(&["create", "rolebinding", "roots", "--role=roots", &account, &here]).map(drop)
}

fn rooted_in(namespace: &str, name: &str) -> Value {
    json!({"root": {"secret": {"name": name, "namespace": namespace}}, "publish": null})
}

fn replicas_that_race_for_the_root_have_one() -> Result<()> {
    let issuing = issuing::together()?;
    namespace_of_roots(&issuing, "race")?;
    for round in 0..ROUNDS {
        let settings = rooted_in("race", &format!("root-{round}"));
        let prepare = |port| Replica::prepare(&issuing.cluster, port, &settings);
        let replicas = [prepare(15412)?, prepare(15512)?];
        replicas.iter().try_for_each(|replica| replica.launch(&issuing.cluster))?;
        replicas.iter().try_for_each(|replica| replica.wait_ready(&issuing.cluster))?;
        let secret = format!("root-{round}");
        let secret = issuing.kubectl().json(&["get", "secret", &secret, "--namespace=race"])?;
        ensure!(secret["immutable"] == true, "it can be changed: {secret}");
        // Either has read the Secret that there is, and goes on only with what it holds.
        for replica in &replicas {
            ensure!(replica.metric(&issuing.cluster, "signet_ca_root_stored")? == 1, "{}", replica.log()?);
        }
        let logs = [replicas[0].log()?, replicas[1].log()?].concat();
        let made = logs.matches(&format!("root generated secret=race/root-{round}")).count();
        ensure!(made == 1, "{made} replicas have made a root:\n{logs}");
    }
    Ok(())
}

fn a_secret_that_is_not_whole_is_named_and_left_as_it_is() -> Result<()> {
    let issuing = issuing::together()?;
    namespace_of_roots(&issuing, "damage")?;
    let kubectl = issuing.kubectl();
    kubectl.run(&[
        "create",
        "secret",
        "generic",
        "half",
        "--from-literal=root-cert.pem=x",
        "--namespace=damage",
    ])?;
    let version = || {
        kubectl.run(&[
            "get",
            "secret",
            "half",
            "--namespace=damage",
            "--output=jsonpath={.metadata.resourceVersion}",
        ])
    };
    let before = version()?;
    let replica = Replica::prepare(&issuing.cluster, 15612, &rooted_in("damage", "half"))?;
    replica.launch(&issuing.cluster)?;
    replica.wait_for_end(&["root-cert.pem in Secret damage/half", "no CERTIFICATE section"])?;
    ensure!(version()? == before, "it was written to");
    Ok(())
}

fn a_secret_that_is_deleted_is_put_back_with_the_same_root() -> Result<()> {
    let issuing = issuing::together()?;
    let (cluster, kubectl) = (&issuing.cluster, issuing.kubectl());
    namespace_of_roots(&issuing, "deleted")?;
    let replica = |port| Replica::prepare(cluster, port, &rooted_in("deleted", "root"));
    let first = replica(15712)?;
    first.start(cluster)?;
    let root = || Ok(kubectl.json(&["get", "secret", "root", "--namespace=deleted"])?["data"].clone());
    let made: Value = root()?;
    kubectl.run(&["delete", "secret", "root", "--namespace=deleted"])?;
    let put_back = wait::until("the Secret is back", WITHIN, root)?;
    ensure!(put_back == made, "it is another root");
    first.wait_for_log(&["deleted/root", "is put back"])?;
    let second = replica(15812)?;
    second.start(cluster)?;
    ensure!(!second.log()?.contains("root generated"), "a replica that starts has a root of its own");
    ensure!(first.metric(cluster, "signet_ca_root_stored")? == 1, "{}", first.log()?);
    Ok(())
}

fn serving_certificates_of_both_replicas_are_renewed_under_the_same_root() -> Result<()> {
    let issuing = issuing::together()?;
    let cluster = &issuing.cluster;
    issuing.with_pod("renewal", "n1")?;
    let token = cluster.node_token("n1")?;
    for replica in issuing.signet.ca().replicas() {
        let expiry = || replica.metric(cluster, "signet_ca_serving_expiry_timestamp_seconds");
        let (first, pid) = (expiry()?, replica.pid()?);
        // Longer than one lives: what is served then is not what was served before.
        wait::until("two more certificates", WITHIN, || {
            ensure!(expiry()? > first + 6, "not yet");
            Ok(())
        })?;
        replica.svid(cluster, &token, "spiffe://cluster.local/ns/renewal/sa/default")?;
        ensure!(replica.pid()? == pid, "it was restarted");
    }
    Ok(())
}

/// Of what happens by chance.
const ROUNDS: u32 = 5;
