//! What pushers and probes need: push targets, wakes, pending rows, watermarks. **Invariant:** push targets are written by
//! transactions on the device's row only; a wake and a watermark are their own timestamps, so the greatest stands.

use super::database::{Database, damaged, rows};
use super::directory::limit;
use super::values::{Damaged, Value, big, from_big};
use crate::error::Result;
use crate::wakes::{MINUTE_MS, PENDING_MS, last_minute, note_minute, page_rows};
use crate::{PendingFrom, PendingPage, Woken};
use bytes::Bytes;
use chappe_protocol::id::{DeviceId, MailboxId, Seq};
use chappe_protocol::time::UnixMillis;
use futures_util::{StreamExt, TryStreamExt, stream};
use scylla::response::query_result::QueryRowsResult;
use std::collections::BTreeSet;

/// Partitions that hold one minute's pending rows.
const SHARDS: u8 = MailboxId::SHARDS;
/// Pending rows that one statement reads.
const PENDING_PAGE: usize = 5000;
/// Partitions of pending rows read at once.
const PENDING_PARALLEL: usize = 16;
/// A read of pending rows ends when it has found more; callers take so many for *all of them* (`ProbeConfig`).
const PENDING_FOUND_MAX: usize = 1_000_001;
/// Minutes that one page of a shard looks into.
const MINUTES_MAX: u64 = 240;
/// Minutes of a shard read at once: what is read beyond a full page is read again.
const MINUTES_PARALLEL: usize = 4;

/// How long a note of this minute is kept, in seconds: until 24 h behind its end.
fn note_ttl_s(minute: u64, now: UnixMillis) -> i32 {
    let end = (minute + 1) * MINUTE_MS + PENDING_MS;
    i32::try_from(end.saturating_sub(now.0).div_ceil(1000)).unwrap_or(i32::MAX)
}

fn shard_of(mailbox: MailboxId) -> i8 {
    i8::try_from(mailbox.shard()).unwrap_or_default()
}

impl Database {
    pub(super) async fn push(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        let values = [Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str())];
        let answer = rows(self.run(&self.statements.push, &values).await?)?;
        let row = answer.maybe_first_row::<(Option<bool>, Option<&[u8]>)>().map_err(damaged)?;
        // A binary that knew no push targets has left them with whom it revoked.
        let Some((Some(false), Some(push))) = row else { return Ok(None) };
        Ok(Some(Bytes::copy_from_slice(push)))
    }

    pub(super) async fn set_push(&self, mailbox: MailboxId, device: &DeviceId, push: &Bytes) -> Result<bool> {
        let values = [Value::Blob(push), Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str())];
        self.run_if(&self.statements.set_push, &values).await
    }

    pub(super) async fn replace_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<&Bytes>,
    ) -> Result<bool> {
        let new = new.map_or(Value::Null, |new| Value::Blob(new));
        let (mailbox, device) = (Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str()));
        self.run_if(&self.statements.replace_push, &[new, mailbox, device, Value::Blob(old)]).await
    }

    pub(super) async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        let values = [Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str())];
        let answer = rows(self.run(&self.statements.woken, &values).await?)?;
        let row = answer.maybe_first_row::<(Option<i64>, Option<i8>, Option<i64>)>().map_err(damaged)?;
        let Some((Some(seq), Some(attempt), at)) = row else { return Ok(None) };
        let attempt = u8::try_from(attempt).map_err(|_| Damaged("the number of an attempt"))?;
        // The first version of the schema had no time.
        let at = UnixMillis(at.map_or(Ok(0), from_big)?);
        Ok(Some(Woken { seq: Seq(from_big(seq)?), attempt, at }))
    }

    /// The timestamp is the value, as for cursors; all columns are written together, so all are of one wake. Of two of one slot
    /// and attempt the greater `at` stands: both databases compare values by bytes, and none here is negative.
    pub(super) async fn raise_woken(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        woken: Woken,
    ) -> Result<()> {
        let attempt = Value::Tiny(i8::try_from(woken.attempt).unwrap_or(i8::MAX));
        let (mailbox, device) = (Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str()));
        let values = [big(woken.stamp()?), big(woken.seq.0), attempt, big(woken.at.0), mailbox, device];
        self.run(&self.statements.raise_woken, &values).await.map(drop)
    }

    pub(super) async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        let minute = self.clock.now().0 / MINUTE_MS;
        let values = [Value::Tiny(shard_of(mailbox)), big(minute), Value::Blob(mailbox.as_bytes())];
        self.run(&self.statements.add_pending, &values).await.map(drop)
    }

    /// With a time to live of its own: the table's would end a note for tomorrow before it is read.
    pub(super) async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        let now = self.clock.now();
        let minute = note_minute(at, now);
        let (shard, ttl) = (Value::Tiny(shard_of(mailbox)), Value::Int(note_ttl_s(minute, now)));
        let values = [shard, big(minute), Value::Blob(mailbox.as_bytes()), ttl];
        self.run(&self.statements.add_pending_at, &values).await.map(drop)
    }

    pub(super) async fn swept(&self, shard: u8) -> Result<Option<UnixMillis>> {
        let shard = Value::Tiny(i8::try_from(shard).unwrap_or(i8::MAX));
        let answer = rows(self.run(&self.statements.swept, &[shard]).await?)?;
        let row = answer.maybe_first_row::<(Option<i64>,)>().map_err(damaged)?;
        let upto = row.and_then(|(upto,)| upto).map(from_big).transpose()?;
        Ok(upto.map(UnixMillis))
    }

    pub(super) async fn raise_swept(&self, shard: u8, upto: UnixMillis) -> Result<()> {
        let shard = Value::Tiny(i8::try_from(shard).unwrap_or(i8::MAX));
        let values = [big(upto.0), big(upto.0), shard];
        self.run(&self.statements.raise_swept, &values).await.map(drop)
    }

    pub(super) async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        let now = self.clock.now();
        let first = since.0.max(now.0.saturating_sub(PENDING_MS)) / MINUTE_MS;
        let last = last_minute(now);
        if since > now {
            return Ok((Vec::new(), now));
        }
        let partitions = (first..=last).flat_map(|minute| (0..SHARDS).map(move |shard| (shard, minute)));
        let mut reads = stream::iter(partitions)
            .map(|(shard, minute)| self.pending_partition(shard, minute))
            .buffer_unordered(PENDING_PARALLEL);
        let mut all = BTreeSet::new();
        while let Some(found) = reads.try_next().await? {
            all.extend(found);
            if all.len() >= PENDING_FOUND_MAX {
                break;
            }
        }
        Ok((all.into_iter().collect(), now))
    }

    async fn pending_partition(&self, shard: u8, minute: u64) -> Result<Vec<MailboxId>> {
        let shard = i8::try_from(shard).unwrap_or_default();
        let (mut all, mut after) = (Vec::new(), Vec::new());
        while all.len() < PENDING_FOUND_MAX {
            let values = [Value::Tiny(shard), big(minute), Value::Blob(&after), limit(PENDING_PAGE)];
            let answer = rows(self.run(&self.statements.pending, &values).await?)?;
            let page = mailboxes(&answer)?;
            let Some(last) = page.last().filter(|_| page.len() == PENDING_PAGE) else {
                all.extend(page);
                break;
            };
            after = last.0.to_vec();
            all.extend(page);
        }
        Ok(all)
    }

    pub(super) async fn pending_page(
        &self,
        shard: u8,
        from: PendingFrom,
        rows_max: usize,
    ) -> Result<PendingPage> {
        let (as_of, rows_max) = (self.clock.now(), page_rows(rows_max));
        let (from, last) = (from.kept(as_of), last_minute(as_of));
        let until = last.min(from.minute().saturating_add(MINUTES_MAX - 1));
        let minutes = (from.minute()..=until).map(|minute| {
            let after = from.after().filter(|_| minute == from.minute());
            self.pending_minute(shard, minute, after, rows_max)
        });
        let mut reads = stream::iter(minutes).buffered(MINUTES_PARALLEL);
        let mut mailboxes: Vec<MailboxId> = Vec::new();
        while let Some((minute, mut found)) = reads.try_next().await? {
            found.truncate(rows_max - mailboxes.len());
            mailboxes.append(&mut found);
            if mailboxes.len() == rows_max {
                let next = mailboxes.last().map(|mailbox| PendingFrom::behind((minute, *mailbox)));
                return Ok(PendingPage { mailboxes, next, as_of });
            }
        }
        let next = (until < last).then(|| PendingFrom::minute_of(until + 1));
        Ok(PendingPage { mailboxes, next, as_of })
    }

    /// A minute and the first mailboxes noted in it, behind one.
    async fn pending_minute(
        &self,
        shard: u8,
        minute: u64,
        after: Option<MailboxId>,
        rows_max: usize,
    ) -> Result<(u64, Vec<MailboxId>)> {
        let shard = Value::Tiny(i8::try_from(shard).unwrap_or_default());
        let after = Value::Owned(after.map_or_else(Vec::new, |after| after.0.to_vec()));
        let values = [shard, big(minute), after, limit(rows_max)];
        let answer = rows(self.run(&self.statements.pending, &values).await?)?;
        Ok((minute, mailboxes(&answer)?))
    }
}

fn mailboxes(answer: &QueryRowsResult) -> Result<Vec<MailboxId>> {
    let mut all = Vec::with_capacity(answer.rows_num());
    for row in answer.rows::<(&[u8],)>().map_err(damaged)? {
        let (mailbox,) = row.map_err(damaged)?;
        all.push(MailboxId::from_slice(mailbox).ok_or(Damaged("a mailbox's id"))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_kept_until_a_day_behind_its_minute() {
        let now = UnixMillis(600_000);
        assert_eq!([10, 11, 10 + 1440].map(|minute| note_ttl_s(minute, now)), [86_460, 86_520, 172_860]);
        assert_eq!(note_ttl_s(10, UnixMillis(659_999)), 86_401);
    }

    #[test]
    fn mailboxes_spread_over_the_shards() {
        let mut rng = chappe_protocol::testing::Rng::new(5);
        let mut counts = [0_u32; SHARDS as usize];
        for _ in 0..16_000 {
            counts[usize::try_from(shard_of(MailboxId(rng.bytes16()))).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (700..1300).contains(count)), "{counts:?}");
    }
}
