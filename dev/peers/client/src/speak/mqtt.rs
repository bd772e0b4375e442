//! MQTT 3.1.1: CONNECT, SUBSCRIBE, PUBLISH and PUBACK. **Invariant:** with QoS 1 every delivery is acknowledged by its own PUBACK.

use super::{Event, Hears, Speaker, Who};
use bytes::{Buf, Bytes, BytesMut};

/// Longer than any measurement: no PINGREQ is needed.
const KEEP_ALIVE_SECONDS: u16 = 3600;

pub struct Mqtt {
    who: Who,
    qos: u8,
    to: String,
    packet: u16,
}

fn topic(number: usize) -> String {
    format!("p/{number}")
}

const ALL: &str = "all";

impl Mqtt {
    pub fn new(who: Who, qos: u8) -> Self {
        let to = if who.sends_to.len() == 1 { topic(who.sends_to.start) } else { ALL.into() };
        Self { who, qos, to, packet: 0 }
    }

    fn next_packet(&mut self) -> [u8; 2] {
        self.packet = self.packet % u16::MAX + 1;
        self.packet.to_be_bytes()
    }

    fn subscribe(&mut self, topic: &str, out: &mut Vec<u8>) {
        let packet = self.next_packet();
        put_head(0x82, 2 + 2 + topic.len() + 1, out);
        out.extend(packet);
        put_text(topic, out);
        out.push(self.qos);
    }
}

fn put_head(kind: u8, mut length: usize, out: &mut Vec<u8>) {
    out.push(kind);
    loop {
        let group = u8::try_from(length % 128).unwrap();
        length /= 128;
        out.push(if length == 0 { group } else { group | 0x80 });
        if length == 0 {
            return;
        }
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend(text.as_bytes());
}

/// Bytes of the fixed header and of the rest, once the header is there.
fn lengths(input: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (place, &byte) in input.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((place + 2, length));
        }
    }
    assert!(input.len() < 5, "no MQTT");
    None
}

impl Speaker for Mqtt {
    fn open(&mut self, out: &mut Vec<u8>) {
        let id = format!("u{}", self.who.number);
        put_head(0x10, 10 + 2 + id.len(), out);
        put_text("MQTT", out);
        // Level 4 is 3.1.1; a clean session.
        out.extend([4, 2]);
        out.extend(KEEP_ALIVE_SECONDS.to_be_bytes());
        put_text(&id, out);
    }

    fn take(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Option<Event> {
        let (head, length) = lengths(input)?;
        if input.len() < head + length {
            return None;
        }
        let kind = input[0];
        input.advance(head);
        let mut body = input.split_to(length);
        Some(match kind >> 4 {
            2 => {
                assert_eq!(body[1], 0, "CONNACK: refused");
                match self.who.hears {
                    Hears::Nothing => return Some(Event::Ready),
                    Hears::Own => self.subscribe(&topic(self.who.number), out),
                    Hears::All => self.subscribe(ALL, out),
                }
                Event::Nothing
            }
            3 => {
                if kind & 0x06 == 0x02 {
                    let topic = usize::from(body.get_u16());
                    body.advance(topic);
                    out.extend([0x40, 2, body[0], body[1]]);
                }
                Event::Delivered
            }
            4 => Event::Accepted,
            9 => {
                assert_eq!(body[2], self.qos, "SUBACK: refused");
                Event::Ready
            }
            other => panic!("an MQTT packet of kind {other}"),
        })
    }

    fn publish(&mut self, payload: &Bytes, out: &mut Vec<u8>) {
        let packet = (self.qos > 0).then(|| self.next_packet());
        put_head(0x30 | self.qos << 1, 2 + self.to.len() + packet.map_or(0, |_| 2) + payload.len(), out);
        put_text(&self.to, out);
        out.extend(packet.into_iter().flatten());
        out.extend_from_slice(payload);
    }
}
