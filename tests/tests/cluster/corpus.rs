//! Objects of Istio's kinds, legal and not: what its documentation shows, in words of our own, and one mistake each.

use serde_json::{Value, json};

/// One of them.
pub(crate) struct Object {
    /// Says what it is about.
    pub(crate) name: String,
    /// The API server has nothing against it.
    pub(crate) is_legal: bool,
    pub(crate) manifest: Value,
}

/// All of them, of groups with this prefix.
pub(crate) fn objects(prefix: &str) -> Vec<Object> {
    let kinds: [(&str, &str, &[&str], Vec<Case>); 4] = [
        ("security.istio.io", "PeerAuthentication", &["v1", "v1beta1"], peer_authentications()),
        ("security.istio.io", "AuthorizationPolicy", &["v1", "v1beta1"], authorization_policies()),
        ("security.istio.io", "RequestAuthentication", &["v1", "v1beta1"], request_authentications()),
        ("networking.istio.io", "WorkloadEntry", &["v1", "v1beta1", "v1alpha3"], workload_entries()),
    ];
    let mut objects = Vec::new();
    for (group, kind, versions, cases) in kinds {
        for (index, (about, is_legal, spec)) in cases.into_iter().enumerate() {
            let version = versions[index % versions.len()];
            let name = format!("{}-{}", kind.to_lowercase(), about.replace(' ', "-"));
            let manifest = json!({
                "apiVersion": format!("{prefix}{group}/{version}"), "kind": kind,
                "metadata": {"name": name, "namespace": "default"}, "spec": spec,
            });
            objects.push(Object { name, is_legal, manifest });
        }
    }
    objects
}

/// What it is about, whether it is legal, its spec.
type Case = (&'static str, bool, Value);

fn peer_authentications() -> Vec<Case> {
    let selector = json!({"matchLabels": {"app": "bank"}});
    vec![
        ("strict", true, json!({"mtls": {"mode": "STRICT"}})),
        ("as above", true, json!({"mtls": {"mode": "UNSET"}})),
        ("nothing", true, json!({})),
        ("of some", true, json!({"selector": selector, "mtls": {"mode": "DISABLE"}})),
        ("one port", true, json!({"selector": selector, "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}})),
        ("ports of all", false, json!({"portLevelMtls": {"8080": {"mode": "DISABLE"}}})),
        (
            "ports of an empty selector",
            false,
            json!({"selector": {"matchLabels": {}}, "portLevelMtls": {"80": {}}}),
        ),
        ("no ports", false, json!({"selector": selector, "portLevelMtls": {}})),
        ("port zero", false, json!({"selector": selector, "portLevelMtls": {"0": {}}})),
        ("a named port", false, json!({"selector": selector, "portLevelMtls": {"http": {}}})),
        ("unknown mode", false, json!({"mtls": {"mode": "MUTUAL"}})),
        ("lower case", false, json!({"mtls": {"mode": "strict"}})),
        ("misspelt", false, json!({"mtsl": {"mode": "STRICT"}})),
        ("wildcard label", false, json!({"selector": {"matchLabels": {"app": "ba*"}}})),
        ("wildcard name", false, json!({"selector": {"matchLabels": {"a*": "bank"}}})),
        ("label without a name", false, json!({"selector": {"matchLabels": {"": "bank"}}})),
    ]
}

fn authorization_policies() -> Vec<Case> {
    let from = |source: Value| json!({"rules": [{"from": [{"source": source}]}]});
    let to = |operation: Value| json!({"action": "DENY", "rules": [{"to": [{"operation": operation}]}]});
    let gateway = json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "front"});
    vec![
        ("nobody", true, json!({})),
        ("everybody", true, json!({"rules": [{}]})),
        ("principals", true, from(json!({"principals": ["cluster.local/ns/shop/sa/web", "*"]}))),
        ("not namespaces", true, from(json!({"notNamespaces": ["dev", "test-*"]}))),
        ("accounts", true, from(json!({"serviceAccounts": ["web", "shop/web"], "ipBlocks": ["10.0.0.0/8"]}))),
        (
            "trust domains",
            true,
            from(json!({"trustDomains": ["a.example"], "notTrustDomains": ["b.example"]})),
        ),
        (
            "remote blocks",
            true,
            from(json!({"remoteIpBlocks": ["2001:db8::/32"], "notRemoteIpBlocks": ["::1"]})),
        ),
        ("requests", true, from(json!({"requestPrincipals": ["issuer/*"], "notRequestPrincipals": ["x"]}))),
        ("ports", true, to(json!({"ports": ["80", "8443"], "notPorts": ["9090"]}))),
        (
            "http",
            true,
            to(json!({"hosts": ["*.example"], "methods": ["GET"], "paths": ["/a*"], "notPaths": ["/b"]})),
        ),
        (
            "when",
            true,
            json!({"rules": [{"when": [{"key": "source.ip", "values": ["10.1.2.3"]}, {"key": "x", "notValues": ["y"]}]}]}),
        ),
        (
            "of some",
            true,
            json!({"selector": {"matchLabels": {"app": "web", "tier": "1"}}, "action": "ALLOW"}),
        ),
        ("custom", true, json!({"action": "CUSTOM", "provider": {"name": "oracle"}, "rules": [{}]})),
        ("audit", true, json!({"action": "AUDIT", "rules": [{}]})),
        ("of a gateway", true, json!({"targetRefs": [gateway], "rules": [{}]})),
        ("of one gateway", true, json!({"targetRef": gateway})),
        ("of both", false, json!({"targetRefs": [gateway], "selector": {"matchLabels": {"app": "web"}}})),
        (
            "of another namespace",
            false,
            json!({"targetRefs": [{"kind": "Service", "name": "a", "namespace": "b"}]}),
        ),
        ("of nothing", false, json!({"targetRefs": [{"group": "a"}]})),
        ("of no group", false, json!({"targetRef": {"kind": "Gateway", "name": "a", "group": "A_b"}})),
        ("of no kind", false, json!({"targetRef": {"kind": "4", "name": "a"}})),
        ("unknown action", false, json!({"action": "REFUSE"})),
        ("accounts and principals", false, from(json!({"serviceAccounts": ["web"], "principals": ["*"]}))),
        (
            "not accounts and namespaces",
            false,
            from(json!({"notServiceAccounts": ["web"], "namespaces": ["shop"]})),
        ),
        ("long account", false, from(json!({"serviceAccounts": ["a".repeat(321)]}))),
        ("misspelt source", false, from(json!({"principal": ["*"]}))),
        ("misspelt operation", false, to(json!({"port": ["80"]}))),
        ("a number", false, to(json!({"ports": [80]}))),
        ("one for a list", false, from(json!({"principals": "*"}))),
        ("when without a key", false, json!({"rules": [{"when": [{"values": ["a"]}]}]})),
        ("wildcard label", false, json!({"selector": {"matchLabels": {"app": "*"}}})),
    ]
}

fn request_authentications() -> Vec<Case> {
    let jwt = |rule: Value| json!({"jwtRules": [rule]});
    vec![
        ("nothing", true, json!({})),
        (
            "an issuer",
            true,
            jwt(json!({"issuer": "me@example", "jwksUri": "https://example/keys", "audiences": ["a"]})),
        ),
        (
            "keys",
            true,
            jwt(
                json!({"jwks": "{\"keys\": []}", "issuer": "me", "timeout": "5s", "forwardOriginalToken": true}),
            ),
        ),
        (
            "headers",
            true,
            jwt(
                json!({"issuer": "me", "fromHeaders": [{"name": "x-jwt", "prefix": "Bearer "}], "fromCookies": ["c"]}),
            ),
        ),
        (
            "claims",
            true,
            jwt(json!({"issuer": "me", "outputClaimToHeaders": [{"header": "x-group", "claim": "group"}]})),
        ),
        ("without an issuer", true, jwt(json!({"jwks": "x"}))),
        (
            "two kinds of keys",
            false,
            jwt(json!({"issuer": "me", "jwks": "x", "jwksUri": "https://example/keys"})),
        ),
        ("keys by ftp", false, jwt(json!({"issuer": "me", "jwksUri": "ftp://example/keys"}))),
        ("no time", false, jwt(json!({"issuer": "me", "timeout": "0s"}))),
        (
            "a header that is none",
            false,
            jwt(json!({"issuer": "me", "outputClaimToHeaders": [{"header": "a b", "claim": "c"}]})),
        ),
        ("wildcard label", false, json!({"selector": {"matchLabels": {"app": "*"}}})),
    ]
}

fn workload_entries() -> Vec<Case> {
    vec![
        ("a machine", true, json!({"address": "192.0.2.7", "labels": {"app": "db"}, "serviceAccount": "db"})),
        ("a name", true, json!({"address": "db.example", "ports": {"sql": 5432}, "weight": 3})),
        ("elsewhere", true, json!({"network": "vpc-2", "locality": "eu/west/a"})),
        ("a socket", true, json!({"address": "unix:///run/db"})),
        ("an abstract socket", true, json!({"address": "unix://@db"})),
        ("nowhere", false, json!({"labels": {"app": "db"}})),
        ("a relative socket", false, json!({"address": "unix://run/db"})),
        ("a folder", false, json!({"address": "unix:///run/"})),
        ("a socket with ports", false, json!({"address": "unix:///run/db", "ports": {"sql": 5432}})),
        ("port zero", false, json!({"address": "192.0.2.7", "ports": {"sql": 0}})),
        ("port too large", false, json!({"address": "192.0.2.7", "ports": {"sql": 65536}})),
        ("port without a name", false, json!({"address": "192.0.2.7", "ports": {"-": 80}})),
        ("negative weight", false, json!({"address": "192.0.2.7", "weight": -1})),
        ("misspelt", false, json!({"adress": "192.0.2.7"})),
    ]
}
