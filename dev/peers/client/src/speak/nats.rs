//! NATS: core, and JetStream with its acknowledgements. **Invariant:** with JetStream every delivery is acknowledged by its own +ACK.

use super::{Event, Hears, Speaker, Who};
use bytes::{Buf, Bytes, BytesMut};
use std::io::Write;

/// Of the stream that JetStream keeps: beyond, it forgets the oldest.
const KEPT_MAX_BYTES: u64 = 2 << 30;
const CONNECT: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"0\"}\r\n";
/// Subscriptions by number: messages, and answers of JetStream.
const MESSAGES: u32 = 1;
const ANSWERS: u32 = 2;

pub struct Nats {
    first: Vec<u8>,
    to: String,
    /// What follows the subject of a PUB: where JetStream answers, or nothing.
    answers: String,
    /// Ready is JetStream's first answer, and not a PONG.
    asks: bool,
}

impl Nats {
    pub fn core(who: &Who) -> Self {
        let to = if who.sends_to.len() == 1 { format!("p.{}", who.sends_to.start) } else { "all".into() };
        let mut first = CONNECT.to_vec();
        match who.hears {
            Hears::Nothing => {}
            Hears::Own => write!(first, "SUB p.{} {MESSAGES}\r\n", who.number).unwrap(),
            Hears::All => write!(first, "SUB all {MESSAGES}\r\n").unwrap(),
        }
        first.extend_from_slice(b"PING\r\n");
        Self { first, to, answers: String::new(), asks: false }
    }

    /// Makes the stream, and is ready once it is there.
    pub fn stream_maker() -> Self {
        let body = format!(
            "{{\"name\":\"P\",\"subjects\":[\"p.*\"],\"storage\":\"file\",\"retention\":\"limits\",\"discard\":\"old\",\
             \"num_replicas\":1,\"max_bytes\":{KEPT_MAX_BYTES}}}"
        );
        Self::asking("maker", "$JS.API.STREAM.CREATE.P", &body)
    }

    /// A sender, or a receiver with a consumer of its own.
    pub fn jetstream(who: &Who) -> Self {
        let number = who.number;
        match who.hears {
            Hears::Own | Hears::All => {
                let body = format!(
                    "{{\"stream_name\":\"P\",\"config\":{{\"durable_name\":\"c{number}\",\"deliver_subject\":\"d.{number}\",\
                     \"filter_subject\":\"p.{number}\",\"ack_policy\":\"explicit\",\"deliver_policy\":\"all\",\
                     \"max_ack_pending\":1000}}}}"
                );
                let subject = format!("$JS.API.CONSUMER.DURABLE.CREATE.P.c{number}");
                let mut asking = Self::asking(&format!("r{number}"), &subject, &body);
                write!(asking.first, "SUB d.{number} {MESSAGES}\r\n").unwrap();
                asking
            }
            Hears::Nothing => {
                let mut first = CONNECT.to_vec();
                write!(first, "SUB _INBOX.s{number} {ANSWERS}\r\nPING\r\n").unwrap();
                let (to, answers) = (format!("p.{}", who.sends_to.start), format!(" _INBOX.s{number}"));
                Self { first, to, answers, asks: false }
            }
        }
    }

    fn asking(name: &str, subject: &str, body: &str) -> Self {
        let mut first = CONNECT.to_vec();
        write!(
            first,
            "SUB _INBOX.{name} {ANSWERS}\r\nPUB {subject} _INBOX.{name} {}\r\n{body}\r\n",
            body.len()
        )
        .unwrap();
        Self { first, to: String::new(), answers: String::new(), asks: true }
    }

    /// `MSG subject sid [reply] length`.
    fn message(&mut self, line: &str, body: &[u8], out: &mut Vec<u8>) -> Event {
        let words: Vec<&str> = line.split(' ').collect();
        if words[2] == "2" {
            let text = String::from_utf8_lossy(body);
            assert!(!text.contains("\"error\""), "JetStream: {text}");
            return if std::mem::take(&mut self.asks) { Event::Ready } else { Event::Accepted };
        }
        if let [_, _, _, reply, _] = words[..] {
            write!(out, "PUB {reply} 4\r\n+ACK\r\n").unwrap();
        }
        Event::Delivered
    }
}

impl Speaker for Nats {
    fn open(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.first);
    }

    fn take(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Option<Event> {
        let end = input.windows(2).position(|two| two == b"\r\n")?;
        if !input.starts_with(b"MSG ") {
            let line = input.split_to(end + 2);
            return Some(match &line[..4] {
                b"PONG" => Event::Ready,
                b"PING" => {
                    out.extend_from_slice(b"PONG\r\n");
                    Event::Nothing
                }
                b"INFO" | b"+OK\r" => Event::Nothing,
                _ => panic!("NATS: {}", String::from_utf8_lossy(&line)),
            });
        }
        let digits = input[..end].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let length: usize = std::str::from_utf8(&input[end - digits..end]).unwrap().parse().unwrap();
        if input.len() < end + 2 + length + 2 {
            return None;
        }
        let mut message = input.split_to(end + 2 + length + 2);
        let line = message.split_to(end);
        message.advance(2);
        Some(self.message(std::str::from_utf8(&line).unwrap(), &message[..length], out))
    }

    fn publish(&mut self, payload: &Bytes, out: &mut Vec<u8>) {
        write!(out, "PUB {}{} {}\r\n", self.to, self.answers, payload.len()).unwrap();
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }
}
