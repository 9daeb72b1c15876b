//! Files that are right, and every mistake by its name.

use super::*;

const MINIMAL: &str = "
trustDomain: cluster.local
root: {directory: /var/lib/signet-ca}
serving: {names: [signet-ca], addresses: [10.0.0.1]}
tokens: {jwks: /j.json, issuer: https://signet.test, audience: istio-ca, trustedNodeAccounts: [signet-system/signetd]}
inventory: {files: {directory: /m}}
";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/etc/ca.yaml"), text).map_err(|e| e.to_string())
}

#[test]
fn the_minimal_file_gets_the_documented_defaults() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!((config.listen.grpc.port(), config.listen.metrics.port()), (15012, 15014));
    assert_eq!(config.svid.ttl, Duration::from_secs(86_400));
    assert!(matches!(config.root, Root::Directory(path) if path == Path::new("/var/lib/signet-ca")));
}

#[test]
fn a_plugged_root_names_its_three_files() {
    let text = MINIMAL.replace("{directory: /var/lib/signet-ca}", "{plugged: {chain: c, key: k, root: r}}");
    assert!(matches!(parse(&text).unwrap().root, Root::Plugged { .. }));
}

#[test]
fn every_mistake_is_named_by_file_and_field() {
    for (from, to, field) in [
        ("trustDomain: cluster.local", "trustDomain: a/b", "trustDomain"),
        ("trustDomain: cluster.local\n", "", "."),
        ("{names: [signet-ca], addresses: [10.0.0.1]}", "{names: ['a b']}", "serving.names"),
        ("{names: [signet-ca], addresses: [10.0.0.1]}", "{}", "serving"),
        ("audience: istio-ca", "audiences: istio-ca", "tokens.audiences"),
        ("[signet-system/signetd]", "[signetd]", "tokens.trustedNodeAccounts"),
        ("[signet-system/signetd]", "[]", "tokens.trustedNodeAccounts"),
        ("inventory:", "svid: {ttl: 1y, maxTtl: 24h}\ninventory:", "svid"),
        ("inventory:", "svid: {ttl: soon}\ninventory:", "svid.ttl"),
        ("inventory:", "listen: {grpc: '15012'}\ninventory:", "listen.grpc"),
    ] {
        let error = parse(&MINIMAL.replace(from, to)).unwrap_err();
        assert!(error.starts_with(&format!("/etc/ca.yaml: {field}: ")), "{to}: {error}");
    }
}

#[test]
fn a_file_for_a_cluster_says_what_it_needs_the_api_server_for() {
    let text = "
trustDomain: cluster.local
root: {secret: {name: signet-ca-root}}
serving: {names: [signet-ca.signet-system.svc], ttl: 4s}
tokens: {review: {}, audience: istio-ca, trustedNodeAccounts: [signet-system/signetd]}
inventory: {kubernetes: {}}
publish: {configMap: istio-ca-root-cert}
kubernetes: {kubeconfig: /k}
";
    let config = parse(text).unwrap();
    assert!(matches!(config.tokens.witness, Witness::Review) && config.uses_kubernetes());
    assert!(matches!(&config.root, Root::Secret { name, namespace: None } if name == "signet-ca-root"));
    assert_eq!(config.serving.ttl, Duration::from_secs(4));
    assert!(!parse(MINIMAL).unwrap().uses_kubernetes());
}
