//! The one frame that a gateway writes by the million, written by hand.
//! **Invariant:** byte for byte what the generated types would write (a property checks it), with one copy of the payload:
//! the one into the out buffer.

use super::encode;
use super::{Deliver, ServerFrame};
use crate::envelope::Sender;
use alloc::vec::Vec;

/// Protobuf's wire types.
const VARINT: u64 = 0;
const LENGTH_DELIMITED: u64 = 2;
/// `ServerFrame.deliver`.
const FRAME_FIELD: u64 = 2;

/// Where bytes go: into a buffer, or only into a count.
trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts what would be written.
struct Count(usize);

impl Sink for Count {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Deliver {
    /// Appends the bytes of [`ServerFrame::Deliver`] to `out`, which grows once at most. Nothing is allocated beside `out`, no
    /// string is cloned, and the payload is copied once.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let body = count(|sink| put_fields(self, sink));
        out.reserve(count(|sink| put_head(FRAME_FIELD, body, sink)) + body);
        put_head(FRAME_FIELD, body, out);
        put_fields(self, out);
    }

    /// How many bytes [`Deliver::encode_into`] appends; cheap.
    pub fn encoded_len(&self) -> usize {
        let body = count(|sink| put_fields(self, sink));
        count(|sink| put_head(FRAME_FIELD, body, sink)) + body
    }
}

impl ServerFrame {
    /// How many bytes [`ServerFrame::encode_into`] appends; cheap for a [`Deliver`], as dear as encoding for the others.
    pub fn encoded_len(&self) -> usize {
        if let Self::Deliver(deliver) = self {
            deliver.encoded_len()
        } else {
            prost::Message::encoded_len(&self.to_wire())
        }
    }
}

fn count(write: impl FnOnce(&mut Count)) -> usize {
    let mut count = Count(0);
    write(&mut count);
    count.0
}

/// The fields of the message, by the numbers of the schema.
fn put_fields(deliver: &Deliver, sink: &mut impl Sink) {
    put_number(1, deliver.seq.0, sink);
    put_number(2, deliver.prev.0, sink);
    put_bytes(3, deliver.envelope_id.as_bytes(), sink);
    if let Some(sender) = &deliver.sender {
        put_head(4, count(|sink| put_sender(sender, sink)), sink);
        put_sender(sender, sink);
    }
    put_number(5, deliver.at.0, sink);
    put_number(6, deliver.expires_at.0, sink);
    if !deliver.payload.is_empty() {
        put_bytes(7, &deliver.payload, sink);
    }
    // The numbers of an enum are its discriminants, and none of ours is negative.
    put_number(8, u64::from((encode::urgency(deliver.urgency) as i32).unsigned_abs()), sink);
}

fn put_sender(sender: &Sender, sink: &mut impl Sink) {
    put_bytes(1, sender.user.as_str().as_bytes(), sink);
    put_bytes(2, sender.device.as_str().as_bytes(), sink);
}

/// A number; 0 is left out, as proto3 has it.
fn put_number(field: u64, value: u64, sink: &mut impl Sink) {
    if value != 0 {
        put_varint(field << 3 | VARINT, sink);
        put_varint(value, sink);
    }
}

fn put_bytes(field: u64, bytes: &[u8], sink: &mut impl Sink) {
    put_head(field, bytes.len(), sink);
    sink.put(bytes);
}

/// Key and length of a length-delimited field.
fn put_head(field: u64, length: usize, sink: &mut impl Sink) {
    put_varint(field << 3 | LENGTH_DELIMITED, sink);
    put_varint(length as u64, sink);
}

/// Base 128, least significant group first.
fn put_varint(mut value: u64, sink: &mut impl Sink) {
    let mut bytes = [0; 10];
    let mut length = 0;
    loop {
        let group = (value & 0x7f) as u8;
        value >>= 7;
        bytes[length] = if value == 0 { group } else { group | 0x80 };
        length += 1;
        if value == 0 {
            break;
        }
    }
    sink.put(&bytes[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Urgency;
    use crate::id::{DeviceId, EnvelopeId, Seq, UserId};
    use crate::time::UnixMillis;
    use bytes::Bytes;
    use prost::Message;

    /// The edges of varints and lengths, with and without everything that can be left out.
    #[test]
    fn the_fast_path_writes_what_the_generated_types_write() {
        let sender =
            || Sender { user: UserId::new("anna 漢").unwrap(), device: DeviceId::new("phone").unwrap() };
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            for length in [0, 1, 90, 127, 128, 16_200, 16_384, 98_304] {
                for (sender, urgency) in [
                    (None, Urgency::Background),
                    (Some(sender()), Urgency::Message),
                    (Some(sender()), Urgency::Call),
                ] {
                    let deliver = Deliver {
                        seq: Seq(number),
                        prev: Seq(number.saturating_sub(1)),
                        envelope_id: EnvelopeId([7; 16]),
                        sender,
                        at: UnixMillis(number),
                        expires_at: UnixMillis(number / 2),
                        payload: Bytes::from(alloc::vec![9; length]),
                        urgency,
                    };
                    let frame = ServerFrame::Deliver(deliver);
                    let expected = frame.to_wire().encode_to_vec();
                    assert!(frame.encode() == expected, "seq {number}, {length} bytes");
                    assert_eq!(frame.encoded_len(), expected.len());
                }
            }
        }
    }
}
