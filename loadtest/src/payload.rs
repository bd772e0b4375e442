//! The payload of a test envelope: who sent what to whom and when, under an HMAC. **Invariant:** an envelope that was
//! changed, invented or delivered to somebody else is told apart by its bytes alone.
//!
//! Layout, big-endian: magic `CLT1`, sender u32, counter u64, intended send time u64 (µs of the run's clock), number of
//! targets u16, targets u32 each, HMAC-SHA-256 over all of that (32 bytes), zeros up to the wanted size.

use aws_lc_rs::hmac;
use bytes::Bytes;

const MAGIC: &[u8; 4] = b"CLT1";
const HEAD_BYTES: usize = 4 + 4 + 8 + 8 + 2;
const MAC_BYTES: usize = 32;

/// What an envelope says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Index of the sending user.
    pub sender: u32,
    /// Counts the sender's submits, from 0.
    pub counter: u64,
    /// When it should have been sent, µs of the run's clock.
    pub intended_us: u64,
    /// Indexes of the addressed users.
    pub targets: Vec<u32>,
}

/// Writes and checks tags of one run.
#[derive(Clone)]
pub struct Tagger {
    key: hmac::Key,
}

impl std::fmt::Debug for Tagger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tagger(…)")
    }
}

impl Tagger {
    /// A tagger with the run's own key, so that envelopes of an earlier run are told apart.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// The payload of at least `size` bytes (never less than the tag needs).
    pub fn write(&self, tag: &Tag, size: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(size.max(HEAD_BYTES + 4 * tag.targets.len() + MAC_BYTES));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&tag.sender.to_be_bytes());
        bytes.extend_from_slice(&tag.counter.to_be_bytes());
        bytes.extend_from_slice(&tag.intended_us.to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(tag.targets.len()).unwrap_or(u16::MAX).to_be_bytes());
        for target in &tag.targets {
            bytes.extend_from_slice(&target.to_be_bytes());
        }
        let mac = hmac::sign(&self.key, &bytes);
        bytes.extend_from_slice(mac.as_ref());
        bytes.resize(bytes.len().max(size), 0);
        bytes.into()
    }

    /// The tag, if the bytes are of this run and unchanged.
    pub fn read(&self, bytes: &[u8]) -> Option<Tag> {
        let head = bytes.get(..HEAD_BYTES)?;
        let (magic, rest) = head.split_at(4);
        if magic != MAGIC {
            return None;
        }
        let number = |from: usize, to: usize| {
            rest.get(from..to).map(|b| b.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
        };
        let count = usize::try_from(number(20, 22)?).ok()?;
        let signed = HEAD_BYTES + 4 * count;
        let mac = bytes.get(signed..signed + MAC_BYTES)?;
        hmac::verify(&self.key, &bytes[..signed], mac).ok()?;
        let padding = &bytes[signed + MAC_BYTES..];
        if padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        let targets =
            bytes[HEAD_BYTES..signed].as_chunks::<4>().0.iter().map(|b| u32::from_be_bytes(*b)).collect();
        let sender = u32::try_from(number(0, 4)?).ok()?;
        Some(Tag { sender, counter: number(4, 12)?, intended_us: number(12, 20)?, targets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag() -> Tag {
        Tag { sender: 7, counter: 1 << 40, intended_us: 123_456_789, targets: vec![1, 2, 70_000] }
    }

    #[test]
    fn a_tag_comes_back() {
        let tagger = Tagger::new(&[1; 32]);
        for size in [0, 64, 512] {
            let payload = tagger.write(&tag(), size);
            assert!(payload.len() >= size);
            assert_eq!(tagger.read(&payload), Some(tag()));
        }
    }

    #[test]
    fn any_changed_bit_and_any_other_run_are_noticed() {
        let tagger = Tagger::new(&[1; 32]);
        let payload = tagger.write(&tag(), 128);
        for bit in 0..payload.len() * 8 {
            let mut changed = payload.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tagger.read(&changed), None, "bit {bit}");
        }
        assert_eq!(Tagger::new(&[2; 32]).read(&payload), None);
        for length in 0..HEAD_BYTES + 12 + MAC_BYTES {
            assert_eq!(tagger.read(&payload[..length]), None, "length {length}");
        }
    }
}
