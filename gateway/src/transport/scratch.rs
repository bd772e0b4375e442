//! The buffers of a thread, lent to one poll at a time. **Invariant:** no connection owns a read buffer; what a poll
//! leaves behind in here belongs to nobody.

use std::cell::Cell;

/// Bytes that one read takes at most.
pub(super) const WIRE_BYTES: usize = 64 * 1024;

/// Working memory of one poll.
pub(super) struct Scratch {
    /// What comes from the wire, or goes to it; always [`WIRE_BYTES`] long.
    pub(super) wire: Vec<u8>,
    /// One decrypted TLS record; grown on first use.
    pub(super) plain: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { wire: vec![0; WIRE_BYTES], plain: Vec::new() }
    }
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Lends the thread's buffers. Inside another loan, or while the thread ends, a fresh set is made instead: slower,
/// never wrong.
pub(super) fn with<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = SCRATCH.try_with(Cell::take).ok().flatten().unwrap_or_default();
    let result = work(&mut scratch);
    let _ = SCRATCH.try_with(|cell| cell.set(Some(scratch)));
    result
}
