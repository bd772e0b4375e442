//! The opening handshake: what passes, what is refused and how, and what it may cost.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use chappe_gateway::transport::websocket::{AcceptError, HandshakeLimits, accept};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

mod websocket_support;
use websocket_support::{ACCEPT, Got, KEY, frame, handshake, receive, request};

/// The status and the word of a refusal, seen by both sides.
async fn refused(request: &[u8], limits: &HandshakeLimits) -> (u16, &'static str) {
    let (answer, result) = handshake(request, limits).await;
    let Err(AcceptError::Refused { status, code }) = result else {
        panic!("{result:?} for {}", String::from_utf8_lossy(request))
    };
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{answer}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["code"], code);
    assert!(!body["message"].as_str().unwrap().is_empty());
    (status, code)
}

/// The request with one piece replaced.
fn with(from: &str, to: &str) -> Vec<u8> {
    let changed = request().replacen(from, to, 1);
    assert_ne!(changed, request(), "{from} is not in the request");
    changed.into_bytes()
}

async fn passes(request: &[u8], limits: &HandshakeLimits) -> String {
    let (answer, result) = handshake(request, limits).await;
    result.unwrap_or_else(|error| panic!("{error} for {}", String::from_utf8_lossy(request)));
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    answer
}

#[tokio::test]
async fn an_honest_request_is_upgraded_with_the_answer_of_the_rfc() {
    let answer = passes(request().as_bytes(), &HandshakeLimits::default()).await;
    assert!(answer.contains(&format!("\r\nSec-WebSocket-Accept: {ACCEPT}\r\n")), "{answer}");
    assert!(answer.contains("\r\nSec-WebSocket-Protocol: chappe.v1\r\n"), "{answer}");
}

#[tokio::test]
async fn what_browsers_and_proxies_vary_is_taken() {
    let limits = HandshakeLimits::default();
    for (from, to) in [
        ("Upgrade: websocket", "upgrade:WebSocket"),
        ("Upgrade: websocket", "Upgrade: h2c, websocket"),
        ("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
        ("Connection: Upgrade", "Connection: keep-alive\r\nConnection: upgrade"),
        ("Protocol: chappe.v1", "Protocol: other, chappe.v1"),
        ("Protocol: chappe.v1", "Protocol: other\r\nSec-WebSocket-Protocol: chappe.v1"),
        ("Host:", "Content-Length: 0\r\nHost:"),
    ] {
        passes(&with(from, to), &limits).await;
    }
}

#[tokio::test]
async fn compression_is_offered_and_not_agreed_on() {
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nHost:";
    let answer = passes(&with("Host:", offer), &HandshakeLimits::default()).await;
    assert!(!answer.to_ascii_lowercase().contains("extensions"), "{answer}");
}

#[tokio::test]
async fn each_missing_or_wrong_part_has_its_answer() {
    let limits = HandshakeLimits::default();
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    for (from, to, expected) in [
        ("/v1/connect", "/", (404, "not_found")),
        ("/v1/connect", "/v1/connect/", (404, "not_found")),
        ("/v1/connect", "/v1/connect?token=secret", (400, "query_refused")),
        ("GET", "POST", (405, "method_not_allowed")),
        ("GET", "get", (405, "method_not_allowed")),
        ("HTTP/1.1", "HTTP/1.0", (400, "malformed_request")),
        ("HTTP/1.1", "HTTP/2.0", (400, "malformed_request")),
        ("Upgrade: websocket\r\n", "", (426, "upgrade_required")),
        ("Upgrade: websocket", "Upgrade: websockets", (426, "upgrade_required")),
        ("Connection: Upgrade", "Connection: keep-alive", (426, "upgrade_required")),
        ("Version: 13", "Version: 8", (426, "version_not_supported")),
        ("Version: 13", "Version: 13, 8", (426, "version_not_supported")),
        ("Sec-WebSocket-Version: 13\r\n", "", (426, "version_not_supported")),
        (key.as_str(), "", (400, "malformed_request")),
        (KEY, "dGhlIHNhbXBsZSBub25jZQ", (400, "malformed_request")),
        (KEY, "dGhlIHNhbXBsZSBub25j", (400, "malformed_request")),
        (KEY, "dGhlIHNhbXBsZSBub25jZSEh", (400, "malformed_request")),
        ("Protocol: chappe.v1", "Protocol: chappe.v2", (400, "subprotocol_missing")),
        ("Protocol: chappe.v1", "Protocol: Chappe.v1", (400, "subprotocol_missing")),
        ("Sec-WebSocket-Protocol: chappe.v1\r\n", "", (400, "subprotocol_missing")),
    ] {
        assert_eq!(refused(&with(from, to), &limits).await, expected, "{from} -> {to}");
    }
    let (answer, _) = handshake(&with("Version: 13", "Version: 8"), &limits).await;
    assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
    let (answer, _) = handshake(&with("Protocol: chappe.v1", "Protocol: x"), &limits).await;
    assert!(answer.contains("send Sec-WebSocket-Protocol: chappe.v1"), "{answer}");
}

#[tokio::test]
async fn what_two_parsers_could_read_in_two_ways_is_refused() {
    let limits = HandshakeLimits::default();
    for (from, to) in [
        ("Host: gateway.example", "Host: gateway.example\r\nHost: other.example"),
        ("Host: gateway.example", "Host: gateway.example\r\nhost: gateway.example"),
        ("Host: gateway.example\r\n", ""),
        ("Host: gateway.example", "Host: "),
        ("Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Key"),
        ("Sec-WebSocket-Version", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version"),
        ("Host:", "Content-Length: 5\r\nHost:"),
        ("Host:", "Content-Length: 0\r\nContent-Length: 0\r\nHost:"),
        ("Host:", "Transfer-Encoding: chunked\r\nHost:"),
        ("Host:", "Origin: https://a\r\nOrigin: https://b\r\nHost:"),
        ("gateway.example\r\n", "gateway.example\n"),
        ("Host: gateway.example\r\n", "Host: gateway.example\r\n folded\r\n"),
        ("Host: gateway.example", "Host : gateway.example"),
        ("Host: gateway.example", "Host: gateway\0example"),
        ("Host: gateway.example", "Host: gateway.example\rX: y"),
        ("Host: gateway.example", "Host gateway.example"),
        ("GET /v1/connect", "GET  /v1/connect"),
        ("GET /v1/connect", "\r\n\r\nGET /v1/connect"),
        ("GET /v1/connect", "\nGET /v1/connect"),
    ] {
        assert_eq!(refused(&with(from, to), &limits).await, (400, "malformed_request"), "{from} -> {to:?}");
    }
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert_eq!(refused(http2, &limits).await, (400, "malformed_request"));
}

#[tokio::test]
async fn origins_are_compared_byte_by_byte_and_only_when_given() {
    let limits = HandshakeLimits {
        origins: vec!["https://chat.example".to_owned(), "http://localhost:5173".to_owned()],
        ..HandshakeLimits::default()
    };
    let from = |origin: &str| with("Host:", &format!("Origin: {origin}\r\nHost:"));
    passes(request().as_bytes(), &limits).await;
    passes(&from("https://chat.example"), &limits).await;
    passes(&from("http://localhost:5173"), &limits).await;
    for origin in [
        "null",
        "",
        "http://chat.example",
        "https://chat.example:443",
        "https://chat.example:8443",
        "https://chat.example.evil.example",
        "https://evil-chat.example",
        "https://evil.example/https://chat.example",
        "https://Chat.example",
        "https://chat.example/",
        "http://localhost",
    ] {
        assert_eq!(refused(&from(origin), &limits).await, (403, "origin_refused"), "{origin}");
    }
    let none = HandshakeLimits::default();
    assert_eq!(
        refused(&from("https://chat.example"), &none).await,
        (403, "origin_refused"),
        "by default none"
    );
}

#[tokio::test]
async fn a_head_has_a_bound_in_bytes_and_in_lines() {
    let limits = HandshakeLimits::default();
    let padded = |length: usize| {
        let spare = length - request().len() - "X: \r\n".len();
        with("Host:", &format!("X: {}\r\nHost:", "x".repeat(spare)))
    };
    assert_eq!(padded(8 * 1024).len(), 8 * 1024);
    passes(&padded(8 * 1024), &limits).await;
    assert_eq!(refused(&padded(8 * 1024 + 1), &limits).await, (431, "head_too_large"));
    assert_eq!(refused(&vec![b'x'; 64 * 1024], &limits).await, (431, "head_too_large"));
    passes(&with("Host:", &format!("{}Host:", "X: y\r\n".repeat(32 - 6))), &limits).await;
    let lines = with("Host:", &format!("{}Host:", "X: y\r\n".repeat(33 - 6)));
    assert_eq!(refused(&lines, &limits).await, (431, "head_too_large"));
}

#[tokio::test]
async fn frames_sent_with_the_request_are_not_lost() {
    let bytes = [request().into_bytes(), frame(0x82, b"early"), frame(0x82, b"half")].concat();
    for cut in [bytes.len() - 3, bytes.len() - 10, request().len() + 3, request().len() - 2, 40, 1] {
        let (mut client, server) = duplex(64 * 1024);
        let rest = bytes[cut..].to_vec();
        client.write_all(&bytes[..cut]).await.unwrap();
        let limits = HandshakeLimits::default();
        let writing = async {
            tokio::task::yield_now().await;
            client.write_all(&rest).await.unwrap();
        };
        let (socket, ()) = tokio::join!(accept(server, None, &limits), writing);
        let mut socket = socket.unwrap();
        let mut got = Vec::new();
        while got.len() < 2 {
            got.extend(receive(&mut socket).await.unwrap());
        }
        assert_eq!(got, [Got::Message(b"early".to_vec()), Got::Message(b"half".to_vec())], "cut {cut}");
        assert_eq!(socket.held_bytes(), 0, "cut {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_drips_is_cut_off_at_the_deadline() {
    let (mut client, server) = duplex(64 * 1024);
    let limits = HandshakeLimits::default();
    let dripping = async {
        for byte in request().bytes() {
            if client.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let accepting = tokio::time::timeout(Duration::from_secs(6), accept(server, None, &limits));
    let (result, ()) = tokio::join!(accepting, dripping);
    assert!(matches!(result, Ok(Err(AcceptError::TooSlow))), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_refusal_is_not_waited_for() {
    let (mut client, server) = duplex(64);
    let sending = async {
        client.write_all(b"POST / HTTP/1.1\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_mins(1)).await;
        client
    };
    let limits = HandshakeLimits::default();
    let accepting = tokio::time::timeout(Duration::from_secs(10), accept(server, None, &limits));
    let (result, _client) = tokio::join!(accepting, sending);
    assert!(matches!(result, Ok(Err(AcceptError::TooSlow))), "{result:?}");
}

#[tokio::test]
async fn a_stream_that_ends_early_is_an_error_and_not_a_wait() {
    for cut in [0, 1, 100, request().len() - 1] {
        let (answer, result) = handshake(&request().as_bytes()[..cut], &HandshakeLimits::default()).await;
        assert!(matches!(result, Err(AcceptError::Io(_))), "{result:?}");
        assert_eq!(answer, "");
    }
}

#[tokio::test]
async fn any_path_and_no_subprotocol_where_none_is_configured() {
    let limits = HandshakeLimits { path: None, subprotocol: None, ..HandshakeLimits::default() };
    let answer = passes(&with("/v1/connect", "/echo?case=1"), &limits).await;
    assert!(!answer.contains("Sec-WebSocket-Protocol"), "{answer}");
}

#[tokio::test]
async fn a_refusal_arrives_on_a_real_socket_though_the_client_sent_more() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    client.write_all(&vec![b'x'; 200_000]).await.unwrap();
    let limits = HandshakeLimits::default();
    let mut answer = String::new();
    let (result, read) = tokio::join!(accept(server, None, &limits), async {
        let read = client.read_to_string(&mut answer).await;
        drop(client);
        read
    });
    assert!(matches!(result, Err(AcceptError::Refused { status: 431, .. })), "{result:?}");
    read.expect("no reset before the answer is read");
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}
