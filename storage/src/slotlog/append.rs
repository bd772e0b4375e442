//! Append: one conditional batch per bucket on the head register. **Invariant:** an id that stands anywhere in the log, and
//! is younger than 2 days, is never written again: the buckets before the append's are full, hence final, and were searched
//! before the compare-and-set; the append's own bucket is compared by it.

use super::cache::{Known, LookBack};
use super::stats::add;
use super::{SlotLog, partition};
use crate::error::{Result, StoreError};
use crate::memory::ID_MS;
#[cfg(feature = "testing")]
use crate::planted::Planted;
use crate::rows::{Applied, Batch, Head, Rows};
use crate::{AppendReply, Appended, Entry, EntryPayload};
use chappe_protocol::id::{Bucket, EnvelopeId, MailboxId, Seq};
use chappe_protocol::time::UnixMillis;
use std::collections::{BTreeMap, BTreeSet};

/// Entries of one append, at most.
const ENTRIES_MAX: usize = 64;
/// Their payload bytes, at most; payloads stored elsewhere do not count.
const BYTES_MAX: usize = 512 * 1024;
/// Tries of one compare-and-set whose outcome stays open.
const UNDECIDED_MAX: usize = 3;
/// Compare-and-sets of one append. Each refusal means that another append succeeded.
const ROUNDS_MAX: usize = 200;

/// One call of `append`.
struct Call<'a> {
    entries: &'a [Entry],
    found: BTreeMap<EnvelopeId, Appended>,
    /// Buckets below were searched; `None`: none yet.
    searched: Option<Bucket>,
    /// Something of this call is in the log, perhaps by this call.
    wrote: bool,
}

impl<'a> Call<'a> {
    /// What is not in the log yet, in order, each id once.
    fn open(&self) -> Vec<&'a Entry> {
        let mut seen = BTreeSet::new();
        let open =
            |entry: &&Entry| !self.found.contains_key(&entry.envelope_id) && seen.insert(entry.envelope_id);
        self.entries.iter().filter(open).collect()
    }

    /// "Certainly nothing written" is a lie once an earlier bucket's batch was written.
    fn honest(&self, error: StoreError) -> StoreError {
        if let (StoreError::Unavailable(why), true) = (&error, self.wrote) {
            return StoreError::Unknown(why.clone());
        }
        error
    }

    fn reply(&self, head: Seq) -> AppendReply {
        let mut seen = BTreeSet::new();
        let answer = |entry: &Entry| match self.found.get(&entry.envelope_id).copied() {
            Some(Appended::Committed(seq)) if !seen.insert(entry.envelope_id) => {
                Some(Appended::Duplicate(seq))
            }
            other => other,
        };
        let entries: Vec<_> = self.entries.iter().filter_map(answer).collect();
        let head = entries.iter().map(|entry| entry.seq()).fold(head, Seq::max);
        AppendReply { entries, head }
    }
}

fn inline_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Inline(payload) => payload.len(),
        EntryPayload::Ref { .. } => 0,
    }
}

/// Bytes an entry counts against the quota.
fn quota_bytes(entry: &Entry) -> u64 {
    match &entry.payload {
        EntryPayload::Inline(payload) => payload.len() as u64,
        EntryPayload::Ref { bytes, .. } => u64::from(*bytes),
    }
}

impl<R: Rows> SlotLog<R> {
    pub(super) async fn append_entries(
        &self,
        mailbox: MailboxId,
        entries: &[Entry],
        base: Option<Bucket>,
    ) -> Result<AppendReply> {
        if entries.is_empty() || entries.len() > ENTRIES_MAX {
            return Err(StoreError::Invalid("an append holds 1 to 64 entries"));
        }
        if entries.iter().map(inline_bytes).sum::<usize>() > BYTES_MAX {
            return Err(StoreError::Invalid("an append holds at most 512 KiB of payload"));
        }
        let mut call = Call { entries, found: BTreeMap::new(), searched: None, wrote: false };
        for _ in 0..ROUNDS_MAX {
            match self.append_round(mailbox, &mut call, base).await {
                Ok(Some(head)) => {
                    let reply = call.reply(head);
                    let duplicate = |entry: &&Appended| matches!(entry, Appended::Duplicate(_));
                    add(&self.counters.duplicates, reply.entries.iter().filter(duplicate).count());
                    return Ok(reply);
                }
                Ok(None) => {}
                Err(error) => return Err(call.honest(error)),
            }
        }
        Err(call.honest(StoreError::Unavailable("too many others append to this mailbox".into())))
    }

    /// One compare-and-set, or the finding that nothing is left to write: then the head.
    async fn append_round(
        &self,
        mailbox: MailboxId,
        call: &mut Call<'_>,
        base: Option<Bucket>,
    ) -> Result<Option<Seq>> {
        let known = self.any_head(mailbox).await?;
        if known.erased() {
            return Err(StoreError::Erased);
        }
        let shape = self.config.shape;
        #[cfg(feature = "testing")]
        let known = if self.planted(Planted::OpensUnsealed) { known.taken_for_full(shape) } else { known };
        let (bucket, expected) = known.next(shape);
        self.look_back(mailbox, call, base, bucket).await?;
        let mut open = call.open();
        if open.is_empty() {
            return Ok(Some(known.seq()));
        }
        if !call.wrote && self.over_quota(mailbox, &known, &open).await? {
            self.search(mailbox, call, bucket).await?;
            open = call.open();
            if open.is_empty() {
                return Ok(Some(known.seq()));
            }
            if self.over_quota(mailbox, &known, &open).await? {
                add(&self.counters.quota_refused, 1);
                return Err(StoreError::Quota);
            }
        }
        let room = usize::try_from(shape.last(bucket).0 - known.seq().0).unwrap_or(usize::MAX);
        open.truncate(room);
        let to = Head {
            seq: Seq(known.seq().0 + open.len() as u64),
            opened_at: known
                .head
                .filter(|_| expected.is_some())
                .map_or_else(|| self.rows.now(), |head| head.opened_at),
            bytes_total: known.head.map_or(0, |head| head.bytes_total)
                + open.iter().map(|e| quota_bytes(e)).sum::<u64>(),
        };
        let slots: Vec<_> = (known.seq().next().0..).map(Seq).zip(open).collect();
        let batch = Batch { expected, to, slots };
        self.commit(mailbox, call, bucket, &batch).await?;
        let done = call.open().is_empty();
        Ok(done.then_some(to.seq))
    }

    /// Sends the batch until it is decided, and takes what the answer says.
    async fn commit(
        &self,
        mailbox: MailboxId,
        call: &mut Call<'_>,
        bucket: Bucket,
        batch: &Batch<'_>,
    ) -> Result<()> {
        let at = self.world.now();
        match self.decide(mailbox, bucket, batch).await? {
            Applied::Yes => {
                call.wrote = true;
                let ids =
                    batch.slots.iter().map(|(seq, entry)| (entry.envelope_id, Appended::Committed(*seq)));
                for (seq, entry) in &batch.slots {
                    tracing::debug!(envelope = %entry.envelope_id, seq = seq.0, "appended");
                }
                call.found.extend(ids);
                add(&self.counters.committed, batch.slots.len());
                self.cache.learn(mailbox, Known { bucket, head: Some(batch.to), at });
                if batch.expected.is_none() && bucket.0 > 0 {
                    add(&self.counters.crossings, 1);
                    // Only spares later cold starts some reads.
                    drop(self.rows.raise_hint(mailbox, bucket).await);
                }
            }
            Applied::No { head, existing } => {
                add(&self.counters.refused, 1);
                // They may stand there by an undecided try of this very batch.
                call.wrote |= !existing.is_empty();
                call.found.extend(existing.into_iter().map(|(id, seq)| (id, Appended::Duplicate(seq))));
                if head.map(|head| head.seq) < batch.expected {
                    add(&self.counters.heads_back, 1);
                    tracing::error!(mailbox = %mailbox, "a head register went back: the database has lost a write");
                    self.cache.forget_head(mailbox);
                    return Err(StoreError::Unavailable("the head register went back".into()));
                }
                let Some(register) = head else {
                    self.cache.forget_head(mailbox);
                    return Ok(());
                };
                self.cache.learn(mailbox, Known { bucket, head, at });
                if register.seq == self.config.shape.last(bucket) {
                    // Perhaps far behind: do not try bucket by bucket.
                    self.serial_head(mailbox).await?;
                }
            }
        }
        Ok(())
    }

    async fn decide(&self, mailbox: MailboxId, bucket: Bucket, batch: &Batch<'_>) -> Result<Applied> {
        let mut open: Option<StoreError> = None;
        for _ in 0..UNDECIDED_MAX {
            let error = match self.rows.compare_and_append(partition(mailbox, bucket), batch.clone()).await {
                Ok(applied) => return Ok(applied),
                Err(error) => error,
            };
            let certain = matches!(error, StoreError::Unavailable(_) | StoreError::Invalid(_));
            if certain && open.is_none() {
                return Err(error);
            }
            #[cfg(feature = "testing")]
            if self.planted(Planted::UnknownToldAsUnavailable) {
                return Err(StoreError::Unavailable(error.to_string()));
            }
            add(&self.counters.undecided, 1);
            open.get_or_insert(error);
        }
        match open {
            Some(StoreError::Unknown(why)) => Err(StoreError::Unknown(why)),
            Some(other) => Err(StoreError::Unknown(other.to_string())),
            None => Err(StoreError::Unavailable("not tried".into())),
        }
    }

    /// Searches the buckets before `bucket` that a transmission of these ids may have reached. They are full, so what is
    /// not found there never will be.
    async fn look_back(
        &self,
        mailbox: MailboxId,
        call: &mut Call<'_>,
        base: Option<Bucket>,
        bucket: Bucket,
    ) -> Result<()> {
        #[cfg(feature = "testing")]
        if self.planted(Planted::SkipLookBack)
            || (self.planted(Planted::LookBackOnlyOnRetry) && base.is_some())
        {
            return Ok(());
        }
        let from = match (call.searched, base) {
            (Some(searched), _) => searched,
            (None, Some(base)) => base,
            (None, None) => self.look_back_bound(mailbox, bucket).await?,
        };
        #[cfg(feature = "testing")]
        let from = if self.planted(Planted::LookBackStopsAtFloor) {
            from.max(self.rows.floor(mailbox).await?.bucket)
        } else {
            from
        };
        for before in from.0..bucket.0 {
            let found = self.search(mailbox, call, Bucket(before)).await?;
            add(&self.counters.look_back_reads, 1);
            add(&self.counters.look_back_hits, found);
        }
        call.searched = Some(from.max(bucket));
        Ok(())
    }

    /// Looks the open ids up in one bucket; how many were found.
    async fn search(&self, mailbox: MailboxId, call: &mut Call<'_>, bucket: Bucket) -> Result<usize> {
        let ids: Vec<_> = call.open().iter().map(|entry| entry.envelope_id).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let places = self.rows.find_ids(partition(mailbox, bucket), &ids).await?;
        let found: Vec<_> = ids
            .into_iter()
            .zip(places)
            .filter_map(|(id, seq)| Some((id, Appended::Duplicate(seq?))))
            .collect();
        let count = found.len();
        call.found.extend(found);
        Ok(count)
    }

    /// Looks ids up in every bucket that a transmission of them may have reached, the head's included.
    pub(super) async fn find_envelopes(
        &self,
        mailbox: MailboxId,
        ids: &[EnvelopeId],
        base: Option<Bucket>,
    ) -> Result<Vec<Option<Seq>>> {
        let known = self.serial_head(mailbox).await?;
        if known.erased() {
            return Err(StoreError::Erased);
        }
        let from = match base {
            Some(base) => base,
            None => self.look_back_bound(mailbox, known.bucket).await?,
        };
        let mut found = vec![None; ids.len()];
        for bucket in from.0..=known.bucket.0 {
            let places = self.rows.find_ids(partition(mailbox, Bucket(bucket)), ids).await?;
            for (found, place) in found.iter_mut().zip(places) {
                *found = found.or(place);
            }
        }
        Ok(found)
    }

    /// The first bucket that may hold ids younger than 2 days: the last one that was opened earlier than that. It may lie
    /// below the floor, since ids and heads outlive trimmed slots.
    async fn look_back_bound(&self, mailbox: MailboxId, bucket: Bucket) -> Result<Bucket> {
        let now = self.rows.now();
        let old = |head: Head| head.opened_at + ID_MS < now;
        let (mut from, mut until) = (bucket.0, UnixMillis(0));
        if let Some(bound) = self.cache.look_back(mailbox).filter(|bound| bound.from <= bucket) {
            if now < bound.until {
                return Ok(bound.from);
            }
            from = bound.from.0;
            while from + 1 < bucket.0 {
                let Some(head) = self.register(mailbox, from + 1).await? else { break };
                if !old(head) {
                    until = head.opened_at + ID_MS;
                    break;
                }
                from += 1;
            }
        } else {
            while from > 0 {
                from -= 1;
                let Some(head) = self.register(mailbox, from).await? else { continue };
                if old(head) {
                    break;
                }
                until = head.opened_at + ID_MS;
            }
        }
        let bound = LookBack { from: Bucket(from), until };
        self.cache.learn_look_back(mailbox, bound);
        Ok(bound.from)
    }

    async fn over_quota(&self, mailbox: MailboxId, known: &Known, open: &[&Entry]) -> Result<bool> {
        let slots = known.seq().0 + open.len() as u64;
        let bytes =
            known.head.map_or(0, |head| head.bytes_total) + open.iter().map(|e| quota_bytes(e)).sum::<u64>();
        let over = |floor: crate::rows::Floor| {
            let trimmed = self.config.shape.first(floor.bucket).0 - 1;
            slots.saturating_sub(trimmed) > self.config.slots_max
                || bytes.saturating_sub(floor.bytes_total) > self.config.bytes_max
        };
        if !over(self.cache.floor(mailbox).unwrap_or_default()) {
            return Ok(false);
        }
        let floor = self.rows.floor(mailbox).await?;
        self.cache.learn_floor(mailbox, floor);
        Ok(over(floor))
    }
}
