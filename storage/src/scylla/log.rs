//! The other operations on the partitions of the log. **Invariant:** no read is longer than a bucket, nor much longer in bytes
//! than what was asked for; whatever is deleted is deleted beyond the newest write that a SERIAL read has seen.

use super::database::{Database, damaged, rows};
use super::stats::add;
use super::values::{
    Damaged, FORM_LOST, FORM_REF, Value, big, from_big, read_filter, read_sender, read_slot_key,
    read_urgency, slot_key,
};
use crate::error::{Result, StoreError};
use crate::rows::{Head, Partition, SlotRow};
use crate::{Entry, EntryPayload};
use bytes::Bytes;
use chappe_protocol::id::{EnvelopeId, PayloadId, Seq};
use chappe_protocol::time::UnixMillis;
use tokio::sync::SemaphorePermit;

/// Ids that one statement looks up.
const IDS_MAX: usize = 64;
/// Rows of the first statement of a read, while nothing is known of their size.
const ROWS_FIRST: usize = 16;
/// Rows of a later one, at most.
const ROWS_MAX: usize = 128;
/// Rows that the search for the newest write reads at once.
const TIMES_MAX: usize = 512;

/// The columns of a register, as selected.
type HeadColumns<'a> = (&'a [u8], i64, Option<i64>, Option<i64>, Option<i64>);
/// The columns of a slot, as selected.
type SlotColumns<'a> = (
    &'a [u8],
    Option<i8>,
    Option<&'a [u8]>,
    Option<&'a [u8]>,
    Option<i64>,
    Option<i64>,
    Option<i8>,
    Option<&'a [u8]>,
    Option<i32>,
    Option<&'a [u8]>,
    Option<&'a [u8]>,
);

fn slot_row(columns: SlotColumns<'_>, now: UnixMillis) -> Result<SlotRow, Damaged> {
    let (k, form, envelope_id, targets, at, expires_at, urgency, payload_id, bytes, sender, payload) =
        columns;
    let seq = read_slot_key(k)?;
    let form = form.ok_or(Damaged("a slot without a form"))?;
    let (Some(envelope_id), Some(targets), Some(at), Some(expires_at), Some(urgency)) =
        (envelope_id, targets, at, expires_at, urgency)
    else {
        // Nothing but the mark of a slot that was lost without a trace.
        return if form == FORM_LOST { Ok(SlotRow::lost(seq)) } else { Err(Damaged("half a slot")) };
    };
    let expires_at = UnixMillis(from_big(expires_at)?);
    let payload_id = payload_id.map(|id| PayloadId::from_slice(id).ok_or(Damaged("a payload's id")));
    let lost = form == FORM_LOST;
    let gone = lost || expires_at <= now || payload.is_none() || sender.is_none();
    let payload = match payload_id.transpose()? {
        Some(id) => {
            EntryPayload::Ref { id, bytes: u32::try_from(bytes.unwrap_or_default()).unwrap_or_default() }
        }
        None if form == FORM_REF => return Err(Damaged("a reference to no payload")),
        None if gone => EntryPayload::Inline(Bytes::new()),
        // A copy: a slice would keep the whole answer in memory.
        None => EntryPayload::Inline(Bytes::copy_from_slice(payload.unwrap_or_default())),
    };
    let payload_gone = lost || (gone && matches!(payload, EntryPayload::Inline(_)));
    let entry = Entry {
        envelope_id: EnvelopeId::from_slice(envelope_id).ok_or(Damaged("an envelope's id"))?,
        sender: read_sender(sender)?,
        devices: read_filter(targets)?,
        at: UnixMillis(from_big(at)?),
        expires_at,
        urgency: read_urgency(urgency)?,
        payload,
    };
    Ok(SlotRow { seq, entry, payload_gone, lost })
}

fn inline_bytes(row: &SlotRow) -> usize {
    match &row.entry.payload {
        EntryPayload::Inline(payload) => payload.len(),
        EntryPayload::Ref { .. } => 0,
    }
}

/// Rows of the next statement: as many as fit, if they are like those before.
fn next_rows(rows_left: usize, bytes_left: usize, read: usize, bytes: usize) -> usize {
    let fitting = match bytes.checked_div(read) {
        None => ROWS_FIRST,
        Some(mean) => (bytes_left / mean.max(64)).saturating_add(1).min(ROWS_MAX),
    };
    fitting.min(rows_left).max(1)
}

fn limit(rows: usize) -> Value<'static> {
    Value::Int(i32::try_from(rows).unwrap_or(i32::MAX))
}

impl Database {
    /// The register of a bucket, at SERIAL.
    pub(super) async fn head(
        &self,
        place: SemaphorePermit<'_>,
        partition: Partition,
    ) -> Result<Option<Head>> {
        let values = [Value::Blob(partition.mailbox.as_bytes()), big(partition.bucket.0)];
        let answer = rows(self.run_placed(place, &self.statements.head, &values).await?)?;
        let Some(row) = answer.maybe_first_row::<HeadColumns<'_>>().map_err(damaged)? else {
            return Ok(None);
        };
        match (row.2, row.3, row.4) {
            (None, None, None) => Ok(None),
            (Some(seq), Some(opened_at), Some(bytes_total)) => Ok(Some(Head {
                seq: Seq(from_big(seq)?),
                opened_at: UnixMillis(from_big(opened_at)?),
                bytes_total: from_big(bytes_total)?,
            })),
            _ => Err(Damaged("half a register").into()),
        }
    }

    /// Closes a register.
    pub(super) async fn seal(&self, partition: Partition, expected: Option<Seq>) -> Result<bool> {
        let (mailbox, bucket) = (Value::Blob(partition.mailbox.as_bytes()), big(partition.bucket.0));
        let closed = big(Seq::MAX.0);
        if let Some(expected) = expected {
            return self.run_if(&self.statements.seal, &[closed, mailbox, bucket, big(expected.0)]).await;
        }
        let now = big(self.clock.now().0);
        self.run_if(&self.statements.seal_open, &[closed, now, mailbox, bucket]).await
    }

    /// Where ids stand.
    pub(super) async fn find_ids(
        &self,
        partition: Partition,
        ids: &[EnvelopeId],
    ) -> Result<Vec<Option<Seq>>> {
        let mut found = vec![None; ids.len()];
        for (ids, found) in ids.chunks(IDS_MAX).zip(found.chunks_mut(IDS_MAX)) {
            let mut keys: Vec<&[u8]> = ids.iter().map(|id| &id.0[..]).collect();
            keys.sort_unstable();
            keys.dedup();
            let mailbox = Value::Blob(partition.mailbox.as_bytes());
            let values = [mailbox, big(partition.bucket.0), Value::Blobs(keys)];
            let answer = rows(self.run(&self.statements.ids, &values).await?)?;
            for row in answer.rows::<(&[u8], Option<i64>)>().map_err(damaged)? {
                let (k, seq) = row.map_err(damaged)?;
                let Some(seq) = seq else { continue };
                let seq = Seq(from_big(seq)?);
                let places = ids.iter().zip(found.iter_mut()).filter(|(id, _)| id.0 == k);
                places.for_each(|(_, found)| *found = Some(seq));
            }
        }
        Ok(found)
    }

    /// A run of slot rows.
    pub(super) async fn slots(
        &self,
        place: SemaphorePermit<'_>,
        partition: Partition,
        after: Seq,
        (rows_max, bytes_max): (usize, usize),
        serial: bool,
    ) -> Result<Vec<SlotRow>> {
        let statement = if serial { &self.statements.slots_serial } else { &self.statements.slots };
        let (mut place, mut after, mut bytes) = (Some(place), after, 0);
        let mut all: Vec<SlotRow> = Vec::new();
        while all.len() < rows_max {
            let asked = next_rows(rows_max - all.len(), bytes_max - bytes, all.len(), bytes);
            let values = [
                Value::Blob(partition.mailbox.as_bytes()),
                big(partition.bucket.0),
                slot_key(after),
                limit(asked),
            ];
            let place = match place.take() {
                Some(place) => place,
                None => self.place().await?,
            };
            let answer = rows(self.run_placed(place, statement, &values).await?)?;
            let now = self.clock.now();
            let got = answer.rows_num();
            for row in answer.rows::<SlotColumns<'_>>().map_err(damaged)? {
                let row = slot_row(row.map_err(damaged)?, now)?;
                bytes += inline_bytes(&row);
                after = row.seq;
                all.push(row);
                if bytes >= bytes_max {
                    return Ok(all);
                }
            }
            if got < asked {
                break;
            }
        }
        Ok(all)
    }

    /// Marks what is not there.
    pub(super) async fn mark_lost(&self, partition: Partition, seq: Seq) -> Result<bool> {
        let values = [Value::Blob(partition.mailbox.as_bytes()), big(partition.bucket.0), slot_key(seq)];
        self.run_if(&self.statements.mark_lost, &values).await
    }

    /// Deletes the slot rows of a bucket, beyond the ballots of whatever was written: of the slots that are visible, and of
    /// the head for those that an earlier delete has hidden at some replicas (no append's ballot is above the head's).
    pub(super) async fn delete_slots(&self, partition: Partition) -> Result<()> {
        let (mailbox, bucket) = (partition.mailbox, partition.bucket.0);
        let place = [Value::Blob(mailbox.as_bytes()), big(bucket)];
        let answer = rows(self.run(&self.statements.head_time, &place).await?)?;
        let head =
            answer.maybe_first_row::<(Option<i64>,)>().map_err(damaged)?.and_then(|(written,)| written);
        let key = |after: &[u8]| {
            let k = Value::Owned(after.to_vec());
            [Value::Blob(mailbox.as_bytes()), big(bucket), k, limit(TIMES_MAX)]
        };
        let mut newest = self.clock.now().0.saturating_mul(1000).max(head.map_or(Ok(0), from_big)?);
        let mut after: Vec<u8> = Vec::new();
        loop {
            let answer = rows(self.run(&self.statements.slot_times, &key(&after)).await?)?;
            for row in answer.rows::<(&[u8], Option<i64>)>().map_err(damaged)? {
                let (k, written) = row.map_err(damaged)?;
                newest = newest.max(written.map_or(Ok(0), from_big)?);
                after = k.to_vec();
            }
            if answer.rows_num() < TIMES_MAX {
                break;
            }
        }
        let values = [big(newest.saturating_add(1)), Value::Blob(mailbox.as_bytes()), big(bucket)];
        self.run(&self.statements.delete_slots, &values).await?;
        Ok(())
    }

    /// One more was joined.
    pub(super) fn joined(&self) {
        add(&self.counters.coalesced, 1);
    }
}

/// What a caller of `slots` may ask.
pub(super) fn check_page(rows_max: usize) -> Result<()> {
    if rows_max == 0 { Err(StoreError::Invalid("a page has at least one row")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_asks_for_what_fits() {
        assert_eq!(next_rows(1000, 1 << 20, 0, 0), ROWS_FIRST, "nothing is known");
        assert_eq!(next_rows(3, 1 << 20, 0, 0), 3);
        assert_eq!(next_rows(1000, 10_000, 16, 16_000), 11, "as the rows before");
        assert_eq!(next_rows(1000, usize::MAX, 16, 0), ROWS_MAX, "empty ones");
        assert_eq!(next_rows(1000, 1, 16, 1 << 20), 1, "at least one");
    }

    #[test]
    fn half_a_slot_is_damaged_and_a_lost_one_is_lost() {
        let k = 7_u64.to_be_bytes();
        let none = (&k[..], None, None, None, None, None, None, None, None, None, None);
        let now = UnixMillis(10);
        assert!(slot_row(none, now).is_err(), "no form");
        assert!(
            slot_row((&k[..], Some(0), None, None, None, None, None, None, None, None, None), now).is_err()
        );
        let lost = slot_row((&k[..], Some(3), None, None, None, None, None, None, None, None, None), now);
        assert_eq!(lost, Ok(SlotRow::lost(Seq(7))));
    }
}
