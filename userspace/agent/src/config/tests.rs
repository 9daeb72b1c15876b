//! The file as people write it, and every mistake in it, named by file and field.

use super::*;

const MINIMAL: &str = "
node: {name: n1}
source: {files: {directory: /etc/signet/manifests}}
ca: {istio: {address: 'https://10.0.0.1:15012', roots: /r.pem, token: /t}}
";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/etc/signetd.yaml"), text, None).map_err(|e| e.to_string())
}

#[test]
fn a_file_that_nodes_share_gets_its_name_from_the_command_line() {
    let shared = MINIMAL.replace("node: {name: n1}", "node: {zone: a}");
    let named = |text: &str| Config::parse(Path::new("/etc/signetd.yaml"), text, Some("n7"));
    let node = named(&shared).unwrap().node;
    assert_eq!((node.name.as_str(), node.zone.as_str()), ("n7", "a"));
    assert_eq!(named(&MINIMAL.replace("node: {name: n1}", "")).unwrap().node.name, "n7");
    assert!(parse(&shared).unwrap_err().starts_with("/etc/signetd.yaml: node: "));
    assert!(named(MINIMAL).unwrap_err().to_string().starts_with("/etc/signetd.yaml: node.name: "));
    assert!(named("- a").is_err());
}

#[test]
fn the_minimal_file_gets_the_documented_defaults() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.listen.metrics.port(), 15020);
    assert_eq!(config.capture.unknown_pods, UnknownPods::Pass);
    assert_eq!(config.pin_root(), Path::new("/sys/fs/bpf/signet/default"));
}

#[test]
fn every_mistake_is_named_by_file_and_field() {
    for (addition, field) in [
        ("captur: {}", "captur"),
        ("capture: {unknownPod: deny}", "capture.unknownPod"),
        ("capture: {unknownPods: maybe}", "capture.unknownPods"),
        ("capture: {podsRoot: /kubepods}", "capture.podsRoot"),
        ("timeouts: {connect: 0s}", "timeouts.connect"),
        ("timeouts: {connect: 10x}", "timeouts.connect"),
        ("timeouts: {connect: 10}", "timeouts.connect"),
        ("timeouts: {drain: 2days}", "timeouts.drain"),
        ("timeouts: {engine: 2days}", "timeouts.engine"),
        ("listen: {metrics: '15020'}", "listen.metrics"),
        ("mesh: {trustDomain: Foo Bar}", "mesh.trustDomain"),
        ("instance: a/b", "instance"),
    ] {
        let error = parse(&format!("{MINIMAL}{addition}\n")).unwrap_err();
        assert!(error.starts_with(&format!("/etc/signetd.yaml: {field}: ")), "{addition}: {error}");
    }
    let endless = MINIMAL.replace("token: /t", "token: /t, ttl: 0s");
    assert!(parse(&endless).unwrap_err().starts_with("/etc/signetd.yaml: ca.istio.ttl: "));
}

#[test]
fn what_is_no_yaml_is_said_to_be_none() {
    assert!(parse("node: [").unwrap_err().contains("/etc/signetd.yaml is no YAML: "));
}
