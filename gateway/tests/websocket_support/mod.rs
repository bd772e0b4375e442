//! What the WebSocket tests share: requests and frames written by hand, and a server that echoes.

#![allow(dead_code, unreachable_pub, reason = "every test binary takes what it needs")]

use std::future::poll_fn;
use std::sync::Arc;

use chappe_gateway::transport::websocket::{AcceptError, HandshakeLimits, WebSocket, accept};
use chappe_gateway::transport::{Inbound, Transport, TransportError};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};

pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A request that passes.
pub fn request() -> String {
    format!(
        "GET /v1/connect HTTP/1.1\r\nHost: gateway.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: chappe.v1\r\n\r\n"
    )
}

/// A masked frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..=65_535 => {
            bytes.push(0xfe);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            bytes.push(0xff);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend(mask);
    bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    bytes
}

/// A server's close frame.
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let mut bytes = vec![0x88, u8::try_from(2 + reason.len()).unwrap()];
    bytes.extend(code.to_be_bytes());
    bytes.extend(reason.as_bytes());
    bytes
}

/// Reads an HTTP head, byte by byte so that nothing behind it is taken.
pub async fn read_head<IO: AsyncRead + Unpin>(io: &mut IO) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.expect("the head ends before the stream does"));
    }
    String::from_utf8(head).unwrap()
}

/// Both ends of a connection after a handshake.
pub async fn connected(limits: &HandshakeLimits) -> (WebSocket<DuplexStream>, DuplexStream) {
    let (mut client, server) = duplex(256 * 1024);
    client.write_all(request().as_bytes()).await.unwrap();
    let socket = accept(server, None, limits).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
    (socket, client)
}

/// What one receive gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    Message(Vec<u8>),
    Control,
    Close(Option<u16>),
}

impl From<Inbound<'_>> for Got {
    fn from(inbound: Inbound<'_>) -> Self {
        match inbound {
            Inbound::Message(bytes) => Self::Message(bytes.to_vec()),
            Inbound::Datagram(_) => panic!("there are none on WebSocket"),
            Inbound::Control => Self::Control,
            Inbound::Close(code) => Self::Close(code),
        }
    }
}

pub async fn receive<T: Transport>(transport: &mut T) -> Result<Vec<Got>, TransportError> {
    let mut got = Vec::new();
    poll_fn(|cx| transport.poll_receive(cx, &mut |inbound| got.push(inbound.into()))).await?;
    Ok(got)
}

pub async fn flush<T: Transport>(transport: &mut T) -> Result<(), TransportError> {
    poll_fn(|cx| transport.poll_flush(cx)).await
}

pub async fn finish<T: Transport>(transport: &mut T) {
    poll_fn(|cx| transport.poll_finish(cx)).await.unwrap();
}

/// Echoes until the connection ends, as a connection of the gateway would behave; returns why it ended.
pub async fn echo<T: Transport>(transport: &mut T) -> TransportError {
    let error = loop {
        match receive(transport).await {
            Ok(got) => {
                for inbound in got {
                    if let Got::Message(message) = inbound {
                        transport.queue(&message);
                    }
                }
                if let Err(error) = flush(transport).await {
                    return error;
                }
            }
            Err(error) => break error,
        }
    };
    if let TransportError::Violation(violation) = &error {
        transport.queue_close(violation.code, violation.reason);
    }
    let _ = poll_fn(|cx| transport.poll_finish(cx)).await;
    error
}

/// What the server answers to a request, and what it reports.
pub async fn handshake(request: &[u8], limits: &HandshakeLimits) -> (String, Result<(), AcceptError>) {
    let (mut client, server) = duplex(256 * 1024);
    client.write_all(request).await.unwrap();
    client.shutdown().await.unwrap();
    let result = accept(server, None, limits).await.map(drop);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    (answer, result)
}

/// A certificate for `gateway.example`: the server's configuration, and one of a client that trusts it.
pub fn certificates() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = chappe_node::tls::server_config(vec![made.cert.der().clone()], key.into()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    (Arc::new(server), Arc::new(client_config(roots, &[&rustls::version::TLS13])))
}

pub fn client_config(
    roots: rustls::RootCertStore,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Passes a TLS client through the WebSocket handshake.
pub async fn upgrade<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO) {
    io.write_all(request().as_bytes()).await.unwrap();
    io.flush().await.unwrap();
    assert!(read_head(io).await.starts_with("HTTP/1.1 101 "));
}
