//! Frames in a byte stream: each stands behind its length as a base-128 varint, protobuf's length-delimited form.
//! **Invariant:** only what is incomplete is kept, and memory grows with bytes that came, never with a length that was
//! announced.

use crate::transport::Violation;
use chappe_protocol::delimited::{LengthError, read_length, write_length};

fn violation(error: LengthError) -> Violation {
    match error {
        LengthError::TooLong => Violation { code: 1002, reason: "a frame's length takes more than 4 bytes" },
        LengthError::TooLarge => Violation { code: 1009, reason: "a frame is beyond the limit" },
    }
}

/// The reading half; a value without I/O.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The beginning of a frame, its length included.
    partial: Vec<u8>,
    frame_bytes_max: usize,
    violation: Option<Violation>,
}

impl Decoder {
    pub(super) fn new(frame_bytes_max: u32) -> Self {
        let frame_bytes_max = usize::try_from(frame_bytes_max).unwrap_or(usize::MAX);
        Self { partial: Vec::new(), frame_bytes_max, violation: None }
    }

    /// Why no more frames come.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Bytes of heap it holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Takes bytes and gives the whole frames in them to the sink, in order. Nothing is given after a violation.
    pub(super) fn feed(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(&[u8])) {
        while !bytes.is_empty() && self.violation.is_none() {
            let taken = if self.partial.is_empty() {
                self.feed_whole(bytes, sink)
            } else {
                self.feed_partial(bytes, sink)
            };
            bytes = taken.map_or_else(
                |violation| {
                    self.violation = Some(violation);
                    self.partial = Vec::new();
                    &[][..]
                },
                |taken| &bytes[taken..],
            );
        }
    }

    /// A frame that begins with these bytes.
    fn feed_whole(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<usize, Violation> {
        if let Some((head, length)) = self.length(bytes)?
            && let Some(frame) = bytes.get(head..head + length)
        {
            sink(frame);
            return Ok(head + length);
        }
        self.partial.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// More of a frame that began earlier.
    fn feed_partial(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<usize, Violation> {
        let missing = match self.length(&self.partial)? {
            None => 1,
            Some((head, length)) => (head + length).saturating_sub(self.partial.len()),
        };
        let taken = missing.min(bytes.len());
        self.partial.extend_from_slice(&bytes[..taken]);
        if let Some((head, length)) = self.length(&self.partial)?
            && self.partial.len() == head + length
        {
            let frame = std::mem::take(&mut self.partial);
            sink(&frame[head..]);
        }
        Ok(taken)
    }

    fn length(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, Violation> {
        read_length(bytes, self.frame_bytes_max).map_err(violation)
    }
}

/// Appends one frame, which is what `encode` appends, behind its length.
pub(super) fn put_frame(out: &mut Vec<u8>, encode: &mut dyn FnMut(&mut Vec<u8>)) {
    // Two bytes of length are assumed; a frame of another size is moved once.
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    encode(out);
    let length = out.len().saturating_sub(start + 2);
    let (head, used) = write_length(length);
    if used == 2 {
        out[start..start + 2].copy_from_slice(&head[..2]);
    } else {
        out.splice(start..start + 2, head[..used].iter().copied());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            put_frame(&mut out, &mut |out| out.extend_from_slice(frame));
        }
        out
    }

    fn fed(decoder: &mut Decoder, bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.feed(piece, &mut |frame| frames.push(frame.to_vec()));
        }
        frames
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> =
            [0, 1, 127, 128, 300, 16_383, 16_384, 40_000].map(|length| vec![7; length]).into();
        let bytes = encoded(&frames);
        for step in [1, 2, 3, 7, 128, 1000, bytes.len()] {
            let mut decoder = Decoder::new(1 << 20);
            assert_eq!(fed(&mut decoder, &bytes, step), frames, "in pieces of {step}");
            assert_eq!((decoder.held_bytes(), decoder.violation()), (0, None));
        }
    }

    #[test]
    fn an_announced_length_takes_no_memory_and_too_much_is_a_violation() {
        let mut decoder = Decoder::new(1 << 20);
        // 1 MiB is announced and one byte comes.
        assert!(fed(&mut decoder, &[0x80, 0x80, 0x40, 9], 4).is_empty());
        assert!(decoder.held_bytes() <= 64, "{}", decoder.held_bytes());

        for (bytes, code) in [
            (&[0x81, 0x80, 0x40, 1, 2][..], 1009),
            (&[0xff, 0xff, 0xff, 0x7f], 1009),
            (&[0xff, 0xff, 0xff, 0xff, 1], 1002),
            (&[0x80, 0x80, 0x80, 0x80], 1002),
        ] {
            for step in [1, bytes.len()] {
                let mut decoder = Decoder::new(1 << 20);
                assert!(fed(&mut decoder, bytes, step).is_empty());
                assert_eq!(decoder.violation().map(|violation| violation.code), Some(code), "{bytes:?}");
                assert!(fed(&mut decoder, &[1, 1], 2).is_empty(), "nothing is given afterwards");
            }
        }
    }
}
