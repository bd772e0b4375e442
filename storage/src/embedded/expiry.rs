//! Removes what has ended: ids after 2 days, payloads after their time, pending notes after 24 hours.
//! **Invariant:** one step is bounded in rows and bytes, and it never touches a head, a cursor or a live row.
//!
//! Every partition with ids or payloads has one `due` row at (or up to a minute behind) the end of the first of them;
//! the partition's head knows where that row is. A step takes what is due, removes what has ended and notes the next time.

use super::keys::{self, Mortal};
use super::table::{ID_MS, Outcome, Reads, Tables};
use super::values;
use crate::EntryPayload;
use crate::rows::Partition;
use crate::wakes::PENDING_MS;
use bytes::Bytes;
use chappe_protocol::time::{Millis, UnixMillis};

/// Due rows in one step.
const DUE_MAX: usize = 64;
/// Bytes read in one step; one partition may always go.
const BYTES_MAX: usize = 4 << 20;
/// Pending notes in one step.
const PENDING_MAX: usize = 1024;
/// A partition is not looked at twice within this time.
const AGAIN_MS: Millis = Millis(10 * 60_000);

/// When a row that ends at `end` is looked for: at full minutes, so that many share one look.
pub(super) fn due_at(end: UnixMillis) -> UnixMillis {
    UnixMillis((end.0 / 60_000 + 1).saturating_mul(60_000))
}

/// Whether a step would find anything; so that a store without traffic does not write.
pub(super) fn is_due(rows: &impl Reads, now: UnixMillis) -> Outcome<bool> {
    let mut found = false;
    let mut find = |_: &[u8], _: &[u8]| {
        found = true;
        Ok(false)
    };
    let due = keys::due_from(UnixMillis(now.0.saturating_add(1)));
    rows.visit(&keys::due_from(UnixMillis(0)), &due, &mut find)?;
    let first = now.0.saturating_sub(PENDING_MS) / 60_000;
    rows.visit(&keys::pending_from(0), &keys::pending_from(first), &mut find)?;
    Ok(found)
}

/// One bounded step; `true`: there is more to do.
pub(super) fn step(tables: &mut Tables<'_>) -> Outcome<bool> {
    let mut more = pending(tables)?;
    let mut due = Vec::new();
    let until = keys::due_from(UnixMillis(tables.now.0.saturating_add(1)));
    tables.visit(&keys::due_from(UnixMillis(0)), &until, |key, _| {
        due.push(key.to_vec());
        Ok(due.len() < DUE_MAX)
    })?;
    more |= due.len() == DUE_MAX;
    let mut bytes = 0;
    for key in due {
        if bytes >= BYTES_MAX {
            return Ok(true);
        }
        let what = keys::read_due(&key);
        tables.remove(key);
        match what {
            Some(Mortal::Partition(of)) => bytes += partition(tables, of)?,
            Some(Mortal::Payload(id)) => tables.remove(keys::payload(id)),
            None => {}
        }
    }
    Ok(more)
}

fn pending(tables: &mut Tables<'_>) -> Outcome<bool> {
    let first = tables.now.0.saturating_sub(PENDING_MS) / 60_000;
    let mut ended = Vec::new();
    tables.visit(&keys::pending_from(0), &keys::pending_from(first), |key, _| {
        ended.push(key.to_vec());
        Ok(ended.len() < PENDING_MAX)
    })?;
    let more = ended.len() == PENDING_MAX;
    for key in ended {
        tables.remove(key);
    }
    Ok(more)
}

/// Removes what has ended in a partition and notes when to look again; returns the bytes read.
fn partition(tables: &mut Tables<'_>, of: Partition) -> Outcome<usize> {
    let now = tables.now;
    let (mut bytes, mut next) = (0, None);
    let mut later = |end: UnixMillis| next = Some(next.map_or(end, |next: UnixMillis| next.min(end)));
    let (from, to) = keys::ids(of);
    let mut ended = Vec::new();
    let mut rewritten = Vec::new();
    // A damaged row stays where it is: whoever reads it is told.
    tables.visit(&from, &to, |key, value| {
        bytes += value.len();
        match values::read_id(value) {
            Ok((_, at)) if at + ID_MS <= now => ended.push(key.to_vec()),
            Ok((_, at)) => later(at + ID_MS),
            Err(values::Damaged) => {}
        }
        Ok(true)
    })?;
    let (from, to) = keys::slots(of);
    tables.visit(&from, &to, |key, value| {
        bytes += value.len();
        let Some(seq) = keys::seq_of_slot(key) else { return Ok(true) };
        let Ok(slot) = values::read_slot(seq, value) else { return Ok(true) };
        if slot.payload_gone || matches!(slot.entry.payload, EntryPayload::Ref { .. }) {
            return Ok(true);
        }
        if slot.entry.expires_at <= now {
            rewritten.push((key.to_vec(), values::slot(&slot.entry, true, slot.lost)));
        } else {
            later(slot.entry.expires_at);
        }
        Ok(true)
    })?;
    for key in ended {
        tables.remove(key);
    }
    for (key, value) in rewritten {
        tables.put(key, value);
    }
    let due = next.map(|next| due_at(next.max(now + AGAIN_MS)));
    note(tables, of, due)?;
    Ok(bytes)
}

/// Sets a partition's due time; the row of the old one is gone already or is replaced by the caller.
fn note(tables: &mut Tables<'_>, of: Partition, due: Option<UnixMillis>) -> Outcome<()> {
    if let Some(due) = due {
        tables.put(keys::due(due, Mortal::Partition(of)), Bytes::new());
    }
    if let Some((head, _)) = tables.head_and_due(of)? {
        tables.put_head(of, head, due.unwrap_or_default());
    }
    Ok(())
}
