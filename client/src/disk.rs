//! The state directory: outbox, cursor, seen ids. **Invariant:** a submit is on disk before its first transmission, a
//! cursor before its ack; one client at a time uses a directory.

use crate::error::ClientError;
use crate::inbox::{Progress, SEEN_MAX};
use crate::journal::Journal;
use bytes::Bytes;
use chappe_protocol::frame::{ClientFrame, Cursor, Submit};
use chappe_protocol::id::{CursorTag, EnvelopeId, Seq};
use chappe_protocol::time::UnixMillis;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use tokio::runtime::{Handle, RuntimeFlavor};

const PUT: u8 = 1;
const DONE: u8 = 2;
const CURSOR: u8 = 3;
const SEEN: u8 = 4;

/// See the module.
pub(crate) struct Disk {
    outbox: Journal,
    positions: Journal,
    /// Undecided submits as they stand in the file; for compaction.
    kept: BTreeMap<u64, Vec<u8>>,
    last_cursor: Option<Cursor>,
    _lock: File,
}

/// What an earlier client left.
#[derive(Default)]
pub(crate) struct Restored {
    pub(crate) submits: Vec<(u64, UnixMillis, Submit)>,
    pub(crate) next_order: u64,
    pub(crate) cursor: Option<Cursor>,
    pub(crate) seen: Vec<EnvelopeId>,
}

impl Disk {
    pub(crate) fn open(directory: &Path) -> Result<(Self, Restored), ClientError> {
        std::fs::create_dir_all(directory).map_err(|error| ClientError::state_dir(&error))?;
        let lock = File::create(directory.join("lock")).map_err(|error| ClientError::state_dir(&error))?;
        lock.try_lock().map_err(|_| ClientError::StateDir("in use by another client".to_owned()))?;
        Self::read(directory, lock).map_err(|error| ClientError::state_dir(&error))
    }

    fn read(directory: &Path, lock: File) -> io::Result<(Self, Restored)> {
        let (outbox, records) = Journal::open(&directory.join("outbox"))?;
        let mut restored = Restored { next_order: 1, ..Restored::default() };
        let mut kept = BTreeMap::new();
        for record in records {
            let Some((order, kind)) = order_of(&record) else { continue };
            restored.next_order = restored.next_order.max(order + 1);
            if kind == PUT {
                kept.insert(order, record);
            } else {
                kept.remove(&order);
            }
        }
        restored.submits = kept.values().filter_map(|record| parse_put(record)).collect();
        let (positions, records) = Journal::open(&directory.join("positions"))?;
        for record in records {
            match record.split_first() {
                Some((&CURSOR, rest)) => restored.cursor = parse_cursor(rest).or(restored.cursor),
                Some((&SEEN, rest)) => {
                    restored.seen.extend(rest.chunks_exact(16).filter_map(EnvelopeId::from_slice));
                }
                Some(_) | None => {}
            }
        }
        let surplus = restored.seen.len().saturating_sub(SEEN_MAX);
        restored.seen.drain(..surplus);
        let last_cursor = restored.cursor;
        Ok((Self { outbox, positions, kept, last_cursor, _lock: lock }, restored))
    }

    /// Adds submits; they are durable when this returns.
    pub(crate) fn put(&mut self, wall: UnixMillis, submits: &[(u64, &Submit)]) -> Result<(), ClientError> {
        for (order, submit) in submits {
            let mut record = vec![PUT];
            record.extend_from_slice(&order.to_le_bytes());
            record.extend_from_slice(&wall.0.to_le_bytes());
            record.extend_from_slice(&ClientFrame::Submit((*submit).clone()).encode());
            self.outbox.append(&record);
            self.kept.insert(*order, record);
        }
        let compacted = self.compacted();
        blocking(|| match compacted {
            Some(records) => self.outbox.rewrite(&records),
            None => self.outbox.commit(),
        })
        .map_err(|error| ClientError::state_dir(&error))
    }

    /// Forgets a decided submit; durable with the next `put`. Until then a crash sends it once more, which the store's
    /// idempotence absorbs.
    pub(crate) fn done(&mut self, order: u64) {
        if self.kept.remove(&order).is_some() {
            let mut record = vec![DONE];
            record.extend_from_slice(&order.to_le_bytes());
            self.outbox.append(&record);
        }
    }

    /// Writes what is still buffered.
    pub(crate) fn flush(&mut self) -> Result<(), ClientError> {
        blocking(|| self.outbox.commit()).map_err(|error| ClientError::state_dir(&error))
    }

    /// Makes cursor and seen ids durable. `seen` gives all of them, for compaction.
    pub(crate) fn progress(
        &mut self,
        progress: &Progress,
        seen: impl FnOnce() -> Vec<EnvelopeId>,
    ) -> Result<(), ClientError> {
        if progress.cursor == self.last_cursor && progress.fresh.is_empty() {
            return Ok(());
        }
        // The ids first: a torn tail loses the cursor, and a repeated envelope is still recognised.
        if !progress.fresh.is_empty() {
            self.positions.append(&seen_record(&progress.fresh));
        }
        if let Some(cursor) = progress.cursor {
            self.positions.append(&cursor_record(cursor));
        }
        self.last_cursor = progress.cursor;
        let compacted = self.positions.wants_rewrite().then(|| {
            let mut records = vec![seen_record(&seen())];
            records.extend(progress.cursor.map(cursor_record));
            records
        });
        blocking(|| match compacted {
            Some(records) => self.positions.rewrite(&records),
            None => self.positions.commit(),
        })
        .map_err(|error| ClientError::state_dir(&error))
    }

    fn compacted(&self) -> Option<Vec<Vec<u8>>> {
        self.outbox.wants_rewrite().then(|| self.kept.values().cloned().collect())
    }
}

fn order_of(record: &[u8]) -> Option<(u64, u8)> {
    let (kind, rest) = record.split_first().filter(|(kind, _)| matches!(**kind, PUT | DONE))?;
    let order = u64::from_le_bytes(rest.get(..8)?.try_into().ok()?);
    Some((order, *kind))
}

fn parse_put(record: &[u8]) -> Option<(u64, UnixMillis, Submit)> {
    let (order, _) = order_of(record)?;
    let wall = u64::from_le_bytes(record.get(9..17)?.try_into().ok()?);
    match ClientFrame::decode(Bytes::copy_from_slice(record.get(17..)?)).ok()? {
        ClientFrame::Submit(submit) => Some((order, UnixMillis(wall), submit)),
        ClientFrame::Hello(_)
        | ClientFrame::Ack { .. }
        | ClientFrame::Ping { .. }
        | ClientFrame::Refresh { .. }
        | ClientFrame::Request { .. } => None,
    }
}

fn cursor_record(cursor: Cursor) -> Vec<u8> {
    let mut record = vec![CURSOR];
    record.extend_from_slice(cursor.tag.as_bytes());
    record.extend_from_slice(&cursor.seq.0.to_le_bytes());
    record
}

fn parse_cursor(bytes: &[u8]) -> Option<Cursor> {
    let (tag, seq) = bytes.split_at_checked(16)?;
    Some(Cursor { tag: CursorTag::from_slice(tag)?, seq: Seq(u64::from_le_bytes(seq.try_into().ok()?)) })
}

fn seen_record(ids: &[EnvelopeId]) -> Vec<u8> {
    std::iter::once(SEEN).chain(ids.iter().flat_map(|id| *id.as_bytes())).collect()
}

/// A sync takes milliseconds: a runtime with several threads moves its other tasks away meanwhile. A runtime with one
/// thread (a simulation) waits, which keeps it deterministic.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) | Err(_) => work(),
    }
}
