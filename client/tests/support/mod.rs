//! A gateway by script: speaks `chappe.v1` over a pipe, and does only what a test tells it.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a script names the frame that it expects")]

use async_trait::async_trait;
use aws_lc_rs::digest;
use base64::Engine as _;
use bytes::Bytes;
use chappe_client::{
    Builder, Client, Connector, EnvelopeId, Epoch, Io, Limits, Seq, Tuning, UnixMillis, Urgency, World,
};
use chappe_protocol::frame::{
    ClientFrame, Deliver, Hello, ServerFrame, Submit, SubmitResult, TargetResult, Welcome,
};
use chappe_protocol::id::{ConnectionId, CursorTag};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Time;
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocket};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::io;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

/// Seeded randomness, the paused clock of tokio.
pub(crate) struct TestWorld {
    start: tokio::time::Instant,
    rng: Mutex<StdRng>,
}

impl TestWorld {
    #[allow(clippy::disallowed_methods, reason = "the paused clock of the test's runtime")]
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { start: tokio::time::Instant::now(), rng: Mutex::new(StdRng::seed_from_u64(seed)) })
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.random_below(bound)
    }
}

impl World for TestWorld {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_millis()).unwrap())
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_000 + self.now().0)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.rng.lock().unwrap().fill_bytes(bytes);
    }
}

struct Pipes(mpsc::Sender<DuplexStream>);

#[async_trait]
impl Connector for Pipes {
    async fn connect(&self, _host: &str, _port: u16) -> io::Result<Box<dyn Io>> {
        let (client, server) = tokio::io::duplex(64 * 1024);
        self.0.send(server).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(Box::new(client))
    }
}

/// Where a test gets the sockets that the client dials.
pub(crate) struct Gateway {
    dialled: mpsc::Receiver<DuplexStream>,
}

/// A client's builder on pipes, and the other end.
pub(crate) fn setup(world: &Arc<TestWorld>) -> (Builder, Gateway) {
    let (sender, dialled) = mpsc::channel(16);
    let builder = Client::builder("ws://127.0.0.1:1")
        .device("phone")
        .token("token")
        .connector(Arc::new(Pipes(sender)))
        .world(world.clone());
    (builder, Gateway { dialled })
}

pub(crate) fn tuning() -> Tuning {
    Tuning::default()
}

impl Gateway {
    /// The next raw stream.
    pub(crate) async fn dialled(&mut self) -> DuplexStream {
        self.dialled.recv().await.expect("the client dials")
    }

    pub(crate) fn is_dialled(&mut self) -> bool {
        self.dialled.try_recv().is_ok()
    }

    /// The next connection up to its Hello.
    pub(crate) async fn accept(&mut self) -> (Socket, Hello) {
        let mut stream = self.dialled().await;
        shake_hands(&mut stream).await;
        let mut web_socket = WebSocket::after_handshake(stream, Role::Server);
        web_socket.set_auto_close(false);
        let mut socket = Socket { web_socket };
        match socket.frame().await {
            Some(ClientFrame::Hello(hello)) => (socket, hello),
            other => panic!("no Hello: {other:?}"),
        }
    }

    /// The next connection, welcomed at `from`.
    pub(crate) async fn welcome(&mut self, from: u64) -> (Socket, Hello) {
        let (mut socket, hello) = self.accept().await;
        socket.send(&ServerFrame::Welcome(welcome(from))).await;
        (socket, hello)
    }
}

pub(crate) fn welcome(from: u64) -> Welcome {
    Welcome {
        session: ConnectionId([1; 16]),
        epoch: Epoch(1),
        from: Seq(from),
        tag: CursorTag([7; 16]),
        resume_token: Bytes::from_static(b"resume"),
        limits: Limits { frames_per_second_max: 10_000, frames_burst_max: 10_000, ..Limits::default() },
        resumed: false,
        server_time: UnixMillis(1),
    }
}

pub(crate) fn id(n: u64) -> EnvelopeId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    EnvelopeId(bytes)
}

pub(crate) fn deliver(prev: u64, seq: u64) -> Deliver {
    Deliver {
        seq: Seq(seq),
        prev: Seq(prev),
        envelope_id: id(seq),
        sender: None,
        at: UnixMillis(1),
        expires_at: UnixMillis(2),
        payload: Bytes::from(seq.to_string()),
        urgency: Urgency::Message,
    }
}

pub(crate) fn result(submit: &Submit, outcome: &Outcome) -> ServerFrame {
    let results = submit.targets.iter().map(|target| TargetResult {
        number: target.number,
        outcome: outcome.clone(),
        envelope_id: (*outcome == Outcome::Accepted).then_some(id(u64::from(target.number))),
    });
    ServerFrame::SubmitResult(SubmitResult {
        submit_id: submit.submit_id,
        attempt: submit.attempt,
        results: results.collect(),
    })
}

/// A welcomed socket.
pub(crate) struct Socket {
    pub(crate) web_socket: WebSocket<DuplexStream>,
}

impl Socket {
    /// The next frame of the client; `None` when it closed or broke off.
    pub(crate) async fn frame(&mut self) -> Option<ClientFrame> {
        let frame = self.web_socket.read_frame().await.ok()?;
        match frame.opcode {
            OpCode::Binary => Some(ClientFrame::decode(Bytes::copy_from_slice(&frame.payload)).unwrap()),
            OpCode::Close | OpCode::Text | OpCode::Continuation | OpCode::Ping | OpCode::Pong => None,
        }
    }

    /// The next frame that is not a ping; pings are answered.
    pub(crate) async fn answer(&mut self) -> Option<ClientFrame> {
        loop {
            match self.frame().await? {
                ClientFrame::Ping { nonce } => self.send(&ServerFrame::Pong { nonce, upto: Seq(0) }).await,
                other => return Some(other),
            }
        }
    }

    pub(crate) async fn submit(&mut self) -> Submit {
        match self.answer().await {
            Some(ClientFrame::Submit(submit)) => submit,
            other => panic!("no Submit: {other:?}"),
        }
    }

    pub(crate) async fn ack(&mut self) -> u64 {
        match self.answer().await {
            Some(ClientFrame::Ack { upto }) => upto.0,
            other => panic!("no Ack: {other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, frame: &ServerFrame) {
        self.raw(true, OpCode::Binary, frame.encode()).await;
    }

    pub(crate) async fn deliver(&mut self, prev: u64, seq: u64) {
        self.send(&ServerFrame::Deliver(deliver(prev, seq))).await;
    }

    /// What the client sees when it is already gone does not matter here.
    pub(crate) async fn raw(&mut self, fin: bool, opcode: OpCode, bytes: Vec<u8>) {
        let _ = self.web_socket.write_frame(Frame::new(fin, opcode, None, Payload::Owned(bytes))).await;
    }

    pub(crate) async fn close(mut self, code: u16) {
        let _ = self.web_socket.write_frame(Frame::close(code, b"scripted")).await;
        // The other side reads it before the pipe goes.
        while self.frame().await.is_some() {}
    }
}

/// The server's half of RFC 6455 §4.2.
pub(crate) async fn shake_hands(stream: &mut DuplexStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("GET /v1/connect HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Sec-WebSocket-Protocol: chappe.v1\r\n"), "{head}");
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = base64::engine::general_purpose::STANDARD.encode(context.finish());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chappe.v1\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
}
