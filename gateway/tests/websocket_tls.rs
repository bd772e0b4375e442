//! The same transport under TLS, and an independent client as the oracle of both.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use chappe_gateway::transport::websocket::{AcceptError, CodecLimits, HandshakeLimits, WebSocket, accept};
use chappe_gateway::transport::{Transport, TransportError};
use fastwebsockets::{Frame, OpCode, Payload, Role};
use futures_util::FutureExt;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[path = "support/io.rs"]
mod io;
mod websocket_support;
use io::{IoCounts, Watched};
use websocket_support::{
    Got, certificates, client_config, close_frame, echo, finish, flush, frame, receive, upgrade,
};

fn name() -> ServerName<'static> {
    ServerName::try_from("gateway.example").unwrap()
}

/// Both ends of a connection after TLS and handshake, over a pipe of this size.
async fn connected(pipe: usize) -> (WebSocket<DuplexStream>, TlsStream<DuplexStream>) {
    let (server_config, client_config) = certificates();
    let (client, server) = duplex(pipe);
    let limits = HandshakeLimits::default();
    let (socket, client) =
        tokio::join!(async { accept(server, Some(server_config), &limits).await.unwrap() }, async {
            let mut client = TlsConnector::from(client_config).connect(name(), client).await.unwrap();
            upgrade(&mut client).await;
            client
        });
    (socket, client)
}

/// Talks through fastwebsockets with an echoing server: random sizes, some in fragments, pings between.
async fn talk<IO: AsyncRead + AsyncWrite + Unpin>(io: IO, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut client = fastwebsockets::WebSocket::after_handshake(io, Role::Client);
    client.set_auto_close(false);
    client.set_max_message_size(2 * 1024 * 1024);
    for round in 0..40 {
        let length = match rng.random_range(0..5) {
            0 => rng.random_range(0..130),
            1 => rng.random_range(0..5_000),
            2 => rng.random_range(16_000..17_000),
            3 => rng.random_range(65_000..66_000),
            _ => rng.random_range(0..300_000),
        };
        let mut message = vec![0; length];
        rng.fill_bytes(&mut message);
        if rng.random_bool(0.3) {
            let (first, second) = message.split_at(length / 3);
            client
                .write_frame(Frame::new(false, OpCode::Binary, None, Payload::Borrowed(first)))
                .await
                .unwrap();
            client.write_frame(Frame::new(true, OpCode::Ping, None, Payload::Borrowed(b"?"))).await.unwrap();
            client
                .write_frame(Frame::new(true, OpCode::Continuation, None, Payload::Borrowed(second)))
                .await
                .unwrap();
        } else {
            client.write_frame(Frame::binary(Payload::Borrowed(&message))).await.unwrap();
        }
        let mut echoed = client.read_frame().await.unwrap();
        while echoed.opcode == OpCode::Pong {
            assert_eq!(&*echoed.payload, b"?");
            echoed = client.read_frame().await.unwrap();
        }
        assert!(
            echoed.opcode == OpCode::Binary && echoed.fin && *echoed.payload == *message,
            "seed {seed} round {round}"
        );
    }
    client.write_frame(Frame::close(1000, b"done")).await.unwrap();
    let close = client.read_frame().await.unwrap();
    assert_eq!((close.opcode, &*close.payload), (OpCode::Close, [3, 232].as_slice()));
}

/// Both ends of a fresh TCP connection: client, server.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn an_independent_client_hears_its_own_words_in_plain() {
    for seed in 0..4 {
        let (mut client, server) = tcp().await;
        let limits = HandshakeLimits::default();
        let ((), error) = tokio::join!(
            async {
                upgrade(&mut client).await;
                talk(client, seed).await;
            },
            async { echo(&mut accept(server, None, &limits).await.unwrap()).await }
        );
        assert!(matches!(error, TransportError::Closed), "{error}");
    }
}

#[tokio::test]
async fn an_independent_client_hears_its_own_words_under_tls() {
    let (server_config, client_config) = certificates();
    for seed in 0..4 {
        let (client, server) = tcp().await;
        let limits = HandshakeLimits::default();
        let ((), error) = tokio::join!(
            async {
                let connector = TlsConnector::from(Arc::clone(&client_config));
                let mut client = connector.connect(name(), client).await.unwrap();
                assert_eq!(client.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
                upgrade(&mut client).await;
                talk(client, seed).await;
            },
            async {
                let socket = accept(server, Some(Arc::clone(&server_config)), &limits).await;
                echo(&mut socket.unwrap()).await
            }
        );
        assert!(matches!(error, TransportError::Closed), "{error}");
    }
}

#[tokio::test]
async fn a_pipe_of_a_few_bytes_changes_nothing() {
    for pipe in [1, 5, 1_000] {
        let (mut socket, mut client) = connected(pipe).await;
        let message = vec![3; 40_000];
        let sent = frame(0x82, &message);
        let ((), got) = tokio::join!(
            async {
                client.write_all(&sent).await.unwrap();
                client.flush().await.unwrap();
            },
            receive(&mut socket)
        );
        assert_eq!(got.unwrap(), [Got::Message(message.clone())], "pipe {pipe}");
        socket.queue(&message);
        let mut answer = vec![0; 40_004];
        let (flushed, read) = tokio::join!(flush(&mut socket), client.read_exact(&mut answer));
        flushed.unwrap();
        read.unwrap();
        assert_eq!(answer[4..], message, "pipe {pipe}");
        assert_eq!((socket.queued_bytes(), socket.held_bytes()), (0, 0), "pipe {pipe}");
    }
}

#[tokio::test]
async fn dropped_and_polled_again_nothing_is_lost_or_doubled() {
    let (mut socket, client) = connected(300).await;
    let (mut reading, mut writing) = tokio::io::split(client);
    let message = |n: usize| vec![u8::try_from(n).unwrap(); n * 500];
    let client = async {
        for n in 0..40 {
            writing.write_all(&frame(0x82, &message(n))).await.unwrap();
            writing.flush().await.unwrap();
        }
    };
    let mut echoes = Vec::new();
    let total: usize = (0..40_usize).map(|n| n * 500 + if n == 0 { 2 } else { 4 }).sum();
    let hearing = async {
        let mut bytes = vec![0; total];
        reading.read_exact(&mut bytes).await.unwrap();
        bytes
    };
    let server = async {
        while echoes.len() < 40 || socket.queued_bytes() > 0 {
            if let Some(Ok(got)) = receive(&mut socket).now_or_never() {
                for inbound in got {
                    let Got::Message(bytes) = inbound else { panic!("{inbound:?}") };
                    socket.queue(&bytes);
                    echoes.push(bytes);
                }
            }
            let _ = flush(&mut socket).now_or_never();
            tokio::task::yield_now().await;
        }
    };
    let ((), heard, ()) = tokio::join!(client, hearing, server);
    assert!(echoes.iter().enumerate().all(|(n, bytes)| *bytes == message(n)));
    assert!(heard.ends_with(&message(39)));
}

#[tokio::test]
async fn a_partial_record_is_kept_only_while_it_is_partial() {
    let (server_config, client_config) = certificates();
    let (client, mut tap) = duplex(64 * 1024);
    let (mut feed, server) = duplex(64 * 1024);
    let limits = HandshakeLimits::default();
    // The tap hands the client's bytes on by hand once the handshake is through.
    let client = async {
        let mut client = TlsConnector::from(client_config).connect(name(), client).await.unwrap();
        upgrade(&mut client).await;
        client
    };
    let joined = async { tokio::join!(accept(server, Some(server_config), &limits), client) };
    let (mut socket, mut client) = tokio::select! {
        biased;
        (socket, client) = joined => (socket.unwrap(), client),
        _ = tokio::io::copy_bidirectional(&mut tap, &mut feed) => panic!("the handshake ended early"),
    };
    client.write_all(&frame(0x82, &[8; 10_000])).await.unwrap();
    client.flush().await.unwrap();
    let mut record = vec![0; 20_000];
    let length = tap.read(&mut record).await.unwrap();
    feed.write_all(&record[..length / 2]).await.unwrap();
    assert!(receive(&mut socket).now_or_never().is_none());
    assert_eq!(socket.held_bytes(), length / 2);
    feed.write_all(&record[length / 2..length]).await.unwrap();
    assert_eq!(receive(&mut socket).await.unwrap(), [Got::Message(vec![8; 10_000])]);
    assert_eq!(socket.held_bytes(), 0);
    // A spoilt record ends it, with an alert instead of a message.
    client.write_all(&frame(0x82, b"spoilt")).await.unwrap();
    client.flush().await.unwrap();
    let length = tap.read(&mut record).await.unwrap();
    record[length - 1] ^= 1;
    feed.write_all(&record[..length]).await.unwrap();
    assert!(matches!(receive(&mut socket).await, Err(TransportError::Io(_))));
    assert!(matches!(receive(&mut socket).await, Err(TransportError::Io(_))), "and stays ended");
}

#[tokio::test]
async fn keys_may_be_changed_by_the_peer_at_any_time() {
    let (mut socket, mut client) = connected(64 * 1024).await;
    for n in 0..5_u8 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(&frame(0x82, &[n; 1_000])).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(receive(&mut socket).await.unwrap(), [Got::Message(vec![n; 1_000])]);
        socket.queue(&[n; 100]);
        flush(&mut socket).await.unwrap();
        let mut answer = [0; 102];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[2..], [n; 100]);
    }
}

#[tokio::test]
async fn the_end_is_said_in_tls_too() {
    let (mut socket, mut client) = connected(64 * 1024).await;
    socket.queue_close(3000, "drained");
    let mut answer = Vec::new();
    let ((), read) = tokio::join!(finish(&mut socket), async {
        // Without a close_notify this is an error.
        let read = client.read_to_end(&mut answer).await;
        drop(client);
        read
    });
    read.expect("close_notify came before the end");
    assert_eq!(answer, close_frame(3000, "drained"));

    let (mut socket, mut client) = connected(64 * 1024).await;
    client.shutdown().await.unwrap();
    assert!(matches!(receive(&mut socket).await, Err(TransportError::Gone)));
    socket.queue(b"still heard");
    flush(&mut socket).await.unwrap();
    let mut answer = [0; 13];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[2..], *b"still heard");
}

#[tokio::test]
async fn any_server_name_is_served() {
    let (server_config, _) = certificates();
    let mut careless = client_config(rustls::RootCertStore::empty(), &[&rustls::version::TLS13]);
    careless.dangerous().set_certificate_verifier(Arc::new(TrustAll));
    let careless = Arc::new(careless);
    for name in ["other.example", "127.0.0.1"] {
        let (client, server) = duplex(64 * 1024);
        let limits = HandshakeLimits::default();
        let name = ServerName::try_from(name).unwrap();
        let (socket, ()) = tokio::join!(accept(server, Some(Arc::clone(&server_config)), &limits), async {
            let mut client = TlsConnector::from(Arc::clone(&careless)).connect(name, client).await.unwrap();
            upgrade(&mut client).await;
        });
        socket.unwrap();
    }
}

#[tokio::test]
async fn tls_1_2_is_refused_with_an_alert() {
    let (server_config, _) = certificates();
    let old = Arc::new(client_config(rustls::RootCertStore::empty(), &[&rustls::version::TLS12]));
    let (client, server) = duplex(64 * 1024);
    let limits = HandshakeLimits::default();
    let (socket, connected) = tokio::join!(
        accept(server, Some(server_config), &limits),
        TlsConnector::from(old).connect(name(), client)
    );
    assert!(matches!(socket, Err(AcceptError::Tls(_))), "{socket:?}");
    let told = connected.expect_err("refused").to_string();
    assert!(told.contains("ProtocolVersion"), "{told}");
}

#[tokio::test]
async fn bytes_that_are_no_tls_are_refused_at_once() {
    let (server_config, _) = certificates();
    for bytes in [websocket_support::request().into_bytes(), vec![0x16; 70_000], vec![0; 100]] {
        let (mut client, server) = duplex(256 * 1024);
        client.write_all(&bytes).await.unwrap();
        let result = accept(server, Some(Arc::clone(&server_config)), &HandshakeLimits::default()).await;
        assert!(matches!(result, Err(AcceptError::Tls(_))), "{result:?}");
    }
}

#[tokio::test]
async fn a_hello_that_never_ends_is_cut_off() {
    // A handshake message announced at 16 MiB, in records of 16 KiB.
    let mut record = vec![0x16, 3, 1, 0x40, 0];
    record.extend([1, 0xff, 0xff, 0xff]);
    record.resize(5 + 16_384, 0);
    let mut more = vec![0x16, 3, 1, 0x40, 0];
    more.resize(5 + 16_384, 0);
    let (server_config, _) = certificates();
    let (mut client, server) = duplex(256 * 1024);
    client.write_all(&record).await.unwrap();
    client.write_all(&more.repeat(8)).await.unwrap();
    let result = accept(server, Some(server_config), &HandshakeLimits::default()).await;
    assert!(matches!(result, Err(AcceptError::Tls(_))), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn tls_and_http_share_one_deadline() {
    let (server_config, client_config) = certificates();
    let (client, server) = duplex(64 * 1024);
    let limits = HandshakeLimits::default();
    let slow = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut client = TlsConnector::from(client_config).connect(name(), client).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let _ = client.write_all(websocket_support::request().as_bytes()).await;
        client
    };
    let (result, _client) = tokio::join!(accept(server, Some(server_config), &limits), slow);
    assert!(matches!(result, Err(AcceptError::TooSlow)), "{result:?}");

    let (server_config, _) = certificates();
    let (_client, server) = duplex(64);
    let result = accept(server, Some(server_config), &limits).await;
    assert!(matches!(result, Err(AcceptError::TooSlow)), "a client that says nothing: {result:?}");
}

#[tokio::test]
async fn hostile_frames_are_answered_under_tls_too() {
    let (mut socket, mut client) = connected(256 * 1024).await;
    client.write_all(&[frame(0x82, b"fine"), frame(0xc2, b"bad")].concat()).await.unwrap();
    client.flush().await.unwrap();
    let mut answer = Vec::new();
    let (error, read) = tokio::join!(echo(&mut socket), async {
        let read = client.read_to_end(&mut answer).await;
        drop(client);
        read
    });
    read.unwrap();
    let TransportError::Violation(violation) = error else { panic!("{error}") };
    assert_eq!(answer, [b"\x82\x04fine".as_slice(), &close_frame(1002, violation.reason)].concat());
}

#[tokio::test]
async fn limits_hold_under_tls() {
    let (server_config, client_config) = certificates();
    let (client, server) = duplex(256 * 1024);
    let codec = CodecLimits { message_bytes_max: 100_000, ..CodecLimits::default() };
    let limits = HandshakeLimits { codec, ..HandshakeLimits::default() };
    let (socket, mut client) = tokio::join!(accept(server, Some(server_config), &limits), async {
        let mut client = TlsConnector::from(client_config).connect(name(), client).await.unwrap();
        upgrade(&mut client).await;
        client
    });
    let mut socket = socket.unwrap();
    client.write_all(&frame(0x82, &vec![1; 100_000])).await.unwrap();
    client.write_all(&frame(0x82, &vec![1; 100_001])[..20_000]).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(receive(&mut socket).await.unwrap(), [Got::Message(vec![1; 100_000])]);
    let error = receive(&mut socket).await.unwrap_err();
    assert!(matches!(error, TransportError::Violation(violation) if violation.code == 1009), "{error}");
}

/// Takes any certificate: these tests look at the server.
#[derive(Debug)]
struct TrustAll;

impl rustls::client::danger::ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn a_client_that_comes_again_shows_its_ticket_however_many_came_between() {
    // Beyond the sessions that a server could remember by itself.
    const OTHERS: usize = 300;
    let (server_config, client_config) = certificates();
    let other = Arc::new({
        let mut other = (*client_config).clone();
        other.resumption = rustls::client::Resumption::disabled();
        other
    });
    let connect = async |config: &Arc<rustls::ClientConfig>| {
        let (client, server) = duplex(64 * 1024);
        let limits = HandshakeLimits::default();
        let (socket, kind) = tokio::join!(accept(server, Some(Arc::clone(&server_config)), &limits), async {
            let connector = TlsConnector::from(Arc::clone(config));
            let mut client = connector.connect(name(), client).await.unwrap();
            upgrade(&mut client).await;
            client.get_ref().1.handshake_kind().unwrap()
        });
        socket.unwrap();
        kind
    };
    let kind = connect(&client_config).await;
    assert!(!matches!(kind, rustls::HandshakeKind::Resumed), "{kind:?}");
    for _ in 0..OTHERS {
        connect(&other).await;
    }
    let kind = connect(&client_config).await;
    assert!(matches!(kind, rustls::HandshakeKind::Resumed), "{kind:?}");
}

#[tokio::test]
async fn the_ticket_and_the_answer_leave_in_one_write() {
    let (server_config, client_config) = certificates();
    let (client, server) = duplex(64 * 1024);
    let counts = Arc::new(IoCounts::default());
    let server = Watched { io: server, counts: Arc::clone(&counts) };
    let limits = HandshakeLimits::default();
    let (socket, _client) = tokio::join!(accept(server, Some(server_config), &limits), async {
        let mut client = TlsConnector::from(client_config).connect(name(), client).await.unwrap();
        upgrade(&mut client).await;
        client
    });
    socket.unwrap();
    let (reads, writes) = counts.take();
    assert_eq!(writes, 2, "the server's flight; its ticket with the answer ({reads} reads)");
}
