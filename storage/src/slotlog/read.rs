//! Reads: a contiguous run of slots. **Invariant:** no slot is passed over: each is there, past its time, below the floor,
//! or reported as lost; and a read always moves on.

use super::stats::add;
use super::{SlotLog, partition};
use crate::EntryPayload;
use crate::error::{Result, StoreError};
#[cfg(feature = "testing")]
use crate::planted::Planted;
use crate::rows::{Rows, SlotRow};
use chappe_protocol::envelope::{Page, PageEnd, Slot, SlotBody};
use chappe_protocol::id::{Bucket, MailboxId, Seq};

/// Looks at a hole before giving up for now.
const LOOKS_MAX: usize = 3;

/// What a hole turned out to be.
enum Hole {
    /// A slot after all, or one that is lost for good.
    Slot(Slot),
    /// Trimmed up to and including this slot.
    Truncated(Seq),
}

/// A page as it grows.
struct Run {
    next: Seq,
    slots: Vec<Slot>,
    rows_left: usize,
    bytes_left: usize,
}

impl Run {
    /// Takes the next slot; `false`: it does not fit any more.
    fn take(&mut self, slot: Slot) -> bool {
        let cost = slot.cost();
        if self.rows_left == 0 || (cost > self.bytes_left && !self.slots.is_empty()) {
            return false;
        }
        self.rows_left -= 1;
        self.bytes_left = self.bytes_left.saturating_sub(cost);
        self.next = slot.seq.next();
        self.slots.push(slot);
        true
    }

    fn end(self, end: PageEnd) -> Page {
        Page { slots: self.slots, end }
    }
}

fn slot_of(row: SlotRow, body: SlotBody) -> Slot {
    let SlotRow { seq, entry, payload_gone: _, lost: _ } = row;
    let there = matches!(body, SlotBody::Present(_));
    Slot {
        seq,
        envelope_id: entry.envelope_id,
        sender: there.then_some(entry.sender),
        devices: entry.devices,
        at: entry.at,
        expires_at: entry.expires_at,
        urgency: entry.urgency,
        body,
    }
}

impl<R: Rows> SlotLog<R> {
    pub(super) async fn read_page(
        &self,
        mailbox: MailboxId,
        after: Seq,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Page> {
        let mut run =
            Run { next: after.next(), slots: Vec::new(), rows_left: rows_max.max(1), bytes_left: bytes_max };
        loop {
            let bucket = self.config.shape.bucket_of(run.next);
            // Before the rows, so that a row absent below it is a hole and not merely late.
            let head = match self.register(mailbox, bucket.0).await? {
                Some(head) => head.seq,
                None => self.serial_head(mailbox).await?.seq(),
            };
            if head == Seq::MAX {
                return if run.slots.is_empty() {
                    Err(StoreError::Erased)
                } else {
                    Ok(run.end(PageEnd::Limit))
                };
            }
            if run.next > head {
                return Ok(run.end(PageEnd::Head(head)));
            }
            let upto = head.min(self.config.shape.last(bucket));
            if let Some(end) = self.read_bucket(mailbox, bucket, upto, &mut run).await? {
                return Ok(run.end(end));
            }
        }
    }

    /// Continues the run up to `upto`; `Some`: it ends here.
    async fn read_bucket(
        &self,
        mailbox: MailboxId,
        bucket: Bucket,
        upto: Seq,
        run: &mut Run,
    ) -> Result<Option<PageEnd>> {
        while run.next <= upto {
            if run.rows_left == 0 || (run.bytes_left == 0 && !run.slots.is_empty()) {
                return Ok(Some(PageEnd::Limit));
            }
            let after = Seq(run.next.0 - 1);
            let rows = self
                .rows
                .slots(partition(mailbox, bucket), after, run.rows_left, run.bytes_left.max(1), false)
                .await?;
            let before = run.next;
            for row in rows {
                if row.seq != run.next || row.seq > upto {
                    break;
                }
                let Some(slot) = self.resolve(row).await? else { break };
                if !run.take(slot) {
                    return Ok(Some(PageEnd::Limit));
                }
            }
            if run.next > before {
                continue;
            }
            match self.look_into_hole(mailbox, bucket, run.next).await? {
                Hole::Truncated(last) => return Ok(Some(PageEnd::Truncated(last))),
                Hole::Slot(slot) if !run.take(slot.clone()) => return Ok(Some(PageEnd::Limit)),
                Hole::Slot(_) => {}
            }
        }
        Ok(None)
    }

    /// The slot of a row; `None`: its payload is missing before its time.
    async fn resolve(&self, row: SlotRow) -> Result<Option<Slot>> {
        if row.lost {
            return Ok(Some(slot_of(row, SlotBody::Lost)));
        }
        // A shared payload may outlive this slot's own time.
        if row.entry.expires_at <= self.rows.now() {
            return Ok(Some(slot_of(row, SlotBody::Expired)));
        }
        let payload = match &row.entry.payload {
            EntryPayload::Inline(_) if row.payload_gone => None,
            EntryPayload::Inline(payload) => Some(payload.clone()),
            EntryPayload::Ref { id, .. } => self.rows.payload(*id).await?,
        };
        Ok(match payload {
            Some(payload) => Some(slot_of(row, SlotBody::Present(payload))),
            None if row.entry.expires_at <= self.rows.now() => Some(slot_of(row, SlotBody::Expired)),
            None => None,
        })
    }

    /// A row absent below the head, or a payload gone before its time: read at SERIAL, then the floor, else it is lost.
    async fn look_into_hole(&self, mailbox: MailboxId, bucket: Bucket, seq: Seq) -> Result<Hole> {
        let partition = partition(mailbox, bucket);
        add(&self.counters.holes, 1);
        #[cfg(feature = "testing")]
        if self.planted(Planted::HolesSkipped) {
            return Ok(Hole::Slot(slot_of(SlotRow::lost(seq), SlotBody::Expired)));
        }
        #[cfg(feature = "testing")]
        if self.planted(Planted::HolesBelieved) {
            return Ok(Hole::Slot(slot_of(SlotRow::lost(seq), SlotBody::Lost)));
        }
        let (serial, compared) = (true, true);
        #[cfg(feature = "testing")]
        let (serial, compared) =
            if self.planted(Planted::HolesReadPlain) { (false, false) } else { (serial, compared) };
        for _ in 0..LOOKS_MAX {
            let row = self.rows.slots(partition, Seq(seq.0 - 1), 1, usize::MAX, serial).await?.pop();
            let row = row.filter(|row| row.seq == seq);
            let slot = match row.clone() {
                Some(row) => self.resolve(row).await?,
                None => None,
            };
            if let Some(slot) = slot {
                add(&self.counters.holes_healed, 1);
                return Ok(Hole::Slot(slot));
            }
            let floor = self.rows.floor(mailbox).await?;
            if bucket < floor.bucket {
                self.cache.learn_floor(mailbox, floor);
                add(&self.counters.truncated, 1);
                return Ok(Hole::Truncated(self.config.shape.last(Bucket(floor.bucket.0 - 1))));
            }
            if self.serial_head(mailbox).await?.erased() {
                return Err(StoreError::Erased);
            }
            if !compared || self.rows.mark_lost(partition, seq).await? {
                add(&self.counters.lost, 1);
                tracing::error!(mailbox = %mailbox, seq = seq.0, "a slot is lost: the database has lost a write");
                return Ok(Hole::Slot(slot_of(row.unwrap_or_else(|| SlotRow::lost(seq)), SlotBody::Lost)));
            }
        }
        Err(StoreError::Unavailable("a slot comes and goes; read again".into()))
    }
}
