//! Bytes on their way out. **Invariant:** an empty buffer owns no memory, and sent bytes do not pile up at its front.

/// Sent bytes at the front are cut off beyond this many.
const SENT_BYTES_MAX: usize = 64 * 1024;

/// What is to be written, and how much of it is; a value without I/O.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    /// To append to. What stands in it already is not to be touched.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Bytes of heap it holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// What to write next; empty when nothing waits.
    pub(super) fn front(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Takes note that the first bytes of [`front`](Self::front) are written.
    pub(super) fn advance(&mut self, written: usize) {
        self.sent += written;
        if self.sent >= self.bytes.len() {
            *self = Self::default();
        } else if self.sent > SENT_BYTES_MAX && self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_empty_owns_nothing_and_sent_bytes_do_not_pile_up() {
        let mut unsent = Unsent::default();
        for _ in 0..1000 {
            unsent.buffer().extend_from_slice(&[1; 4000]);
            let all_but_one = unsent.len() - 1;
            unsent.advance(all_but_one);
            assert!(unsent.held_bytes() < 4 * SENT_BYTES_MAX, "{}", unsent.held_bytes());
        }
        unsent.advance(1);
        assert_eq!((unsent.len(), unsent.held_bytes()), (0, 0));
    }
}
