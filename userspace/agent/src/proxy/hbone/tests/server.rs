//! What the server makes of requests, good and bad, sent by a bare HTTP/2 client.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};

use super::*;

#[tokio::test]
async fn a_connect_arrives_as_it_was_asked_for() {
    let answer: fn(Incoming) = |incoming| {
        let told =
            ["baggage", "forwarded", "traceparent"].map(|name| incoming.header(name).unwrap().to_owned());
        let answer = format!("{} {}", incoming.authority(), told.join(" "));
        std::mem::forget(incoming.accept(Some(&answer)).unwrap());
    };
    let (pool, machine) = (Pool::new(), Machine::new(answer));
    let mut asked = request();
    asked.authority = "[fd00::2]:8080".to_owned();
    asked.forwarded_for = "[fd00::1]:40000".parse().unwrap();
    let (_, opened) = machine.open(&pool, &asked).await.unwrap();
    let expected = format!("[fd00::2]:8080 {} for=\"[fd00::1]:40000\" {}", asked.baggage, asked.traceparent);
    assert_eq!(opened.baggage.as_deref(), Some(expected.as_str()));
}

#[tokio::test]
async fn our_connect_has_neither_scheme_nor_path() {
    let (near, far) = tokio::io::duplex(PIPE);
    let server = tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        let (request, _) = connection.accept().await.unwrap().unwrap();
        request.into_parts().0
    });
    let (connection, driver) =
        client::handshake(near, request().key.address, proven(backend())).await.unwrap();
    tokio::spawn(driver.run(|| true));
    let claim = connection.claim().unwrap();
    let asking = tokio::spawn(async move { claim.connect(&request()).await.map(|_| ()) });
    let head = within(server).await.unwrap();
    assert_eq!(head.method, Method::CONNECT);
    assert_eq!(head.uri.to_string(), "10.0.0.2:8080");
    assert!(head.uri.scheme().is_none() && head.uri.path_and_query().is_none());
    asking.abort();
}

#[tokio::test]
async fn baggage_that_is_no_header_value_is_left_out() {
    let answer: fn(Incoming) = |incoming| std::mem::forget(incoming.accept(Some("a\nb")).unwrap());
    let (pool, machine) = (Pool::new(), Machine::new(answer));
    let (_, opened) = machine.open(&pool, &request()).await.unwrap();
    assert_eq!(opened.baggage, None);
}

#[tokio::test]
async fn anything_but_connect_is_a_bad_request_and_the_next_connect_is_served() {
    let mut client = bare_client(echo).await;
    for method in [Method::GET, Method::POST, Method::OPTIONS] {
        let request = Request::builder().method(method).uri("https://10.0.0.2:8080/").body(()).unwrap();
        assert_eq!(status(&mut client, request).await.unwrap(), StatusCode::BAD_REQUEST);
    }
    assert_eq!(status(&mut client, connect("10.0.0.2:8080")).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_header_list_over_the_limit_fails_that_request_alone() {
    let mut client = bare_client(echo).await;
    let mut oversized = connect("10.0.0.2:8080");
    oversized.headers_mut().insert("baggage", "x".repeat(65 * 1024).parse().unwrap());
    let refused = status(&mut client, oversized).await;
    assert!(!matches!(&refused, Ok(status) if status.is_success()), "{refused:?}");
    assert_eq!(status(&mut client, connect("10.0.0.2:8080")).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn garbage_instead_of_http2_is_an_error() {
    let (mut near, far) = tokio::io::duplex(PIPE);
    near.write_all(b"GET / HTTP/1.1\r\nhost: backend\r\n\r\n").await.unwrap();
    assert!(within(Server::handshake(far)).await.is_err());
}

#[tokio::test]
async fn a_request_dropped_unanswered_is_reset() {
    let mut client = bare_client(drop).await;
    let refused = status(&mut client, connect("10.0.0.2:8080")).await;
    assert!(refused.as_ref().is_err_and(h2::Error::is_reset), "{refused:?}");
}

#[tokio::test]
async fn a_request_that_its_client_gives_up_is_abandoned() {
    let (near, far) = tokio::io::duplex(PIPE);
    let (mut client, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let (_answer, mut stream) = client.send_request(connect("10.0.0.2:8080"), false).unwrap();
    stream.send_reset(Reason::CANCEL);
    let mut server = Server::handshake(far).await.unwrap();
    let mut incoming = within(server.next()).await.unwrap().unwrap();
    let abandoned = async {
        tokio::select! {
            error = incoming.abandoned() => error.reason(),
            _ = server.next() => panic!("there is one request"),
        }
    };
    assert_eq!(within(abandoned).await, Some(Reason::CANCEL));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_ping_is_given_up() {
    let (mut near, far) = tokio::io::duplex(PIPE);
    // The preface and empty SETTINGS (RFC 9113 §3.4), and then nothing, not even an acknowledgement.
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut server = Server::handshake(far).await.unwrap();
    let outcome = server.next().await.unwrap();
    assert!(matches!(outcome, Err(ServeError::Silent(_))));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_pings_may_be_idle_for_hours() {
    let (near, far) = tokio::io::duplex(PIPE);
    let (_client, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let mut server = Server::handshake(far).await.unwrap();
    let hours = Duration::from_secs(3 * 3600);
    assert!(tokio::time::timeout(hours, server.next()).await.is_err(), "the connection ended");
}

async fn bare_client(answer: fn(Incoming)) -> SendRequest<Bytes> {
    let (io, _) = Machine::new(answer).dial().await.unwrap();
    // A client that does not mind the server's SETTINGS_MAX_HEADER_LIST_SIZE, as h2's does not.
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn status(client: &mut SendRequest<Bytes>, request: Request<()>) -> Result<StatusCode, h2::Error> {
    let (response, _body) = client.send_request(request, false)?;
    Ok(within(response).await?.status())
}

fn connect(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap()
}
