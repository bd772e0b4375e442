//! Chappe: WebSocket and the frames of `chappe.v1`. **Invariant:** every delivery is acknowledged; one Ack covers what came in 20 ms.

use super::{Event, Speaker, Who};
use bytes::{Buf, Bytes, BytesMut};
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::frame::{ClientFrame, Hello, Limits, Role, Secret, ServerFrame, Submit, Target};
use chappe_protocol::id::{DeviceId, Seq, SubmitId, UserId};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Millis;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const UPGRADE: &[u8] = b"GET /v1/connect HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chappe.v1\r\n\r\n";

/// The resume tokens that the devices keep, by their numbers.
static KEPT: Mutex<BTreeMap<usize, Bytes>> = Mutex::new(BTreeMap::new());

pub struct Chappe {
    who: Who,
    token: Arc<str>,
    upgraded: bool,
    submits: u64,
    unanswered: usize,
    /// Everybody it sends to, in lists that a submit may hold.
    targets: Vec<Vec<Target>>,
    unacked: Option<Seq>,
}

impl Chappe {
    pub fn new(who: Who, token: Arc<str>) -> Self {
        let most = Limits::default().targets_max as usize;
        let numbers: Vec<usize> = who.sends_to.clone().collect();
        let targets = numbers.chunks(most).map(|some| some.iter().copied().zip(0..).map(target).collect());
        Self {
            targets: targets.collect(),
            who,
            token,
            upgraded: false,
            submits: 0,
            unanswered: 0,
            unacked: None,
        }
    }
}

fn target((user, number): (usize, u32)) -> Target {
    let user = UserId::new(&format!("u{user}")).unwrap();
    Target { number, user, devices: DeviceFilter::All, device_set_version: None, payload: 0 }
}

/// One binary message; a mask of zeros leaves it as it is.
fn put(frame: &ClientFrame, out: &mut Vec<u8>) {
    let body = frame.encode();
    out.push(0x82);
    match u16::try_from(body.len()) {
        Ok(short @ 0..126) => out.push(0x80 | u8::try_from(short).unwrap()),
        Ok(medium) => {
            out.push(0x80 | 0x7e);
            out.extend(medium.to_be_bytes());
        }
        Err(_) => {
            out.push(0x80 | 0x7f);
            out.extend((body.len() as u64).to_be_bytes());
        }
    }
    out.extend([0; 4]);
    out.extend_from_slice(&body);
}

/// Takes one whole message.
fn message(input: &mut BytesMut) -> Option<Bytes> {
    let (head, length) = match *input.get(1)? {
        126 => (4, u64::from(u16::from_be_bytes(input.get(2..4)?.try_into().unwrap()))),
        127 => (10, u64::from_be_bytes(input.get(2..10)?.try_into().unwrap())),
        short => (2, u64::from(short)),
    };
    assert_eq!(input[0], 0x82, "the server sent no whole binary message: a close?");
    let length = usize::try_from(length).unwrap();
    if input.len() < head + length {
        return None;
    }
    input.advance(head);
    Some(input.split_to(length).freeze())
}

impl Speaker for Chappe {
    fn open(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(UPGRADE);
    }

    fn take(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Option<Event> {
        if !self.upgraded {
            let end = input.windows(4).position(|four| four == b"\r\n\r\n")?;
            assert!(input.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(input));
            input.advance(end + 4);
            self.upgraded = true;
            let hello = Hello {
                token: Secret((*self.token).to_owned()),
                device: DeviceId::new("peer").unwrap(),
                resume_token: KEPT.lock().unwrap().get(&self.who.number).cloned().unwrap_or_default(),
                cursor: None,
                role: Role::Main,
            };
            put(&ClientFrame::Hello(hello), out);
            return Some(Event::Nothing);
        }
        Some(match ServerFrame::decode(message(input)?).expect("a frame") {
            ServerFrame::BacklogEnd { .. } => Event::Ready,
            ServerFrame::Deliver(deliver) => {
                self.unacked = Some(deliver.seq);
                Event::Delivered
            }
            ServerFrame::SubmitResult(answer) => {
                let bad = answer.results.iter().find(|result| result.outcome != Outcome::Accepted);
                assert!(bad.is_none(), "not accepted: {bad:?}");
                self.unanswered -= 1;
                Event::Accepted
            }
            ServerFrame::Welcome(welcome) => {
                // A slice would keep all that was read with it.
                let token = Bytes::copy_from_slice(&welcome.resume_token);
                KEPT.lock().unwrap().insert(self.who.number, token);
                Event::Nothing
            }
            ServerFrame::Pong { .. } => Event::Nothing,
            other @ (ServerFrame::Truncated { .. }
            | ServerFrame::Ephemeral { .. }
            | ServerFrame::GoAway(_)
            | ServerFrame::Error(_)
            | ServerFrame::Reply { .. }) => panic!("Chappe: {other:?}"),
        })
    }

    fn may_publish(&self) -> bool {
        self.unanswered + self.targets.len() <= Limits::default().submits_in_flight_max as usize
    }

    fn publish(&mut self, payload: &Bytes, out: &mut Vec<u8>) {
        for targets in &self.targets {
            self.submits += 1;
            self.unanswered += 1;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(self.who.number as u64).to_be_bytes());
            id[8..].copy_from_slice(&self.submits.to_be_bytes());
            let submit = Submit {
                submit_id: SubmitId(id),
                attempt: 1,
                payloads: vec![payload.clone()],
                targets: targets.clone(),
                ttl: Millis(0),
                urgency: Urgency::default(),
                ephemeral: false,
            };
            put(&ClientFrame::Submit(submit), out);
        }
    }

    fn owes(&self) -> bool {
        self.unacked.is_some()
    }

    fn settle(&mut self, out: &mut Vec<u8>) {
        if let Some(upto) = self.unacked.take() {
            put(&ClientFrame::Ack { upto }, out);
        }
    }
}
