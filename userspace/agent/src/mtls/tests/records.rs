//! The record layer against itself, and against rustls as the peer: what was sealed opens as it was, and nothing else does.

use std::pin::Pin;

use proptest::prelude::*;
use rustls::{NamedGroup, ProtocolVersion};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Our two ends of one connection.
async fn both_ours() -> (SecureStream<DuplexStream>, SecureStream<DuplexStream>) {
    let ca = TestCa::new("td");
    let (server, client) = (endpoint(&ca, "server"), endpoint(&ca, "client"));
    let (ours, theirs) = pipe();
    let expected = [ca.id("a", "server")];
    let (accepted, connected) = tokio::join!(server.accept(theirs), client.connect(ours, &expected, None));
    (connected.unwrap().0, accepted.unwrap().0)
}

/// The keys of both ends: client, server.
fn sessions() -> (Session, Session) {
    let (client, server) = Runtime::new().unwrap().block_on(both_ours());
    (client.into_parts().1, server.into_parts().1)
}

type RustlsClient = tokio_rustls::client::TlsStream<DuplexStream>;

/// Our server, and rustls as its client.
async fn our_server() -> (SecureStream<DuplexStream>, RustlsClient) {
    let ca = TestCa::new("td");
    with_rustls_client(&endpoint(&ca, "server"), Arc::new(rustls_client(&ca))).await
}

async fn with_rustls_client(
    server: &Endpoint,
    config: Arc<ClientConfig>,
) -> (SecureStream<DuplexStream>, RustlsClient) {
    let (ours, theirs) = pipe();
    let name = ServerName::try_from(NO_NAME).unwrap();
    let connecting = TlsConnector::from(config).connect(name, theirs);
    let (accepted, connected) = tokio::join!(server.accept(ours), connecting);
    (accepted.unwrap().0, connected.unwrap())
}

/// It would resume if the server let it.
fn rustls_client(ca: &TestCa) -> ClientConfig {
    let peer = Peer::with(ca.issue(URI, |_| {}));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Everybody))
        .with_client_cert_resolver(peer.certified().unwrap());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// Our client, and rustls as its server, which sends tickets and takes no client certificate.
async fn our_client() -> (SecureStream<DuplexStream>, tokio_rustls::server::TlsStream<DuplexStream>) {
    let ca = TestCa::new("td");
    let client = endpoint(&ca, "client");
    let peer = Peer::with(ca.issue(URI, |_| {}));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(peer.certified().unwrap());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (ours, theirs) = pipe();
    let expected = [SpiffeId::parse(URI).unwrap()];
    let accepting = TlsAcceptor::from(Arc::new(config)).accept(theirs);
    let (connected, accepted) = tokio::join!(client.connect(ours, &expected, None), accepting);
    (connected.unwrap().0, accepted.unwrap())
}

/// Everything goes both ways in parts, and ends in order.
async fn converse<A, B>(a: A, b: B, sent: [Vec<u8>; 2], part: usize)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut a_reads, mut a_writes) = tokio::io::split(a);
    let (mut b_reads, mut b_writes) = tokio::io::split(b);
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    let (to_b, to_a) = (&sent[0], &sent[1]);
    let outcome = tokio::try_join!(
        async {
            for part in to_b.chunks(part) {
                a_writes.write_all(part).await?;
            }
            a_writes.shutdown().await
        },
        async {
            for part in to_a.chunks(part) {
                b_writes.write_all(part).await?;
            }
            b_writes.shutdown().await
        },
        a_reads.read_to_end(&mut at_a),
        b_reads.read_to_end(&mut at_b),
    );
    outcome.unwrap();
    assert!(at_b == *to_b && at_a == *to_a, "{} and {} bytes arrived", at_b.len(), at_a.len());
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[tokio::test]
async fn rustls_reads_what_we_seal_and_we_read_what_rustls_seals_in_both_roles() {
    for part in [1, 1000, 16 * 1024 + 1, 500_000] {
        let length = if part == 1 { 300 } else { 1_500_000 };
        let (ours, theirs) = our_server().await;
        converse(ours, theirs, [noise(length), noise(length + 7)], part).await;
        let (ours, theirs) = our_client().await;
        converse(ours, theirs, [noise(length), noise(length + 7)], part).await;
    }
}

#[tokio::test]
async fn a_handshake_is_tls_1_3_with_the_hybrid_key_exchange_and_never_resumed() {
    let ca = TestCa::new("td");
    let server = endpoint(&ca, "server");
    let config = Arc::new(rustls_client(&ca));
    for _ in 0..2 {
        let (_ours, theirs) = with_rustls_client(&server, config.clone()).await;
        let connection = theirs.get_ref().1;
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn slices_are_gathered_into_full_records() {
    let (mut client, mut server) = both_ours().await;
    let (head, body) = (noise(9), noise(100_000));
    let slices = [io::IoSlice::new(&head), io::IoSlice::new(&[]), io::IoSlice::new(&body)];
    let written = std::future::poll_fn(|cx| Pin::new(&mut client).poll_write_vectored(cx, &slices)).await;
    assert_eq!(written.unwrap(), 100_009);
    let mut received = vec![0; 100_009];
    server.read_exact(&mut received).await.unwrap();
    assert!(received == [head, body].concat());
}

#[tokio::test]
async fn either_side_may_renew_its_key_at_any_time() {
    let (mut ours, mut theirs) = our_client().await;
    for round in 0..40_u8 {
        // Ours, because it is worn out.
        ours.session.wear_out();
        ours.write_all(&[round]).await.unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), round);
        // The peer's, which asks us for ours.
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(&[round]).await.unwrap();
        theirs.flush().await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), round);
    }
    converse(ours, theirs, [noise(100_000), noise(100_000)], 5_000).await;
}

#[tokio::test]
async fn a_peer_that_does_nothing_but_renew_its_key_is_cut_off() {
    let (mut ours, mut theirs) = our_server().await;
    for _ in 0..33 {
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
    }
    theirs.flush().await.unwrap();
    let error = HandshakeError::from(ours.read_u8().await.unwrap_err());
    let expected = rustls::Error::from(rustls::PeerMisbehaved::TooManyKeyUpdateRequests);
    assert!(matches!(&error, HandshakeError::Protocol(error) if *error == expected), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_is_cut_is_no_end() {
    let (mut client, server) = both_ours().await;
    client.write_all(b"half").await.unwrap();
    let (io, ..) = client.into_parts();
    drop(io);
    let mut received = Vec::new();
    let mut server = server;
    let error = server.read_to_end(&mut received).await.unwrap_err();
    assert_eq!((error.kind(), received.as_slice()), (io::ErrorKind::UnexpectedEof, &b"half"[..]));
}

#[test]
fn an_alert_that_is_no_end_is_told_as_what_it_is() {
    let (mut client, mut server) = sessions();
    let mut wire = [0; 64];
    let length = client.seal_alert(AlertDescription::InternalError, &mut wire).unwrap();
    let error = server.open(&wire[..length], &mut [0; 64]).unwrap_err();
    assert_eq!(error, rustls::Error::AlertReceived(AlertDescription::InternalError));
}

#[test]
fn what_is_no_record_is_refused_by_its_header() {
    let (_, mut server) = sessions();
    let mut room = vec![0; 20_000];
    for header in [[22, 3, 3, 0, 50], [23, 3, 3, 0, 16], [23, 3, 3, 0, 0], [23, 3, 3, 0x41, 1], [0; 5]] {
        server.open(&header, &mut room).unwrap_err();
    }
    assert_eq!(server.open(&[23, 3, 3, 0x41, 0], &mut room), Ok(Opened::Incomplete));
    assert_eq!(server.open(&[23, 3, 3], &mut room), Ok(Opened::Incomplete));
}

/// Records of `contents`, each by itself.
fn sealed_records(from: &mut Session, contents: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let seal = |content: &Vec<u8>| {
        let mut wire = vec![0; sealed(content.len()) + UPDATE_ROOM];
        let length = from.seal(content, Some(7), &mut wire).unwrap();
        wire.truncate(length);
        wire
    };
    contents.iter().map(seal).collect()
}

fn contents() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..=300), 2..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_split_of_the_wire_opens_to_what_was_sealed(contents in contents(), cut in any::<prop::sample::Index>()) {
        let (mut client, mut server) = sessions();
        let wire = sealed_records(&mut client, &contents).concat();
        let (mut at, mut end, mut opened) = (0, cut.index(wire.len()), Vec::new());
        while at < wire.len() {
            let mut room = vec![0; wire.len()];
            match server.open(&wire[at..end], &mut room).unwrap() {
                Opened::Application { record, content } => {
                    at += record;
                    opened.push(room[..content].to_vec());
                }
                Opened::Incomplete => {
                    prop_assert!(end < wire.len());
                    end = wire.len();
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        let marked: Vec<Vec<u8>> = contents.into_iter().map(|content| [content, vec![7]].concat()).collect();
        prop_assert_eq!(opened, marked);
    }

    #[test]
    fn no_bit_of_a_record_can_be_flipped(contents in contents(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let (mut client, mut server) = sessions();
        let mut record = sealed_records(&mut client, &contents).remove(0);
        let at = at.index(record.len());
        // The version is no part of what is read, but of what is sealed (RFC 8446 §5.2).
        record[at] ^= 1_u8 << bit;
        let opened = server.open(&record, &mut vec![0; 20_000]);
        // A longer length makes it a record that never comes to its end.
        let waits = (3..5).contains(&at) && opened == Ok(Opened::Incomplete);
        prop_assert!(waits || opened.is_err(), "{:?}", opened);
    }

    #[test]
    fn records_open_in_their_order_alone(contents in contents(), left_out in any::<prop::sample::Index>()) {
        let (mut client, mut server) = sessions();
        let mut records = sealed_records(&mut client, &contents);
        let left_out = left_out.index(records.len() - 1);
        records.remove(left_out);
        let mut room = vec![0; 20_000];
        for record in &records[..left_out] {
            server.open(record, &mut room).unwrap();
        }
        prop_assert_eq!(server.open(&records[left_out], &mut room), Err(rustls::Error::DecryptError));
    }

    #[test]
    fn no_record_opens_twice(contents in contents()) {
        let (mut client, mut server) = sessions();
        let record = sealed_records(&mut client, &contents).remove(0);
        let mut room = vec![0; 20_000];
        server.open(&record, &mut room).unwrap();
        prop_assert_eq!(server.open(&record, &mut room), Err(rustls::Error::DecryptError));
    }

    #[test]
    fn whatever_comes_instead_of_a_record_is_refused_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (_, mut server) = sessions();
        match server.open(&bytes, &mut vec![0; 20_000]) {
            Ok(opened) => prop_assert_eq!(opened, Opened::Incomplete),
            Err(error) => prop_assert!(!matches!(error, rustls::Error::General(_)), "{:?}", error),
        }
    }
}
