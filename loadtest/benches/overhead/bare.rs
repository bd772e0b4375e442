//! The least that a client of the protocol can be: a socket, some submits in flight, an ack now and then. It writes nothing down.

use crate::Options;
use crate::server::{read, size, write};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf, Bytes, BytesMut};
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::frame::{ClientFrame, Hello, Role, Secret, ServerFrame, Submit, Target};
use chappe_protocol::id::{DeviceId, Seq, SubmitId, UserId};
use chappe_protocol::time::Millis;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Submits of one connection that are not answered; the SDK has as many to one recipient.
const IN_FLIGHT: u64 = 16;
const ACK_EVERY: u64 = 16;

/// Submits accepted per second.
pub(crate) async fn drive(options: &Options, address: SocketAddr, round: usize) -> f64 {
    let users = u64::from(options.users);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (accepted, all) = (Arc::new(AtomicU64::new(0)), Arc::new(Barrier::new(options.users as usize + 1)));
    for user in 0..users {
        let one = One {
            name: format!("b{round}-{user}"),
            to: UserId::new(&format!("b{round}-{}", (user + 1) % users)).unwrap(),
            payload: vec![7; options.payload].into(),
            accepted: Arc::clone(&accepted),
            number: user << 40,
        };
        let (stop, all) = (stop.clone(), Arc::clone(&all));
        tasks.spawn(async move { stop.run_until_cancelled(one.talk(address, all)).await });
    }
    all.wait().await;
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let count = accepted.load(Ordering::Relaxed);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    let rate = count as f64 / options.seconds as f64;
    rate
}

struct One {
    name: String,
    to: UserId,
    payload: Bytes,
    accepted: Arc<AtomicU64>,
    number: u64,
}

impl One {
    async fn talk(mut self, address: SocketAddr, all: Arc<Barrier>) {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let head = b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chappe.v1\r\n\r\n";
        write(&socket, head).await;
        let mut input = BytesMut::new();
        let end = loop {
            if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            read(&socket, &mut input).await.unwrap();
        };
        input.advance(end);
        let claims = URL_SAFE_NO_PAD.encode(format!("{{\"sub\":\"{}\"}}", self.name));
        let hello = Hello {
            token: Secret(format!("x.{claims}.x")),
            device: DeviceId::new("bare").unwrap(),
            resume_token: Bytes::new(),
            cursor: None,
            role: Role::Main,
        };
        send(&socket, &ClientFrame::Hello(hello)).await;
        let (mut ready, mut unacked) = (false, 0);
        loop {
            while let Some((head, length)) = size(&input, false)
                && input.len() >= head + length
            {
                input.advance(head);
                match ServerFrame::decode(input.split_to(length).freeze()).unwrap() {
                    ServerFrame::BacklogEnd { .. } if !ready => {
                        ready = true;
                        all.wait().await;
                        for _ in 0..IN_FLIGHT {
                            self.submit(&socket).await;
                        }
                    }
                    ServerFrame::SubmitResult(_) => {
                        self.accepted.fetch_add(1, Ordering::Relaxed);
                        self.submit(&socket).await;
                    }
                    ServerFrame::Deliver(deliver) => {
                        unacked += 1;
                        if unacked == ACK_EVERY {
                            unacked = 0;
                            send(&socket, &ClientFrame::Ack { upto: Seq(deliver.seq.0) }).await;
                        }
                    }
                    ServerFrame::Welcome(_)
                    | ServerFrame::BacklogEnd { .. }
                    | ServerFrame::Truncated { .. }
                    | ServerFrame::Ephemeral { .. }
                    | ServerFrame::GoAway(_)
                    | ServerFrame::Error(_)
                    | ServerFrame::Pong { .. }
                    | ServerFrame::Reply { .. } => {}
                }
            }
            if read(&socket, &mut input).await.is_none() {
                return;
            }
        }
    }

    async fn submit(&mut self, socket: &TcpStream) {
        self.number += 1;
        let mut id = [0; 16];
        id[8..].copy_from_slice(&self.number.to_be_bytes());
        let target = Target {
            number: 0,
            user: self.to.clone(),
            devices: DeviceFilter::All,
            device_set_version: None,
            payload: 0,
        };
        let submit = Submit {
            submit_id: SubmitId(id),
            attempt: 1,
            payloads: vec![self.payload.clone()],
            targets: vec![target],
            ttl: Millis(0),
            urgency: Urgency::default(),
            ephemeral: false,
        };
        send(socket, &ClientFrame::Submit(submit)).await;
    }
}

async fn send(socket: &TcpStream, frame: &ClientFrame) {
    let body = frame.encode();
    let mut out = Vec::with_capacity(body.len() + 8);
    out.push(0x82);
    match u8::try_from(body.len()) {
        Ok(short) if short < 126 => out.push(0x80 | short),
        _ => {
            out.push(0x80 | 0x7e);
            out.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        }
    }
    // A mask of zeros leaves the bytes as they are.
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&body);
    write(socket, &out).await;
}
