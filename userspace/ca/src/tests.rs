//! The whole CA behind a real gRPC client over TLS on loopback.

pub(crate) mod fixture;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::json;
use signet_identity::{BundleSet, TrustBundle, TrustDomain, verify_peer};
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use self::fixture::{Fixture, Request, csr_for, node_claims};

const FRONTEND: &str = "spiffe://cluster.local/ns/photo-ns/sa/frontend";
const BACKEND: &str = "spiffe://cluster.local/ns/photo-ns/sa/backend";

#[tokio::test]
async fn a_node_gets_the_identity_of_its_own_workload() {
    let ca = Fixture::start().await;
    let chain = ca.ask(&Request::good(&ca, FRONTEND)).await.unwrap();
    assert_eq!(chain.len(), 2);
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    let td = TrustDomain::parse("cluster.local").unwrap();
    let bundle = TrustBundle::from_pem(td, chain[1].as_bytes()).unwrap();
    let identity = verify_peer(std::slice::from_ref(&leaf), &BundleSet::of(bundle), UnixTime::now()).unwrap();
    assert_eq!(identity.as_str(), FRONTEND);
    assert_eq!(chain[1], ca.roots_pem());
}

#[tokio::test]
async fn the_certificate_has_the_svid_profile_and_nothing_of_the_request_but_its_key() {
    let ca = Fixture::start().await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let chain = ca.ask(&Request { csr, ttl: 3600, ..Request::good(&ca, FRONTEND) }).await.unwrap();
    let der = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    assert!(!leaf.is_ca() && leaf.basic_constraints().unwrap().is_some());
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
    assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 1);
    let eku = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(eku.server_auth && eku.client_auth && !eku.any);
    assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    let validity = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(validity, 3600 + 60);
    assert_eq!(leaf.raw_serial().len(), 16);
}

#[tokio::test]
async fn a_lifetime_is_clamped_to_the_configured_bounds() {
    let ca = Fixture::start().await;
    for (asked, given) in [(0, 1200 + 60), (-5, 1200 + 60), (1, 30 + 3), (i64::MAX, 7200 + 60)] {
        let chain = ca.ask(&Request { ttl: asked, ..Request::good(&ca, FRONTEND) }).await.unwrap();
        let der = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let validity = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
        assert_eq!(validity, given, "{asked}");
    }
}

#[tokio::test]
async fn a_token_that_proves_nothing_gets_one_sentence_and_its_own_label() {
    let ca = Fixture::start().await;
    let other = fixture::TokenIssuer::new();
    let claims = || node_claims("n1");
    let with = |field: &str, value: serde_json::Value| {
        let mut claims = claims();
        claims[field] = value;
        ca.tokens.sign(&claims)
    };
    let kubernetes = |field: &str, value: serde_json::Value| {
        let mut claims = claims();
        claims["kubernetes.io"][field] = value;
        ca.tokens.sign(&claims)
    };
    let now = fixture::now();
    let mut stranger = claims();
    stranger["sub"] = json!("system:serviceaccount:shop:web");
    stranger["kubernetes.io"]["namespace"] = json!("shop");
    stranger["kubernetes.io"]["serviceaccount"]["name"] = json!("web");
    for (authorization, label) in [
        (None, "token_missing"),
        (Some("Basic YTpi".to_owned()), "token_malformed"),
        (Some("Bearer x.y.z".to_owned()), "token_malformed"),
        (Some(format!("Bearer {}", "x".repeat(9000))), "token_too_large"),
        (Some(format!("Bearer {}", other.sign(&claims()))), "token_signature"),
        (Some(format!("Bearer {}", ca.tokens.sign_as("unknown", &claims()))), "token_unknown_key"),
        (Some(format!("Bearer {}", fixture::unsigned(&claims()))), "token_malformed"),
        (Some(format!("Bearer {}", ca.tokens.hmac_with_public_key(&claims()))), "token_algorithm"),
        (Some(format!("Bearer {}", with("exp", json!(now - 120)))), "token_expired"),
        (Some(format!("Bearer {}", with("nbf", json!(now + 120)))), "token_not_yet_valid"),
        (Some(format!("Bearer {}", with("aud", json!(["kubernetes"])))), "token_audience"),
        (Some(format!("Bearer {}", with("iss", json!("https://evil.test")))), "token_issuer"),
        (Some(format!("Bearer {}", with("exp", json!("never")))), "token_claims"),
        (Some(format!("Bearer {}", with("sub", json!("system:serviceaccount:a:b")))), "token_claims"),
        (Some(format!("Bearer {}", ca.tokens.sign(&stranger))), "token_account"),
        (Some(format!("Bearer {}", kubernetes("node", json!(null)))), "token_node"),
    ] {
        let before = ca.refused(label).await;
        let status = ca.ask(&Request { authorization, ..Request::good(&ca, FRONTEND) }).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "request authentication failed"),
            "{label}"
        );
        assert_eq!(ca.refused(label).await, before + 1, "{label}");
    }
}

#[tokio::test]
async fn an_identity_is_only_for_the_node_that_has_it() {
    let ca = Fixture::start().await;
    for (identity, label) in [
        (Some(BACKEND), "identity_not_on_node"),
        (Some("spiffe://cluster.local/ns/photo-ns/sa/nobody"), "identity_not_on_node"),
        (Some("spiffe://evil.test/ns/photo-ns/sa/frontend"), "identity_foreign_trust_domain"),
        (Some("spiffe://cluster.local/frontend"), "identity_malformed"),
        (Some("https://cluster.local/ns/photo-ns/sa/frontend"), "identity_malformed"),
        (Some(""), "identity_malformed"),
        (None, "identity_missing"),
    ] {
        let request = Request { identity: identity.map(str::to_owned), ..Request::good(&ca, FRONTEND) };
        let status = ca.ask(&request).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "request authentication failed"),
            "{label}"
        );
        assert!(ca.refused(label).await >= 1, "{label}");
    }
    let authorization = Some(format!("Bearer {}", ca.tokens.sign(&node_claims("n2"))));
    ca.ask(&Request { authorization, csr: csr_for(BACKEND), ..Request::good(&ca, BACKEND) }).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_no_good_is_told_what_is_wrong_with_it() {
    let ca = Fixture::start().await;
    let csr = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
    };
    for (csr, label) in [
        (String::new(), "csr_malformed"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".into(),
            "csr_malformed",
        ),
        (fixture::RSA_CSR.to_owned(), "csr_algorithm"),
        (csr(&PKCS_ECDSA_P384_SHA384), "csr_algorithm"),
        (csr(&PKCS_ED25519), "csr_algorithm"),
        (csr_for(BACKEND), "csr_names"),
        (format!("{}{}", csr_for(FRONTEND), csr_for(FRONTEND)), "csr_malformed"),
        (format!("{}{}", csr_for(FRONTEND), " ".repeat(10_000)), "csr_too_large"),
    ] {
        let status = ca.ask(&Request { csr, ..Request::good(&ca, FRONTEND) }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{label}: {status:?}");
        assert!(status.message().starts_with("the CSR"), "{status:?}");
        assert!(ca.refused(label).await >= 1, "{label}");
    }
}

#[tokio::test]
async fn an_oversized_request_is_refused_unread() {
    let ca = Fixture::start().await;
    let csr = "x".repeat(100_000);
    let status = ca.ask(&Request { csr, ..Request::good(&ca, FRONTEND) }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    ca.ask(&Request::good(&ca, FRONTEND)).await.unwrap();
}

#[tokio::test]
async fn a_workload_that_moves_is_the_other_nodes() {
    let ca = Fixture::start().await;
    ca.write_pods(&[("frontend", "n2")]);
    let authorization = Some(format!("Bearer {}", ca.tokens.sign(&node_claims("n2"))));
    let request = Request { authorization, ..Request::good(&ca, FRONTEND) };
    // The CA may be a moment behind; the node asks again, as it would.
    ca.until(async || ca.ask(&request).await.is_ok()).await;
    assert!(ca.ask(&Request::good(&ca, FRONTEND)).await.is_err());
}

#[tokio::test]
async fn new_token_keys_hold_at_once() {
    let ca = Fixture::start().await;
    let next = fixture::TokenIssuer::new();
    std::fs::write(ca.directory().join("jwks.json"), next.jwks().to_string()).unwrap();
    assert!(ca.ask(&Request::good(&ca, FRONTEND)).await.is_err());
    let authorization = Some(format!("Bearer {}", next.sign(&node_claims("n1"))));
    let request = Request { authorization, ..Request::good(&ca, FRONTEND) };
    ca.ask(&request).await.unwrap();
    std::fs::write(ca.directory().join("jwks.json"), "{").unwrap();
    ca.ask(&request).await.unwrap();
}

#[tokio::test]
async fn a_plugged_intermediate_signs_and_its_chain_is_laid_out_for_ztunnel() {
    let ca = Fixture::start_plugged().await;
    let chain = ca.ask(&Request::good(&ca, FRONTEND)).await.unwrap();
    assert_eq!(chain.len(), 4, "leaf, issuing certificate, one above, root");
    let certificates: Vec<_> =
        chain[..3].iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
    let td = TrustDomain::parse("cluster.local").unwrap();
    let bundle = TrustBundle::from_pem(td, chain[3].as_bytes()).unwrap();
    assert_eq!(
        verify_peer(&certificates, &BundleSet::of(bundle), UnixTime::now()).unwrap().as_str(),
        FRONTEND
    );
}

#[tokio::test]
async fn a_restart_keeps_the_root() {
    let mut ca = Fixture::start().await;
    let before = ca.ask(&Request::good(&ca, FRONTEND)).await.unwrap();
    ca.restart().await;
    let after = ca.ask(&Request::good(&ca, FRONTEND)).await.unwrap();
    assert_eq!(before[1], after[1]);
}

#[tokio::test]
async fn a_client_without_tls_or_without_h2_is_not_served() {
    let ca = Fixture::start().await;
    let before = ca.metric("signet_ca_handshakes_failed_total").await;
    fixture::send_plain(ca.address(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    ca.until(async || ca.metric("signet_ca_handshakes_failed_total").await == before + 1).await;
    ca.ask(&Request::good(&ca, FRONTEND)).await.unwrap();
}

#[tokio::test]
async fn the_pages_tell_readiness_and_expiry() {
    let ca = Fixture::start().await;
    assert_eq!(ca.page("/healthz/ready").await, "ready\n");
    ca.ask(&Request::good(&ca, FRONTEND)).await.unwrap();
    assert_eq!(ca.metric("signet_ca_issued_total").await, 1);
    assert!(ca.metric("signet_ca_serving_expiry_timestamp_seconds").await > fixture::now());
    assert!(ca.metric("signet_ca_root_expiry_timestamp_seconds").await > fixture::now());
    assert_eq!(ca.metric("signet_ca_issue_duration_seconds_count").await, 1);
}
