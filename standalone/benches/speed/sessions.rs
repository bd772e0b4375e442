//! Sessions over bare sockets: attached with a real token, then read by nobody but a counter.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use chappe_node::clock::SystemWorld;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::frame::{ClientFrame, Hello, Role, Secret, Submit, Target};
use chappe_protocol::id::{DeviceId, SubmitId, UserId};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_standalone::development::DataDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};

use crate::support::{Dial, Io};

/// Messages that arrived, at all sessions.
pub(crate) type Counter = Arc<AtomicUsize>;

/// The name of a session's user.
pub(crate) fn user(number: usize) -> UserId {
    UserId::new(&format!("speed-{number}")).unwrap()
}

/// Connects, says Hello, and hears Welcome and BacklogEnd.
pub(crate) async fn attach(port: u16, data: &DataDir, world: &SystemWorld, number: usize) -> Box<dyn Io> {
    let user = user(number);
    let token = chappe_standalone::token::issue(data, user.as_str(), "phone", 3600, world.wall()).unwrap();
    let mut socket = Dial::plain(port, true).connect(number).await;
    let hello = Hello {
        token: Secret(token),
        device: DeviceId::new("phone").unwrap(),
        resume_token: Bytes::new(),
        cursor: None,
        role: Role::Main,
    };
    socket.write_all(&framed(&ClientFrame::Hello(hello))).await.unwrap();
    let (mut input, mut heard) = (Vec::new(), 0);
    while heard < 2 {
        assert_ne!(socket.read_buf(&mut input).await.unwrap(), 0, "the server closed");
        heard += take(&mut input);
    }
    socket
}

/// Counts what arrives at a session, for as long as it lives.
pub(crate) async fn count(mut socket: ReadHalf<Box<dyn Io>>, counter: Counter) {
    let mut input = Vec::with_capacity(1024);
    while socket.read_buf(&mut input).await.is_ok_and(|count| count > 0) {
        counter.fetch_add(take(&mut input), Ordering::Relaxed);
    }
}

/// An envelope that is not stored, to these.
pub(crate) fn ephemeral(world: &SystemWorld, bytes: usize, to: std::ops::Range<usize>) -> Vec<u8> {
    let target = |(place, number): (usize, usize)| Target {
        number: u32::try_from(place).unwrap(),
        user: user(number),
        devices: DeviceFilter::All,
        device_set_version: None,
        payload: 0,
    };
    let submit = Submit {
        submit_id: SubmitId::random(world),
        attempt: 1,
        payloads: vec![vec![7; bytes].into()],
        targets: to.enumerate().map(target).collect(),
        ttl: Millis(0),
        urgency: Urgency::Message,
        ephemeral: true,
    };
    framed(&ClientFrame::Submit(submit))
}

/// Takes the whole messages out of these bytes; how many there were.
fn take(input: &mut Vec<u8>) -> usize {
    let (mut at, mut count) = (0, 0);
    while let Some(length) = message_bytes(&input[at..]) {
        (at, count) = (at + length, count + 1);
    }
    input.drain(..at);
    count
}

/// The length of the message at the beginning, if all of it is there.
fn message_bytes(input: &[u8]) -> Option<usize> {
    let short = usize::from(input.get(1)? & 127);
    let (head, length) = match short {
        126 => (4, usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(input.get(2..10)?.try_into().ok()?)).ok()?),
        length => (2, length),
    };
    (input.len() >= head + length).then_some(head + length)
}

/// One masked binary message; a mask of zeros leaves it as it is.
fn framed(frame: &ClientFrame) -> Vec<u8> {
    let frame = frame.encode();
    let mut message = vec![0x82];
    match u16::try_from(frame.len()) {
        Ok(short @ 0..126) => message.push(0x80 | u8::try_from(short).unwrap()),
        Ok(medium) => {
            message.push(0x80 | 0x7e);
            message.extend(medium.to_be_bytes());
        }
        Err(_) => {
            message.push(0x80 | 127);
            message.extend((frame.len() as u64).to_be_bytes());
        }
    }
    message.extend([0; 4]);
    message.extend(frame);
    message
}
