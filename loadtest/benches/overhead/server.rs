//! A server that does nothing but its part of the protocol: no store, no check, one write per frame.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::{Buf, Bytes, BytesMut};
use chappe_protocol::envelope::{Sender, Urgency};
use chappe_protocol::frame::{
    ClientFrame, Deliver, Limits, ServerFrame, SubmitResult, TargetResult, Welcome,
};
use chappe_protocol::id::{ConnectionId, CursorTag, EnvelopeId, Epoch, Seq, UserId};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::UnixMillis;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// A user who is connected; whoever writes to him holds his turn, so that slots leave in order.
struct Mailbox {
    socket: Arc<TcpStream>,
    head: AtomicU64,
    turn: tokio::sync::Mutex<()>,
}

type Mailboxes = Arc<Mutex<HashMap<String, Arc<Mailbox>>>>;

pub(crate) async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let (mailboxes, tasks) = (Mailboxes::default(), TaskTracker::new());
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        tasks.spawn(connection(Arc::new(socket), Arc::clone(&mailboxes)));
    }
}

async fn connection(socket: Arc<TcpStream>, mailboxes: Mailboxes) {
    let mut input = BytesMut::new();
    let Some(()) = upgrade(&socket, &mut input).await else { return };
    let mut me = None;
    loop {
        let Some(message) = message(&socket, &mut input).await else { return };
        match ClientFrame::decode(message).unwrap() {
            ClientFrame::Hello(hello) => {
                let claims = hello.token.0.split('.').nth(1).unwrap();
                let claims: serde_json::Value =
                    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
                let user = claims["sub"].as_str().unwrap().to_owned();
                let mailbox = Mailbox {
                    socket: Arc::clone(&socket),
                    head: AtomicU64::new(0),
                    turn: tokio::sync::Mutex::default(),
                };
                mailboxes.lock().unwrap().insert(user.clone(), Arc::new(mailbox));
                me = Some(Sender { user: UserId::new(&user).unwrap(), device: hello.device });
                let limits = Limits {
                    frames_per_second_max: 1_000_000,
                    frames_burst_max: 1_000_000,
                    ..Limits::default()
                };
                let welcome = Welcome {
                    session: ConnectionId([1; 16]),
                    epoch: Epoch(1),
                    from: Seq(0),
                    tag: CursorTag([1; 16]),
                    resume_token: Bytes::from_static(b"none"),
                    limits,
                    resumed: false,
                    server_time: UnixMillis(0),
                };
                send(&socket, &ServerFrame::Welcome(welcome)).await;
                send(&socket, &ServerFrame::BacklogEnd { upto: Seq(0) }).await;
            }
            ClientFrame::Submit(submit) => {
                let mut results = Vec::new();
                for target in &submit.targets {
                    let mailbox = mailboxes.lock().unwrap().get(target.user.as_str()).cloned();
                    let mut id = submit.submit_id.0;
                    id[0] ^= u8::try_from(target.number).unwrap_or(0);
                    let envelope_id = EnvelopeId(id);
                    if let Some(mailbox) = &mailbox {
                        let _turn = mailbox.turn.lock().await;
                        let seq = mailbox.head.fetch_add(1, Ordering::Relaxed) + 1;
                        let deliver = Deliver {
                            seq: Seq(seq),
                            prev: Seq(seq - 1),
                            envelope_id,
                            sender: me.clone(),
                            at: UnixMillis(0),
                            expires_at: UnixMillis(1 << 41),
                            payload: submit.payloads[target.payload].clone(),
                            urgency: Urgency::default(),
                        };
                        send(&mailbox.socket, &ServerFrame::Deliver(deliver)).await;
                    }
                    let outcome = if mailbox.is_some() { Outcome::Accepted } else { Outcome::UnknownUser };
                    results.push(TargetResult {
                        number: target.number,
                        outcome,
                        envelope_id: Some(envelope_id),
                    });
                }
                let result = SubmitResult { submit_id: submit.submit_id, attempt: submit.attempt, results };
                send(&socket, &ServerFrame::SubmitResult(result)).await;
            }
            ClientFrame::Ping { nonce } => {
                let name = me.as_ref().unwrap().user.as_str().to_owned();
                let upto = Seq(mailboxes.lock().unwrap()[&name].head.load(Ordering::Relaxed));
                send(&socket, &ServerFrame::Pong { nonce, upto }).await;
            }
            ClientFrame::Ack { .. } | ClientFrame::Refresh { .. } | ClientFrame::Request { .. } => {}
        }
    }
}

async fn upgrade(socket: &TcpStream, input: &mut BytesMut) -> Option<()> {
    let end = loop {
        if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        read(socket, input).await?;
    };
    let head = input.split_to(end);
    let head = String::from_utf8_lossy(&head).into_owned();
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
    })?;
    let accept =
        digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: chappe.v1\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(accept)
    );
    write(socket, answer.as_bytes()).await;
    Some(())
}

/// The next message of a client; `None`: it has ended.
async fn message(socket: &TcpStream, input: &mut BytesMut) -> Option<Bytes> {
    loop {
        if let Some((head, length)) = size(input, true)
            && input.len() >= head + length
        {
            let opcode = input[0] & 15;
            let mask: [u8; 4] = input[head - 4..head].try_into().unwrap();
            input.advance(head);
            let mut body = input.split_to(length);
            body.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
            match opcode {
                2 => return Some(body.freeze()),
                8 => return None,
                _ => continue,
            }
        }
        read(socket, input).await?;
    }
}

/// Bytes of a frame's head, and of its body; `None`: the head is not there yet.
pub(crate) fn size(input: &[u8], masked: bool) -> Option<(usize, usize)> {
    let short = usize::from(input.get(1)? & 127);
    let (head, length) = match short {
        126 => (4, usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(input.get(2..10)?.try_into().ok()?)).ok()?),
        length => (2, length),
    };
    let head = head + if masked { 4 } else { 0 };
    (input.len() >= head).then_some((head, length))
}

pub(crate) async fn read(socket: &TcpStream, input: &mut BytesMut) -> Option<()> {
    input.reserve(16 * 1024);
    loop {
        socket.readable().await.ok()?;
        match socket.try_read_buf(input) {
            Ok(0) => return None,
            Ok(_) => return Some(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

async fn send(socket: &TcpStream, frame: &ServerFrame) {
    let length = frame.encoded_len();
    let mut out = Vec::with_capacity(length + 4);
    out.push(0x82);
    match u8::try_from(length) {
        Ok(short) if short < 126 => out.push(short),
        _ => {
            out.push(126);
            out.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.encode_into(&mut out);
    write(socket, &out).await;
}

pub(crate) async fn write(socket: &TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match socket.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if socket.writable().await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
