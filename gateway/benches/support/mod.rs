//! What the measurements of memory share: processes, the baseline servers, and clients that hold connections.
//! **Invariant:** server and clients are separate processes, and every variant goes through the same steps:
//! [`WARM_UP`] connections that are used once, then all of them idle, then all of them used once.

#![allow(dead_code, reason = "each measurement uses a part")]

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fastwebsockets::{Frame, OpCode, Role};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::task::TaskTracker;

/// Payload of the one message of each connection.
pub(crate) const MESSAGE_BYTES: usize = 4_000;
/// Connections before the first measurement.
pub(crate) const WARM_UP: usize = 20;
const REQUEST: &[u8] = b"GET /v1/connect HTTP/1.1\r\nHost: gateway.example\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: chappe.v1\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) fn median(values: &mut [usize]) -> usize {
    values.sort_unstable();
    values[values.len() / 2]
}

/// A process that ends with its owner, whatever happens.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this program again, as one of its parts.
pub(crate) fn part(arguments: &[&str]) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    Running(command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

/// Starts the part of this program that is a server; it says its port and its certificate.
pub(crate) fn server_part(arguments: &[&str]) -> (Running, String, String) {
    let mut server = part(arguments);
    let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let address = said.next().unwrap().unwrap();
    let (port, certificate) = address.split_once(' ').unwrap();
    (server, port.to_owned(), certificate.to_owned())
}

pub(crate) fn resident_bytes(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A part of this program that holds connections, and does one step each time it is told.
pub(crate) struct Clients {
    steps: Lines<BufReader<ChildStdout>>,
    go: ChildStdin,
    _process: Running,
}

impl Clients {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut process = part(arguments);
        let steps = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let go = process.0.stdin.take().unwrap();
        Self { steps, go, _process: process }
    }

    /// Waits for the end of the step that runs, reads the server's memory, starts the next.
    pub(crate) fn step(&mut self, server: u32) -> usize {
        let said = self.steps.next().unwrap().unwrap();
        assert_eq!(said, "ready");
        let bytes = resident_bytes(server);
        writeln!(self.go).unwrap();
        bytes
    }

    /// Resident bytes of the server per connection: idle, and after one message each.
    pub(crate) fn measure(mut self, server: u32, count: usize) -> (usize, usize) {
        let (base, idle, after) = (self.step(server), self.step(server), self.step(server));
        let each = |bytes: usize| bytes.saturating_sub(base) / (count - WARM_UP);
        (each(idle), each(after))
    }
}

/// Says that a step is done and waits for the measurement.
pub(crate) fn ready() {
    // The server may still be busy with the last connection.
    std::thread::sleep(std::time::Duration::from_millis(300));
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// A listener on every address, and TLS with a fresh certificate; says both on standard output.
pub(crate) async fn listen(
    config: impl FnOnce(CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) -> rustls::ServerConfig,
) -> (TcpListener, Arc<rustls::ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = Arc::new(config(made.cert.der().clone(), key));
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    println!("{} {}", listener.local_addr().unwrap().port(), BASE64.encode(made.cert.der()));
    (listener, config)
}

/// A server that is measured beside ours.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Baseline {
    /// A tokio task with a socket.
    Bare,
    /// tokio-rustls with fastwebsockets.
    Fastwebsockets,
}

impl Baseline {
    /// Echoes, until the process ends.
    pub(crate) async fn serve(self, listener: TcpListener, config: Arc<rustls::ServerConfig>) {
        let connections = TaskTracker::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            match self {
                Self::Bare => drop(connections.spawn(echo_bare(socket))),
                Self::Fastwebsockets => {
                    drop(connections.spawn(echo_fastwebsockets(socket, Arc::clone(&config))));
                }
            }
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

/// A client's end of a connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// How a client connects.
#[derive(Clone)]
pub(crate) struct Dial {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<(tokio_rustls::TlsConnector, ServerName<'static>)>,
    pub(crate) websocket: bool,
}

impl Dial {
    pub(crate) fn plain(port: u16, websocket: bool) -> Self {
        Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), tls: None, websocket }
    }

    /// TLS that trusts exactly this certificate.
    pub(crate) fn tls(port: u16, certificate: CertificateDer<'static>, name: &'static str) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tls = Some((connector, ServerName::try_from(name).unwrap()));
        Self { tls, ..Self::plain(port, true) }
    }

    /// As [`listen`] said it.
    pub(crate) fn said(port: u16, certificate: &str, is_tls: bool, websocket: bool) -> Self {
        let certificate = || CertificateDer::from(BASE64.decode(certificate).unwrap());
        if is_tls { Self::tls(port, certificate(), "gateway.example") } else { Self::plain(port, websocket) }
    }

    /// Connects from one of 8 addresses.
    pub(crate) async fn connect(&self, number: usize) -> Box<dyn Io> {
        let from = IpAddr::from([127, 0, 0, 2 + u8::try_from(number % 8).unwrap()]);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let socket = socket.connect(self.address).await.unwrap();
        let mut io: Box<dyn Io> = match &self.tls {
            None => Box::new(socket),
            Some((connector, name)) => Box::new(connector.connect(name.clone(), socket).await.unwrap()),
        };
        if self.websocket {
            io.write_all(REQUEST).await.unwrap();
            io.flush().await.unwrap();
            read_head(&mut io).await.unwrap();
        }
        io
    }
}

/// Holds `count` connections to a server that echoes.
pub(crate) async fn hold(dial: &Dial, count: usize) {
    let mut held = Vec::new();
    for number in 0..count {
        held.push(dial.connect(number).await);
        if number + 1 == WARM_UP {
            for io in &mut held {
                exchange(io, dial.websocket).await;
            }
            ready();
        }
    }
    ready();
    for io in &mut held {
        exchange(io, dial.websocket).await;
    }
    ready();
}

/// One message there and back.
async fn exchange(io: &mut Box<dyn Io>, websocket: bool) {
    let mut message = Vec::new();
    let mut answer = vec![0; MESSAGE_BYTES];
    if websocket {
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
