//! A client that does exactly what it is told: raw WebSocket frames, no reconnect, no ack by itself.

use super::carrier::{QuicWire, carrier};
use super::{Cluster, Gateway};
use bytes::{BufMut, Bytes};
use chappe_gateway::transport::Carrier;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::frame::{
    ClientFrame, Cursor, Deliver, Hello, Role, Secret, ServerFrame, Submit, SubmitResult, Target, Welcome,
};
use chappe_protocol::id::{DeviceId, Seq, SubmitId, UserId};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Millis;
use prost::encoding::{decode_varint, encode_varint};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) struct Client {
    pub(crate) wire: Wire,
    buffer: Vec<u8>,
    pub(crate) welcome: Option<Welcome>,
    ended: bool,
}

/// What a client's frames travel on.
pub(crate) enum Wire {
    WebSocket(DuplexStream),
    Quic(Box<QuicWire>),
}

impl Wire {
    async fn write(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::WebSocket(io) => io.write_all(bytes).await.is_ok(),
            Self::Quic(wire) => wire.send.write_all(bytes).await.is_ok(),
        }
    }

    /// As [`read`](Self::read), as much as the buffer has room for.
    async fn read_at_most(&mut self, buffer: &mut Vec<u8>) {
        let room = buffer.capacity();
        let mut limited = (&mut *buffer).limit(room);
        let _ = match self {
            Self::WebSocket(io) => io.read_buf(&mut limited).await,
            Self::Quic(wire) => wire.recv.read_buf(&mut limited).await,
        };
    }

    /// What is there, into the buffer; 0: nothing more comes. A datagram is given as if it had come on the stream.
    /// Cancel-safe.
    async fn read(&mut self, buffer: &mut Vec<u8>) -> usize {
        let wire = match self {
            Self::WebSocket(io) => return io.read_buf(buffer).await.unwrap_or(0),
            Self::Quic(wire) => wire,
        };
        // Between two frames only: else it would land inside of one.
        let between = buffer.is_empty();
        tokio::select! {
            biased;
            count = wire.recv.read_buf(buffer) => count.unwrap_or(0),
            Ok(datagram) = wire.session.read_datagram(), if between => {
                wire.datagrams += 1;
                let frame = delimited(&datagram);
                buffer.extend_from_slice(&frame);
                frame.len()
            }
        }
    }
}

/// What came in.
#[derive(Debug, PartialEq)]
pub(crate) enum In {
    Frame(ServerFrame),
    Close(u16),
    End,
}

pub(crate) fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

pub(crate) fn submit_to(id: u8, users: &[&str], payload: &[u8]) -> Submit {
    let targets = users.iter().zip(0..).map(|(user, number)| Target {
        number,
        user: UserId::new(user).unwrap(),
        devices: DeviceFilter::All,
        device_set_version: None,
        payload: 0,
    });
    Submit {
        submit_id: SubmitId([id; 16]),
        attempt: 1,
        payloads: vec![Bytes::copy_from_slice(payload)],
        targets: targets.collect(),
        ttl: Millis(0),
        urgency: Urgency::Message,
        ephemeral: false,
    }
}

impl Client {
    /// The carrier's handshake and nothing else.
    pub(crate) async fn open(gateway: &Gateway) -> Self {
        let carrier = carrier();
        let wire = if carrier == Carrier::WebSocket {
            Wire::WebSocket(Self::upgrade(gateway).await)
        } else {
            Wire::Quic(Box::new(QuicWire::open(gateway, carrier).await))
        };
        Self { wire, buffer: Vec::new(), welcome: None, ended: false }
    }

    /// The QUIC half of the wire.
    pub(crate) fn quic(&mut self) -> &mut QuicWire {
        match &mut self.wire {
            Wire::WebSocket(_) => panic!("this is no QUIC"),
            Wire::Quic(wire) => wire,
        }
    }

    /// Says goodbye, and goes on listening.
    pub(crate) async fn part(&mut self) {
        match &mut self.wire {
            // A masked close with the code 1000.
            Wire::WebSocket(io) => io.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).await.unwrap(),
            Wire::Quic(wire) => wire.send.finish().unwrap(),
        }
    }

    /// Goes when all that was said has arrived.
    pub(crate) async fn leave(mut self) {
        if let Wire::Quic(wire) = &mut self.wire {
            wire.send.finish().unwrap();
            wire.send.stopped().await.unwrap();
        }
    }

    async fn upgrade(gateway: &Gateway) -> DuplexStream {
        let mut io = gateway.knock().await;
        let request = "GET /v1/connect HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Protocol: chappe.v1\r\n\r\n";
        io.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.expect("an answer to the handshake"));
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        io
    }

    pub(crate) fn hello(cluster: &Cluster, user: &str, name: &str) -> Hello {
        Hello {
            token: Secret(cluster.token(user, name)),
            device: device(name),
            resume_token: Bytes::new(),
            cursor: None,
            role: Role::Main,
        }
    }

    /// A welcomed session.
    pub(crate) async fn connect(cluster: &Cluster, gateway: &Gateway, user: &str, name: &str) -> Self {
        Self::connect_with(gateway, Self::hello(cluster, user, name)).await
    }

    pub(crate) async fn connect_with(gateway: &Gateway, hello: Hello) -> Self {
        let mut client = Self::open(gateway).await;
        client.send(&ClientFrame::Hello(hello)).await;
        match client.next().await {
            In::Frame(ServerFrame::Welcome(welcome)) => client.welcome = Some(welcome),
            other => panic!("no welcome but {other:?}"),
        }
        client
    }

    pub(crate) fn welcome(&self) -> &Welcome {
        self.welcome.as_ref().unwrap()
    }

    /// The hello of a client that was here and has this position.
    pub(crate) fn again(&self, cluster: &Cluster, user: &str, name: &str, seq: u64) -> Hello {
        let welcome = self.welcome();
        Hello {
            resume_token: welcome.resume_token.clone(),
            cursor: Some(Cursor { tag: welcome.tag, seq: Seq(seq) }),
            ..Self::hello(cluster, user, name)
        }
    }

    pub(crate) async fn send(&mut self, frame: &ClientFrame) {
        assert!(self.try_send_bytes(&frame.encode()).await, "the gateway hung up");
    }

    pub(crate) async fn try_send_bytes(&mut self, payload: &[u8]) -> bool {
        let out = match &self.wire {
            Wire::WebSocket(_) => masked(payload),
            Wire::Quic(_) => delimited(payload),
        };
        self.try_send_raw(&out).await
    }

    /// Bytes as they are, without any framing.
    pub(crate) async fn try_send_raw(&mut self, bytes: &[u8]) -> bool {
        self.wire.write(bytes).await
    }

    pub(crate) async fn ack(&mut self, upto: u64) {
        self.send(&ClientFrame::Ack { upto: Seq(upto) }).await;
    }

    pub(crate) async fn submit(&mut self, submit: Submit) -> SubmitResult {
        let id = submit.submit_id;
        self.send(&ClientFrame::Submit(submit)).await;
        loop {
            match self.next().await {
                In::Frame(ServerFrame::SubmitResult(result)) if result.submit_id == id => return result,
                In::Frame(_) => {}
                other => panic!("no result but {other:?}"),
            }
        }
    }

    pub(crate) async fn outcome(&mut self, submit: Submit) -> Outcome {
        self.submit(submit).await.results.remove(0).outcome
    }

    /// The next thing, or a panic after ten minutes of silence.
    pub(crate) async fn next(&mut self) -> In {
        tokio::time::timeout(Duration::from_secs(600), self.receive())
            .await
            .expect("something within ten minutes")
    }

    /// The next thing within a time.
    pub(crate) async fn next_within(&mut self, ms: u64) -> Option<In> {
        tokio::time::timeout(Duration::from_millis(ms), self.receive()).await.ok()
    }

    pub(crate) async fn deliver(&mut self) -> Deliver {
        loop {
            match self.next().await {
                In::Frame(ServerFrame::Deliver(deliver)) => return deliver,
                In::Frame(_) => {}
                other => panic!("no envelope but {other:?}"),
            }
        }
    }

    /// Everything up to the close; its code.
    pub(crate) async fn closed(&mut self) -> u16 {
        self.until_close().await.1
    }

    pub(crate) async fn until_close(&mut self) -> (Vec<ServerFrame>, u16) {
        let mut frames = Vec::new();
        loop {
            match self.next().await {
                In::Frame(frame) => frames.push(frame),
                In::Close(code) => return (frames, code),
                In::End => panic!("the stream ended without a close, after {frames:?}"),
            }
        }
    }

    /// Cancel-safe: what was read stays in the buffer.
    async fn receive(&mut self) -> In {
        loop {
            if let Some((opcode, payload)) = self.take_frame() {
                match opcode {
                    2 => return In::Frame(ServerFrame::decode(Bytes::from(payload)).expect("a good frame")),
                    8 => return In::Close(u16::from_be_bytes([payload[0], payload[1]])),
                    _ => continue,
                }
            }
            if self.wire.read(&mut self.buffer).await == 0 {
                let code = match &self.wire {
                    Wire::Quic(wire) if !self.ended => wire.code().await,
                    Wire::Quic(_) | Wire::WebSocket(_) => None,
                };
                self.ended = true;
                return code.map_or(In::End, In::Close);
            }
        }
    }

    /// At most so many bytes off the socket, and what came whole with them.
    pub(crate) async fn sip(&mut self, bytes_max: usize) -> Vec<In> {
        let mut some = Vec::with_capacity(bytes_max);
        let _ = tokio::time::timeout(Duration::from_millis(1), self.wire.read_at_most(&mut some)).await;
        self.buffer.extend_from_slice(&some);
        let mut events = Vec::new();
        while let Some((opcode, payload)) = self.take_frame() {
            events.push(match opcode {
                8 => In::Close(u16::from_be_bytes([payload[0], payload[1]])),
                _ => In::Frame(ServerFrame::decode(Bytes::from(payload)).expect("a good frame")),
            });
        }
        events
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let bytes = &self.buffer;
        if matches!(self.wire, Wire::Quic(_)) {
            let mut rest = &bytes[..];
            let length = usize::try_from(decode_varint(&mut rest).ok()?).unwrap();
            let head = bytes.len() - rest.len();
            let payload = bytes.get(head..head + length)?.to_vec();
            self.buffer.drain(..head + length);
            return Some((2, payload));
        }
        let short = usize::from(*bytes.get(1)?);
        let (head, length) = match short {
            126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
            127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())).unwrap()),
            n => (2, n),
        };
        let payload = bytes.get(head..head + length)?.to_vec();
        let opcode = bytes[0] & 15;
        self.buffer.drain(..head + length);
        Some((opcode, payload))
    }
}

/// What a Hello is answered with: the code of the close; 0: a Welcome.
pub(crate) async fn code(gateway: &Gateway, hello: Hello) -> u16 {
    let mut client = Client::open(gateway).await;
    client.send(&ClientFrame::Hello(hello)).await;
    loop {
        match client.next().await {
            In::Frame(ServerFrame::Welcome(_)) => return 0,
            In::Frame(_) => {}
            In::Close(code) => return code,
            In::End => panic!("it ended without a word"),
        }
    }
}

/// One WebSocket message of a client.
pub(crate) fn masked(payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x82];
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | u8::try_from(n).unwrap()),
        n @ 126..=65_535 => {
            out.push(0x80 | 0x7e);
            out.extend_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
        }
        n => {
            out.push(0x80 | 0x7f);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    let mask = [1, 2, 3, 4];
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// One length-delimited frame, by the library that protobuf comes from.
pub(crate) fn delimited(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(payload.len() as u64, &mut out);
    out.extend_from_slice(payload);
    out
}
