//! Made once, taken from whoever was faster, never written over.

use signet_apiserver::testing::Server;

use super::*;

fn secret(server: &Server) -> Secret {
    let api_server = server.client("signet-ca");
    Secret { api_server, namespace: "signet-system".into(), name: "root".into() }
}

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn stored(secret: &Secret) -> serde_json::Value {
    let key = generated::new_key().unwrap();
    let body = secret.body(&key, &generated::certify(&key, &domain()).unwrap());
    serde_json::from_str(&body).unwrap()
}

fn opening(secret: &Secret) -> tokio::task::JoinHandle<Result<Issuer, RootError>> {
    let secret = secret.clone();
    tokio::spawn(async move { secret.open(&domain(), Lifetimes::default()).await })
}

#[tokio::test]
async fn where_there_is_none_a_root_is_made_whole_and_immutable() {
    let mut server = Server::start().await;
    let opening = opening(&secret(&server));
    let asked = server.next().await;
    assert_eq!(asked.path, "/api/v1/namespaces/signet-system/secrets/root");
    asked.refuse(404, "not found");
    let created = server.next().await;
    assert_eq!((created.method.as_str(), created.body["immutable"] == true), ("POST", true));
    let body = created.body.clone();
    created.object(&body);
    server.next().await.object(&body);
    assert_eq!(opening.await.unwrap().unwrap().roots().len(), 1);
}

#[tokio::test]
async fn the_loser_of_a_race_takes_the_winners_root() {
    let mut server = Server::start().await;
    let secret = secret(&server);
    let winners = stored(&secret);
    let opening = opening(&secret);
    server.next().await.refuse(404, "not found");
    server.next().await.refuse(409, "AlreadyExists");
    server.next().await.object(&winners);
    let pem = STANDARD.decode(winners["data"][CERTIFICATE].as_str().unwrap()).unwrap();
    assert_eq!(opening.await.unwrap().unwrap().roots_pem().as_bytes(), pem);
}

#[tokio::test]
async fn a_secret_that_is_not_whole_is_an_error_that_names_what_is_wrong_and_no_write() {
    let mut server = Server::start().await;
    let secret = secret(&server);
    let (whole, other) = (stored(&secret), stored(&secret));
    let with = |key: &str, value: serde_json::Value| {
        let mut object = whole.clone();
        object["data"][key] = value;
        object
    };
    for (object, expected) in [
        (json!({"metadata": {}}), "root-cert.pem in Secret signet-system/root is not there"),
        (with(KEY, json!("")), "root-key.pem in Secret signet-system/root is not there"),
        (with(KEY, json!("%%%")), "root-key.pem in Secret signet-system/root is no text"),
        (
            with(CERTIFICATE, json!("Zm9v")),
            "root-cert.pem in Secret signet-system/root holds no PEM certificates",
        ),
        (with(KEY, json!("Zm9v")), "root-key.pem in Secret signet-system/root is no PEM private key"),
        (with(KEY, other["data"][KEY].clone()), "is not the one of the first certificate in root-cert.pem"),
    ] {
        let opening = opening(&secret);
        server.next().await.object(&object);
        let error = opening.await.unwrap().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let secret_text = whole["data"][KEY].as_str().unwrap();
        assert!(!error.contains(secret_text), "the error has the key in it");
    }
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_is_asked_again() {
    let mut server = Server::start().await;
    let secret = secret(&server);
    let whole = stored(&secret);
    let opening = opening(&secret);
    server.next().await.refuse(503, "not yet");
    server.next().await.refuse(403, "u cannot get");
    server.next().await.object(&whole);
    assert!(opening.await.unwrap().is_ok());
}

#[tokio::test]
async fn another_root_in_the_secret_is_told_from_damage_and_from_none() {
    let mut server = Server::start().await;
    let secret = secret(&server);
    let (own, other) = (stored(&secret), stored(&secret));
    let opening = opening(&secret);
    server.next().await.object(&own);
    let issuer = std::sync::Arc::new(opening.await.unwrap().unwrap());
    for (object, expected) in [
        (Some(own), Found::Same),
        (Some(other), Found::Another),
        (Some(json!({})), Found::Damage),
        (None, Found::Nothing),
    ] {
        let (secret, issuer) = (secret.clone(), issuer.clone());
        let comparing = tokio::spawn(async move { secret.compare(&issuer).await });
        match object {
            Some(object) => server.next().await.object(&object),
            None => server.next().await.refuse(404, "not found"),
        }
        assert_eq!(comparing.await.unwrap(), Ok(expected));
    }
}

#[tokio::test]
async fn a_secret_that_is_gone_is_put_back_as_it_was() {
    let mut server = Server::start().await;
    let secret = secret(&server);
    let own = stored(&secret);
    let opening = opening(&secret);
    server.next().await.object(&own);
    let issuer = opening.await.unwrap().unwrap();
    let putting = tokio::spawn(async move { secret.put_back(&issuer).await });
    let created = server.next().await;
    assert_eq!((created.method.as_str(), &created.body["data"]), ("POST", &own["data"]));
    created.object(&own);
    assert_eq!(putting.await.unwrap(), Ok(Found::Same));
}
