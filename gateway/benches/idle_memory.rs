//! Resident memory of one idle connection: this transport beside a bare socket and beside fastwebsockets. **Invariant:**
//! server and clients are separate processes, every variant is measured the same way, and rounds are interleaved.
//!
//! `cargo bench -p chappe-gateway --bench idle_memory -- --rounds 3`

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a measurement fails by panicking")]

use std::future::poll_fn;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chappe_gateway::transport::websocket::{HandshakeLimits, accept, tls};
use chappe_gateway::transport::{Inbound, Transport};
use clap::{Parser, Subcommand, ValueEnum};
use fastwebsockets::{Frame, OpCode, Role};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

const MESSAGE_BYTES: usize = 4_000;
const WARM_UP: usize = 20;
const REQUEST: &[u8] = b"GET /v1/connect HTTP/1.1\r\nHost: gateway.example\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: chappe.v1\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Variant {
    Bare,
    Plain,
    FastwebsocketsTls,
    Tls,
}

impl Variant {
    const ALL: [Self; 4] = [Self::Bare, Self::Plain, Self::FastwebsocketsTls, Self::Tls];

    const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Plain => "plain",
            Self::FastwebsocketsTls => "fastwebsockets-tls",
            Self::Tls => "tls",
        }
    }

    const fn is_tls(self) -> bool {
        matches!(self, Self::FastwebsocketsTls | Self::Tls)
    }
}

/// Measure the resident memory of idle connections.
#[derive(Debug, Parser)]
struct Options {
    /// Plain connections per variant.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// TLS connections per variant.
    #[arg(long, default_value_t = 4_000)]
    tls_connections: usize,
    /// Interleaved rounds; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    #[command(hide = true)]
    Server { variant: Variant },
    #[command(hide = true)]
    Client { variant: Variant, port: u16, certificate: String, count: usize },
}

fn main() {
    let options = Options::parse();
    match options.part {
        Some(Part::Server { variant }) => runtime().block_on(serve(variant)),
        Some(Part::Client { variant, port, ref certificate, count }) => {
            runtime().block_on(hold(variant, port, certificate, count));
        }
        None => measure(&options),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn measure(options: &Options) {
    let mut figures = vec![(Vec::new(), Vec::new()); Variant::ALL.len()];
    for _ in 0..options.rounds {
        for (variant, (idle, after)) in Variant::ALL.into_iter().zip(&mut figures) {
            let count = if variant.is_tls() { options.tls_connections } else { options.connections };
            let (one, two) = measure_once(variant, count);
            idle.push(one);
            after.push(two);
        }
    }
    println!("{:<20} {:>12} {:>16} {:>18}", "variant", "connections", "idle, B/conn", "after 4 KB, B/conn");
    for (variant, (idle, after)) in Variant::ALL.into_iter().zip(&mut figures) {
        let count = if variant.is_tls() { options.tls_connections } else { options.connections };
        println!("{:<20} {count:>12} {:>16} {:>18}", variant.name(), median(idle), median(after));
    }
}

fn median(values: &mut [usize]) -> usize {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Resident bytes per connection: idle, and after one message each.
fn measure_once(variant: Variant, count: usize) -> (usize, usize) {
    let mut server = Running(part(&["server", variant.name()]));
    let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let address = said.next().unwrap().unwrap();
    let (port, certificate) = address.split_once(' ').unwrap();
    let mut client = Running(part(&["client", variant.name(), port, certificate, &count.to_string()]));
    let mut steps = BufReader::new(client.0.stdout.take().unwrap()).lines();
    let mut go = client.0.stdin.take().unwrap();
    let mut step = |go: &mut ChildStdin| {
        let said = steps.next().unwrap().unwrap();
        assert_eq!(said, "ready");
        let bytes = resident_bytes(server.0.id());
        writeln!(go).unwrap();
        bytes
    };
    let base = step(&mut go);
    let idle = step(&mut go);
    let after = step(&mut go);
    drop(go);
    (idle.saturating_sub(base) / (count - WARM_UP), after.saturating_sub(base) / (count - WARM_UP))
}

/// A process that ends with its owner, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn part(arguments: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn resident_bytes(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

async fn serve(variant: Variant) {
    let made = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = Arc::new(tls::server_config(vec![made.cert.der().clone()], key.into()).unwrap());
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    println!("{} {}", listener.local_addr().unwrap().port(), BASE64.encode(made.cert.der()));
    let limits = Arc::new(HandshakeLimits {
        deadline: std::time::Duration::from_mins(1),
        ..HandshakeLimits::default()
    });
    let connections = TaskTracker::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (config, limits) = (Arc::clone(&config), Arc::clone(&limits));
        match variant {
            Variant::Bare => drop(connections.spawn(echo_bare(socket))),
            Variant::Plain => drop(connections.spawn(echo_ours(socket, None, limits))),
            Variant::Tls => drop(connections.spawn(echo_ours(socket, Some(config), limits))),
            Variant::FastwebsocketsTls => drop(connections.spawn(echo_fastwebsockets(socket, config))),
        }
    }
}

async fn echo_bare(socket: TcpStream) {
    while socket.readable().await.is_ok() {
        let mut buffer = [0; MESSAGE_BYTES];
        match socket.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => drop(socket.try_write(&buffer[..count])),
            Err(_) => {}
        }
    }
}

async fn echo_ours(
    socket: TcpStream,
    config: Option<Arc<rustls::ServerConfig>>,
    limits: Arc<HandshakeLimits>,
) {
    let Ok(mut socket) = accept(socket, config, &limits).await else { return };
    drop(limits);
    loop {
        let mut echoes = Vec::new();
        let received = poll_fn(|cx| {
            socket.poll_receive(cx, &mut |inbound| {
                if let Inbound::Message(message) = inbound {
                    echoes.push(message.to_vec());
                }
            })
        });
        if received.await.is_err() {
            return;
        }
        for message in &echoes {
            socket.queue(message);
        }
        drop(echoes);
        if poll_fn(|cx| socket.poll_flush(cx)).await.is_err() {
            return;
        }
    }
}

async fn echo_fastwebsockets(socket: TcpStream, config: Arc<rustls::ServerConfig>) {
    let Ok(mut socket) = tokio_rustls::TlsAcceptor::from(config).accept(socket).await else { return };
    if read_head(&mut socket).await.is_none() || socket.write_all(ANSWER).await.is_err() {
        return;
    }
    socket.flush().await.unwrap();
    let mut socket = fastwebsockets::WebSocket::after_handshake(socket, Role::Server);
    while let Ok(frame) = socket.read_frame().await {
        if frame.opcode == OpCode::Close {
            return;
        }
        // A fresh frame: the one that came would be written with its mask.
        let echo = Frame::binary(frame.payload);
        if socket.write_frame(echo).await.is_err() || socket.flush().await.is_err() {
            return;
        }
    }
}

/// Byte by byte, so that nothing is kept or lost.
async fn read_head<IO: AsyncRead + Unpin>(io: &mut IO) -> Option<()> {
    let mut last = [0; 4];
    while last != *b"\r\n\r\n" {
        last.rotate_left(1);
        last[3] = io.read_u8().await.ok()?;
    }
    Some(())
}

async fn hold(variant: Variant, port: u16, certificate: &str, count: usize) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(BASE64.decode(certificate).unwrap())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let mut held = Vec::new();
    for number in 0..count {
        let mut socket = TcpStream::connect((format!("127.0.0.{}", 2 + number % 8), port)).await.unwrap();
        held.push(match variant {
            Variant::Bare => Held::Plain(socket),
            Variant::Plain => {
                upgrade(&mut socket).await;
                Held::Plain(socket)
            }
            Variant::Tls | Variant::FastwebsocketsTls => {
                let name = ServerName::try_from("gateway.example").unwrap();
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
                let mut socket = connector.connect(name, socket).await.unwrap();
                upgrade(&mut socket).await;
                Held::Tls(Box::new(socket))
            }
        });
        if number + 1 == WARM_UP {
            for socket in &mut held {
                socket.exchange(variant).await;
            }
            ready();
        }
    }
    ready();
    for socket in &mut held {
        socket.exchange(variant).await;
    }
    ready();
}

enum Held {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Held {
    async fn exchange(&mut self, variant: Variant) {
        match self {
            Self::Plain(socket) => exchange(socket, variant).await,
            Self::Tls(socket) => exchange(socket, variant).await,
        }
    }
}

async fn upgrade<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO) {
    io.write_all(REQUEST).await.unwrap();
    io.flush().await.unwrap();
    read_head(io).await.unwrap();
}

/// One message there and back.
async fn exchange<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO, variant: Variant) {
    let mut message = Vec::new();
    let mut answer = vec![0; MESSAGE_BYTES];
    if !matches!(variant, Variant::Bare) {
        // A mask of zeros leaves the payload as it is.
        message.extend_from_slice(&[0x82, 0xfe, 0x0f, 0xa0, 0, 0, 0, 0]);
        answer.resize(MESSAGE_BYTES + 4, 0);
    }
    message.resize(message.len() + MESSAGE_BYTES, 7);
    io.write_all(&message).await.unwrap();
    io.flush().await.unwrap();
    io.read_exact(&mut answer).await.unwrap();
    assert!(answer.ends_with(&[7; MESSAGE_BYTES]));
}

/// Says that a step is done and waits for the measurement.
fn ready() {
    // The server may still be busy with the last connection.
    std::thread::sleep(std::time::Duration::from_millis(300));
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
