//! Messages into bytes for a client (RFC 6455 §5, server side). **Invariant:** the buffer holds whole frames in the
//! order they were queued, nothing follows a close, and an empty outbox owns no memory.

use crate::transport::unsent::Unsent;

/// A control frame carries at most this much (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// The writing half of the codec; a value without I/O.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    unsent: Unsent,
    /// The last ping that could not be answered at once.
    pong: Option<Vec<u8>>,
    pongs_queued: u8,
    pongs_max: u8,
    closed: bool,
}

impl Outbox {
    pub(super) fn new(pongs_max: u8) -> Self {
        Self { pongs_max, ..Self::default() }
    }

    /// Queues one data message: what `encode` appends.
    pub(super) fn message(&mut self, opcode: u8, encode: &mut dyn FnMut(&mut Vec<u8>)) {
        if self.closed {
            return;
        }
        // The middle header size is assumed; the two others move the payload once it is known.
        let bytes = self.unsent.buffer();
        let start = bytes.len();
        bytes.extend_from_slice(&[0x80 | opcode, 126, 0, 0]);
        let body = bytes.len();
        encode(bytes);
        debug_assert!(bytes.len() >= body, "an encoder only appends");
        bytes.resize(bytes.len().max(body), 0);
        let length = bytes.len() - body;
        if let Ok(short @ 0..=125) = u8::try_from(length) {
            bytes[start + 1] = short;
            bytes.drain(start + 2..body);
        } else if let Ok(middle) = u16::try_from(length) {
            bytes[start + 2..body].copy_from_slice(&middle.to_be_bytes());
        } else {
            bytes[start + 1] = 127;
            bytes.splice(start + 2..body, (length as u64).to_be_bytes());
        }
    }

    /// Answers a ping, now or, where enough pongs wait, once they are gone.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        if self.closed {
            return;
        }
        if self.pongs_queued < self.pongs_max {
            self.pongs_queued += 1;
            self.control(0x8a, payload);
        } else {
            let kept = self.pong.get_or_insert_default();
            kept.clear();
            kept.extend_from_slice(payload);
        }
    }

    /// Queues the goodbye. `None`: one without a code.
    pub(super) fn close(&mut self, code: Option<u16>, reason: &str) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.pong = None;
        let mut payload = Vec::new();
        if let Some(code) = code {
            payload.extend_from_slice(&code.to_be_bytes());
            payload
                .extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)]);
        }
        self.control(0x88, &payload);
    }

    fn control(&mut self, first: u8, payload: &[u8]) {
        let payload = &payload[..payload.len().min(CONTROL_BYTES_MAX)];
        let bytes = self.unsent.buffer();
        bytes.extend_from_slice(&[first, u8::try_from(payload.len()).unwrap_or(0)]);
        bytes.extend_from_slice(payload);
    }

    /// Bytes that wait, a held-back pong included.
    pub(super) fn len(&self) -> usize {
        self.unsent.len() + self.pong.as_ref().map_or(0, |payload| 2 + payload.len())
    }

    /// Bytes of heap it holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.unsent.held_bytes() + self.pong.as_ref().map_or(0, Vec::capacity)
    }

    /// What to write next; empty when nothing waits.
    pub(super) fn unsent(&self) -> &[u8] {
        self.unsent.front()
    }

    /// Takes note that the first bytes of [`unsent`](Self::unsent) are written.
    pub(super) fn advance(&mut self, written: usize) {
        self.unsent.advance(written);
        if self.unsent.len() == 0 {
            self.pongs_queued = 0;
            if let Some(payload) = self.pong.take() {
                self.pong(&payload);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(outbox: &Outbox) -> Vec<u8> {
        outbox.unsent().to_vec()
    }

    #[test]
    fn every_header_size_is_written() {
        for (length, header) in [
            (0, vec![0x82, 0]),
            (125, vec![0x82, 125]),
            (126, vec![0x82, 126, 0, 126]),
            (65_535, vec![0x82, 126, 255, 255]),
            (65_536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut outbox = Outbox::new(1);
            outbox.pong(b"before");
            let payload = vec![7; length];
            outbox.message(2, &mut |out| out.extend_from_slice(&payload));
            outbox.pong(b"held back");
            let bytes = all(&outbox);
            assert_eq!(bytes[..8], *b"\x8a\x06before");
            assert_eq!(bytes[8..8 + header.len()], header);
            assert_eq!(bytes[8 + header.len()..], payload);
        }
    }

    #[test]
    fn one_pong_waits_and_the_last_ping_is_answered() {
        let mut outbox = Outbox::new(1);
        for n in 0..=99_u8 {
            outbox.pong(&[n]);
        }
        assert_eq!(all(&outbox), [0x8a, 1, 0]);
        assert_eq!(outbox.len(), 6);
        outbox.advance(2);
        assert_eq!(all(&outbox), [0]);
        outbox.advance(1);
        assert_eq!(all(&outbox), [0x8a, 1, 99]);
        outbox.advance(3);
        assert_eq!((outbox.len(), outbox.held_bytes()), (0, 0));
    }

    #[test]
    fn nothing_follows_a_close_and_its_reason_is_cut_between_characters() {
        let mut outbox = Outbox::new(1);
        outbox.close(Some(3500), &"é".repeat(100));
        let bytes = all(&outbox);
        assert_eq!(bytes[..4], [0x88, 124, 0x0d, 0xac]);
        assert_eq!(std::str::from_utf8(&bytes[4..]).expect("whole characters").chars().count(), 61);
        outbox.message(2, &mut |out| out.push(1));
        outbox.pong(b"");
        outbox.close(Some(1000), "");
        assert_eq!(all(&outbox), bytes);
    }
}
