//! An append: one conditional batch in one partition. **Invariant:** head, slots and ids of a batch stand or fall together, and
//! they stand only if the register was the expected one and none of the ids stood in this bucket.

use super::database::Database;
use super::errors::Kind;
use super::refusal::{Asked, decode};
use super::statements::Statement;
use super::stats::add;
use super::values::{Value, big, filter, sender, slot_key, to_big, urgency};
use crate::error::{Result, StoreError};
use crate::memory::ID_MS;
use crate::rows::{Applied, Batch, Head, Partition};
use crate::{Entry, EntryPayload};
use chappe_protocol::id::{EnvelopeId, Seq};
use chappe_protocol::time::{Millis, UnixMillis};
use std::collections::BTreeSet;

/// Beyond a payload's own end, for clocks: a payload that goes early would be taken for lost. Readers look at `expires_at`.
const TTL_SLACK_S: u64 = 5;
/// Five years; both databases take up to 20.
const TTL_S_MAX: u64 = 5 * 366 * 86_400;

/// The TTL of what ends at `expires_at`, in seconds: at least 1, since 0 would mean *for ever*.
pub(super) fn ttl_s(now: UnixMillis, expires_at: UnixMillis) -> Result<i32> {
    let left = Millis(expires_at.0.saturating_sub(now.0));
    let seconds = left.0.div_ceil(1000).saturating_add(TTL_SLACK_S);
    if seconds > TTL_S_MAX {
        return Err(StoreError::Invalid("a payload lives five years at most"));
    }
    i32::try_from(seconds.max(1)).map_err(|_| StoreError::Invalid("a payload lives five years at most"))
}

/// The statements of a batch, as they grow.
struct Steps<'a> {
    statements: Vec<&'a Statement>,
    values: Vec<Vec<Value<'a>>>,
    /// For every statement, the id whose absence it demands.
    ids: Vec<Option<EnvelopeId>>,
}

impl<'a> Steps<'a> {
    fn push(&mut self, statement: &'a Statement, values: Vec<Value<'a>>, id: Option<EnvelopeId>) {
        self.statements.push(statement);
        self.values.push(values);
        self.ids.push(id);
    }
}

/// A batch that no correct caller sends.
fn check(batch: &Batch<'_>) -> Result<()> {
    let ids: BTreeSet<_> = batch.slots.iter().map(|(_, entry)| entry.envelope_id).collect();
    if ids.len() != batch.slots.len() || ids.is_empty() {
        return Err(StoreError::Invalid("a batch holds at least one slot and no id twice"));
    }
    let first = batch.slots[0].0;
    let dense = batch.slots.iter().zip(first.0..).all(|((seq, _), expected)| seq.0 == expected);
    let follows = batch.expected.is_none_or(|expected| expected.next() == first);
    if !dense || !follows || batch.slots.last().map(|(seq, _)| *seq) != Some(batch.to.seq) {
        return Err(StoreError::Invalid("a batch is dense, behind the expected head and up to the new one"));
    }
    Ok(())
}

impl Database {
    /// The conditional batch.
    pub(super) async fn append(&self, partition: Partition, batch: &Batch<'_>) -> Result<Applied> {
        check(batch)?;
        let now = self.clock.now();
        let count = 1 + 3 * batch.slots.len();
        let mut all = Steps {
            statements: Vec::with_capacity(count),
            values: Vec::with_capacity(count),
            ids: Vec::with_capacity(count),
        };
        let (mailbox, bucket) = (partition.mailbox.as_bytes(), partition.bucket.0);
        self.push_head(&mut all, mailbox, bucket, batch.expected, batch.to);
        for (seq, entry) in &batch.slots {
            self.push_slot(&mut all, mailbox, bucket, (*seq, entry), now)?;
        }
        let rows = self.run_batch(Kind::Append, &all.statements, &all.values).await?;
        let asked = Asked { expected: batch.expected, ids: &all.ids };
        let answer = decode(&asked, &rows).map_err(|why| self.misshapen(why))?;
        match &answer {
            Applied::Yes => add(&self.counters.append_slots, batch.slots.len() as u64),
            Applied::No { .. } => add(&self.counters.appends_refused, 1),
        }
        Ok(answer)
    }

    fn push_head<'a>(
        &'a self,
        all: &mut Steps<'a>,
        mailbox: &'a [u8],
        bucket: u64,
        expected: Option<Seq>,
        to: Head,
    ) {
        let mut values =
            vec![big(to.seq.0), big(to.opened_at.0), big(to.bytes_total), Value::Blob(mailbox), big(bucket)];
        let statement = match expected {
            None => &self.statements.open_head,
            Some(expected) => {
                values.push(big(expected.0));
                &self.statements.move_head
            }
        };
        all.push(statement, values, None);
    }

    fn push_slot<'a>(
        &'a self,
        all: &mut Steps<'a>,
        mailbox: &'a [u8],
        bucket: u64,
        (seq, entry): (Seq, &'a Entry),
        now: UnixMillis,
    ) -> Result<()> {
        let place = || [Value::Blob(mailbox), big(bucket), slot_key(seq)];
        let ttl = Value::Int(ttl_s(now, entry.expires_at)?);
        let mut slot = place().to_vec();
        slot.extend([
            Value::Blob(entry.envelope_id.as_bytes()),
            Value::Owned(filter(&entry.devices)),
            big(entry.at.0),
            big(entry.expires_at.0),
            Value::Tiny(urgency(entry.urgency)),
        ]);
        let sender = Value::Owned(sender(&entry.sender));
        match &entry.payload {
            EntryPayload::Inline(payload) => {
                all.push(&self.statements.slot_inline, slot, None);
                let mut values = vec![ttl, sender, Value::Blob(payload)];
                values.extend(place());
                all.push(&self.statements.slot_payload, values, None);
            }
            EntryPayload::Ref { id, bytes } => {
                let bytes =
                    i32::try_from(*bytes).map_err(|_| StoreError::Invalid("a payload has 2 GiB at most"))?;
                slot.extend([Value::Blob(id.as_bytes()), Value::Int(bytes)]);
                all.push(&self.statements.slot_ref, slot, None);
                let mut values = vec![ttl, sender];
                values.extend(place());
                all.push(&self.statements.slot_sender, values, None);
            }
        }
        let id_ttl = i32::try_from(ID_MS.0 / 1000).unwrap_or(i32::MAX);
        let key = Value::Blob(entry.envelope_id.as_bytes());
        let values =
            vec![Value::Int(id_ttl), Value::Big(to_big(seq.0)), Value::Blob(mailbox), big(bucket), key];
        all.push(&self.statements.id, values, Some(entry.envelope_id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_outlives_its_end_and_is_never_for_ever() {
        let at = UnixMillis(1_000_000);
        for (left, seconds) in [(0, 5), (1, 6), (1000, 6), (1001, 7), (86_400_000, 86_405)] {
            assert_eq!(ttl_s(at, at + Millis(left)), Ok(seconds), "{left}");
        }
        assert_eq!(ttl_s(at, UnixMillis(0)), Ok(5), "past its time already");
        assert!(matches!(ttl_s(at, UnixMillis(u64::MAX)), Err(StoreError::Invalid(_))));
    }
}
