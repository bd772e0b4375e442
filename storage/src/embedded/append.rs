//! Appending to a partition and what belongs to its slots.
//! **Invariant:** the head, the slots and their ids change together or not at all.

use super::expiry::due_at;
use super::keys::{self, Mortal};
use super::table::{ID_MS, Outcome, Reads, Tables};
use super::values;
use crate::error::{Result, StoreError};
use crate::rows::{Applied, Batch, Head, Partition};
use crate::{Entry, EntryPayload};
use bytes::Bytes;
use chappe_protocol::id::{EnvelopeId, Seq};
use chappe_protocol::time::UnixMillis;
use std::collections::BTreeSet;

/// A batch on its way to the committer, encoded where the caller runs.
pub(super) struct Owned {
    expected: Option<Seq>,
    to: Head,
    slots: Vec<(Seq, EnvelopeId, Vec<u8>)>,
    /// When the first inline payload ends.
    ends: Option<UnixMillis>,
}

impl Owned {
    /// Checks and encodes; refuses a batch that no correct caller sends.
    pub(super) fn new(batch: &Batch<'_>) -> Result<Self> {
        let ids: BTreeSet<_> = batch.slots.iter().map(|(_, entry)| entry.envelope_id).collect();
        if ids.is_empty() || ids.len() != batch.slots.len() {
            return Err(StoreError::Invalid("a batch holds at least one slot and no id twice"));
        }
        let first = batch.slots[0].0;
        let dense = batch.slots.iter().zip(first.0..).all(|((seq, _), expected)| seq.0 == expected);
        let follows = batch.expected.is_none_or(|expected| expected.next() == first);
        if !dense || !follows || batch.slots.last().map(|(seq, _)| *seq) != Some(batch.to.seq) {
            return Err(StoreError::Invalid(
                "a batch is dense, behind the expected head and up to the new one",
            ));
        }
        let ends = |entry: &Entry| match entry.payload {
            EntryPayload::Inline(_) => Some(entry.expires_at),
            EntryPayload::Ref { .. } => None,
        };
        Ok(Self {
            expected: batch.expected,
            to: batch.to,
            slots: batch
                .slots
                .iter()
                .map(|(seq, entry)| (*seq, entry.envelope_id, values::slot(entry, false, false)))
                .collect(),
            ends: batch.slots.iter().filter_map(|(_, entry)| ends(entry)).min(),
        })
    }

    /// What it will write, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.slots.iter().map(|(_, _, row)| row.len() + 128).sum()
    }

    /// The conditional batch.
    pub(super) fn apply(self, tables: &mut Tables<'_>, of: Partition) -> Outcome<Applied> {
        let now = tables.now;
        let stored = tables.head_and_due(of)?;
        let head = stored.map(|(head, _)| head);
        let mut existing = Vec::new();
        for (_, id, _) in &self.slots {
            if let Some(seq) = tables.find_id(of, *id, now)? {
                existing.push((*id, seq));
            }
        }
        if head.map(|head| head.seq) != self.expected || !existing.is_empty() {
            return Ok(Applied::No { head, existing });
        }
        let ends = self.ends.map_or(now + ID_MS, |ends| ends.min(now + ID_MS));
        let due = raise_due(tables, of, stored.map(|(_, due)| due).unwrap_or_default(), due_at(ends));
        tables.put_head(of, self.to, due);
        for (seq, id, row) in self.slots {
            tables.put(keys::slot(of, seq), row);
            tables.put(keys::id(of, id), values::id(seq, now));
        }
        Ok(Applied::Yes)
    }
}

/// Makes sure that the partition is looked at by `wanted`; returns the time that stands. Nearly always one comparison:
/// the first slot of a bucket sets the time, and those behind it end later.
fn raise_due(tables: &mut Tables<'_>, of: Partition, stored: UnixMillis, wanted: UnixMillis) -> UnixMillis {
    let none = UnixMillis::default();
    if stored != none && stored <= wanted {
        return stored;
    }
    if stored != none {
        tables.remove(keys::due(stored, Mortal::Partition(of)));
    }
    tables.put(keys::due(wanted, Mortal::Partition(of)), Bytes::new());
    wanted
}

/// Ends the log of a partition.
pub(super) fn seal(tables: &mut Tables<'_>, of: Partition, expected: Option<Seq>) -> Outcome<bool> {
    let stored = tables.head_and_due(of)?;
    if stored.map(|(head, _)| head.seq) != expected {
        return Ok(false);
    }
    let empty = Head { seq: Seq::MAX, opened_at: tables.now, bytes_total: 0 };
    let (head, due) = stored.unwrap_or((empty, UnixMillis::default()));
    tables.put_head(of, Head { seq: Seq::MAX, ..head }, due);
    Ok(true)
}

/// Marks a slot without a row, or without its payload, as lost.
pub(super) fn mark_lost(tables: &mut Tables<'_>, of: Partition, seq: Seq) -> Outcome<bool> {
    let key = keys::slot(of, seq);
    // A damaged row is as good as none.
    let value = match tables.row(&key, |value| Ok(values::read_slot(seq, value).ok()))?.flatten() {
        None => values::lost_slot()?,
        Some(row) if row.lost => return Ok(true),
        Some(row) => {
            let inline = matches!(row.entry.payload, EntryPayload::Inline(_));
            if inline && !row.payload_gone && row.entry.expires_at > tables.now {
                return Ok(false);
            }
            values::slot(&row.entry, true, true)
        }
    };
    tables.put(key, value);
    Ok(true)
}
