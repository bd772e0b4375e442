//! Frames in a byte stream: each stands behind its length as a base-128 varint, protobuf's length-delimited form.
//! **Invariant:** only what is incomplete is kept, and memory grows with bytes that came, never with a length that was
//! announced.

use bytes::{Buf as _, Bytes};
use chappe_protocol::delimited::{LengthError, read_length, write_length};

/// The reading half; a value without I/O.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// Bytes that nobody has looked at.
    fresh: Bytes,
    /// The beginning of a frame, its length included.
    partial: Vec<u8>,
    frame_bytes_max: usize,
}

/// A whole frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) frame: Bytes,
    /// With its length.
    pub(crate) wire_bytes: u64,
}

impl Decoder {
    pub(crate) fn new(frame_bytes_max: usize) -> Self {
        Self { fresh: Bytes::new(), partial: Vec::new(), frame_bytes_max }
    }

    /// Takes bytes that came; those before are used up: [`Decoder::next`] has said so.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.fresh.is_empty(), "take the frames first");
        self.fresh = bytes;
    }

    /// The next whole frame, in memory of its own; `None` when more bytes are needed. An error is final.
    pub(crate) fn next(&mut self) -> Result<Option<Whole>, &'static str> {
        if self.partial.is_empty() {
            if let Some((head, length)) = self.length(&self.fresh)?
                && let Some(frame) = self.fresh.get(head..head + length)
            {
                let frame = Bytes::copy_from_slice(frame);
                self.fresh.advance(head + length);
                return Ok(Some(Whole { frame, wire_bytes: (head + length) as u64 }));
            }
            self.partial.extend_from_slice(&self.fresh);
            self.fresh = Bytes::new();
            return Ok(None);
        }
        loop {
            let missing = match self.length(&self.partial)? {
                None => 1,
                Some((head, length)) => (head + length) - self.partial.len(),
            };
            if missing == 0 {
                let bytes = Bytes::from(std::mem::take(&mut self.partial));
                let wire_bytes = bytes.len() as u64;
                let head = self.length(&bytes)?.map_or(0, |(head, _)| head);
                return Ok(Some(Whole { frame: bytes.slice(head..), wire_bytes }));
            }
            if self.fresh.is_empty() {
                return Ok(None);
            }
            let taken = missing.min(self.fresh.len());
            self.partial.extend_from_slice(&self.fresh[..taken]);
            self.fresh.advance(taken);
        }
    }

    fn length(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, &'static str> {
        read_length(bytes, self.frame_bytes_max).map_err(|error| match error {
            LengthError::TooLong => "the server sent a length of more than 4 bytes",
            LengthError::TooLarge => "the server sent a message larger than the limit",
        })
    }
}

/// A frame with its length in front. What the SDK sends is below 256 MiB by its limits.
pub(crate) fn delimited(frame: &[u8]) -> Vec<u8> {
    let (head, used) = write_length(frame.len());
    let mut bytes = Vec::with_capacity(used + frame.len());
    bytes.extend_from_slice(&head[..used]);
    bytes.extend_from_slice(frame);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(decoder: &mut Decoder, bytes: &[u8], step: usize) -> Result<Vec<Bytes>, &'static str> {
        let mut frames = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.push(Bytes::copy_from_slice(piece));
            while let Some(whole) = decoder.next()? {
                assert_eq!(whole.wire_bytes, delimited(&whole.frame).len() as u64);
                frames.push(whole.frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> =
            [0, 1, 127, 128, 300, 16_383, 16_384, 40_000].map(|length| vec![9; length]).into();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| delimited(frame)).collect();
        for step in [1, 2, 3, 7, 128, 1000, bytes.len()] {
            let mut decoder = Decoder::new(1 << 20);
            assert_eq!(fed(&mut decoder, &bytes, step).unwrap(), frames, "in pieces of {step}");
            assert!(decoder.partial.is_empty() && decoder.fresh.is_empty());
        }
    }

    #[test]
    fn lengths_are_those_of_length_delimited_protobuf() {
        for (length, head) in [
            (0, vec![0]),
            (1, vec![1]),
            (127, vec![127]),
            (128, vec![0x80, 1]),
            (300, vec![0xac, 2]),
            (16_384, vec![0x80, 0x80, 1]),
            (1 << 20, vec![0x80, 0x80, 0x40]),
        ] {
            let bytes = delimited(&vec![7; length]);
            assert_eq!((&bytes[..head.len()], bytes.len()), (&head[..], head.len() + length));
        }
    }

    #[test]
    fn an_announced_length_takes_no_memory_and_too_much_is_an_error() {
        let mut decoder = Decoder::new(1 << 20);
        // 1 MiB is announced and one byte comes.
        assert!(fed(&mut decoder, &[0x80, 0x80, 0x40, 9], 4).unwrap().is_empty());
        assert!(decoder.partial.capacity() <= 64, "{}", decoder.partial.capacity());

        for (bytes, what) in [
            (&[0x81, 0x80, 0x40, 1, 2][..], "limit"),
            (&[0xff, 0xff, 0xff, 0x7f], "limit"),
            (&[0xff, 0xff, 0xff, 0xff, 1], "4 bytes"),
            (&[0x80, 0x80, 0x80, 0x80], "4 bytes"),
        ] {
            for step in [1, bytes.len()] {
                let error = fed(&mut Decoder::new(1 << 20), bytes, step).unwrap_err();
                assert!(error.contains(what), "{bytes:?}: {error}");
            }
        }
    }
}
