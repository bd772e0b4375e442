//! Connections: who is let in, and what a client may do on one. **Invariant:** a test that waits waits in paused time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod support;

use bytes::BufMut;
use chappe_fakes::{Apns, ApnsConfig, Door, Fcm, FcmConfig, Host, HostConfig, Step, Verdict};
use rustls_pki_types::ServerName;
use std::io;
use std::time::Duration;
use support::{Client, alert, provider_token, soon};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

async fn tls<IO: AsyncRead + AsyncWrite + Unpin>(
    host: &Host,
    protocols: &[&[u8]],
    io: IO,
) -> io::Result<TlsStream<IO>> {
    let tls = TlsConnector::from(host.authority().client_config(protocols).unwrap());
    tls.connect(ServerName::try_from("127.0.0.1").unwrap(), io).await
}

#[tokio::test]
async fn a_socket_serves_as_a_pipe_does_until_the_fake_is_closed() {
    let apns = Apns::start(ApnsConfig::default()).await.unwrap();
    let push = alert(&apns, &provider_token(&apns, 0), &apns.new_token());
    let socket = TcpStream::connect(apns.address()).await.unwrap();
    let mut client = Client::over(&apns, socket).await;
    assert_eq!(client.push(&push).await.status, 200);
    assert_eq!(apns.connections_open(), 1);
    soon(apns.close()).await;
    assert!(client.try_push(&push).await.is_err());
    assert!(TcpStream::connect(apns.address()).await.is_err(), "the port is closed");
    assert!(apns.certificate_pem().starts_with("-----BEGIN CERTIFICATE-----"));
}

#[tokio::test]
async fn a_stranger_does_not_trust_the_certificate_and_http2_is_demanded() {
    let (apns, other) = (
        Apns::start(ApnsConfig::default()).await.unwrap(),
        Apns::start(ApnsConfig::default()).await.unwrap(),
    );
    assert!(tls(&other, &[b"h2"], apns.pipe()).await.is_err());
    assert!(tls(&apns, &[b"http/1.1"], apns.pipe()).await.is_err());
    // Without ALPN the handshake itself succeeds; the connection ends then.
    let mut silent = tls(&apns, &[], apns.pipe()).await.unwrap();
    assert!(matches!(soon(silent.read(&mut [0; 64])).await, Ok(0) | Err(_)));
    apns.record().follow().wait_for(|counts| counts.handshakes_failed == 3).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn doors_fail_each_in_its_way() {
    let apns = Apns::start(ApnsConfig::default()).await.unwrap();
    apns.set_door(Door::TlsFailure);
    let failed = tls(&apns, &[b"h2"], apns.pipe()).await.unwrap_err().to_string();
    assert!(failed.contains("HandshakeFailure"), "{failed}");
    apns.set_door(Door::Closed);
    assert!(soon(tls(&apns, &[b"h2"], apns.pipe())).await.is_err());
    apns.set_door(Door::BlackHole);
    let waited = tokio::time::timeout(Duration::from_secs(500), tls(&apns, &[b"h2"], apns.pipe())).await;
    assert!(waited.is_err(), "nothing is said");
    apns.set_door(Door::Open);
    let push = alert(&apns, &provider_token(&apns, 0), &apns.new_token());
    assert_eq!(Client::pipe(&apns).await.push(&push).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn down_for_a_time_cuts_all_and_comes_back() {
    let apns = Apns::start(ApnsConfig::default()).await.unwrap();
    let push = alert(&apns, &provider_token(&apns, 0), &apns.new_token());
    let mut client = Client::pipe(&apns).await;
    assert_eq!(client.push(&push).await.status, 200);
    apns.down_for(Duration::from_mins(1));
    assert!(soon(client.try_push(&push)).await.is_err());
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert!(tls(&apns, &[b"h2"], apns.pipe()).await.is_err());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(Client::pipe(&apns).await.push(&push).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_later_door_outlives_an_earlier_time_of_being_down() {
    let apns = Apns::start(ApnsConfig::default()).await.unwrap();
    apns.down_for(Duration::from_secs(10));
    apns.set_door(Door::TlsFailure);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let failed = tls(&apns, &[b"h2"], apns.pipe()).await.unwrap_err().to_string();
    assert!(failed.contains("HandshakeFailure"), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn connections_are_bounded() {
    let host = HostConfig { connections_max: 1, ..HostConfig::default() };
    let apns = Apns::start(ApnsConfig { host, ..ApnsConfig::default() }).await.unwrap();
    let first = tls(&apns, &[b"h2"], apns.pipe()).await.unwrap();
    assert!(tls(&apns, &[b"h2"], apns.pipe()).await.is_err());
    drop(first);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(tls(&apns, &[b"h2"], apns.pipe()).await.is_ok());
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_uint(u64::try_from(payload.len()).unwrap(), 3);
    out.put_slice(&[kind, flags]);
    out.put_u32(stream);
    out.put_slice(payload);
    out
}

/// Kind, flags, stream and payload of the next frame.
async fn next_frame(stream: &mut TlsStream<DuplexStream>) -> (u8, u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.unwrap();
    (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

#[tokio::test]
async fn a_stream_over_the_acknowledged_limit_is_refused_and_pings_are_counted() {
    let apns = Apns::start(ApnsConfig::default()).await.unwrap();
    let mut raw = tls(&apns, &[b"h2"], apns.pipe()).await.unwrap();
    raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    raw.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let (kind, _, _, settings) = next_frame(&mut raw).await;
    let limits: Vec<&[u8]> = settings.chunks(6).filter(|setting| setting[..2] == [0, 3]).collect();
    assert_eq!((kind, limits), (4, vec![&[0, 3, 0, 0, 0, 1][..]]), "one stream");
    raw.write_all(&frame(4, 1, 0, &[])).await.unwrap();
    raw.write_all(&frame(6, 0, 0, &[7; 8])).await.unwrap();
    // Literals without indexing; the method and the scheme from the static table (RFC 7541).
    let head = [&[0x83, 0x87][..], b"\x04\x0b/3/device/x", b"\x01\x09127.0.0.1"].concat();
    raw.write_all(&frame(1, 4, 1, &head)).await.unwrap();
    raw.write_all(&frame(1, 5, 3, &head)).await.unwrap();
    let mut ponged = false;
    loop {
        match soon(next_frame(&mut raw)).await {
            (3, _, stream, reason) => {
                assert_eq!((stream, reason), (3, vec![0, 0, 0, 7]), "REFUSED_STREAM");
                break;
            }
            (6, 1, 0, payload) => ponged = payload == [7; 8],
            (4 | 8, ..) => (),
            other => panic!("{other:?}"),
        }
    }
    let counts = apns.record().counts();
    assert_eq!((ponged, counts.pings, counts.over_limit, counts.unprocessed), (true, 1, 1, 1));
    assert_eq!(apns.record().entries()[0].verdict, Verdict::Unprocessed);
}

/// Sends a request for an access token over HTTP/1.1 and gives all that comes back until the connection ends.
async fn http1(fcm: &Fcm) -> String {
    let mut stream = tls(fcm, &[b"http/1.1"], fcm.pipe()).await.unwrap();
    let request = "POST /token HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let read = async { while stream.read_buf(&mut all).await.is_ok_and(|count| count > 0) {} };
    let _ = tokio::time::timeout(Duration::from_mins(5), read).await;
    String::from_utf8(all).unwrap()
}

#[tokio::test(start_paused = true)]
async fn http_1_1_meets_the_same_judgement_and_script() {
    let fcm = Fcm::start(FcmConfig::default()).await.unwrap();
    let judged = http1(&fcm).await;
    assert!(judged.starts_with("HTTP/1.1 400") && judged.contains("invalid_request"), "{judged}");
    for step in [Step::CloseBefore, Step::CloseAfter, Step::RefuseStream, Step::StallBeforeHeaders] {
        fcm.token_script().next(step);
        assert_eq!(http1(&fcm).await, "");
    }
    fcm.token_script().next(Step::StallInBody);
    let half = http1(&fcm).await;
    let (head, body) = half.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    assert_eq!(body.len(), length.parse::<usize>().unwrap() / 2);
    fcm.token_script().next(Step::answer(503, "backend_error").retry_after_seconds(9).into());
    let scripted = http1(&fcm).await;
    assert!(scripted.starts_with("HTTP/1.1 503") && scripted.contains("retry-after: 9"), "{scripted}");
    assert_eq!(fcm.record().counts().logins, 7);
}
