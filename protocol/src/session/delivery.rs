//! The way through the log: what was walked, what waits to be told, what was told and not acked.
//! **Invariant:** `told ≤ walked`; every targeted slot in between waits in `ready`, in order; every targeted slot that was told
//! and not acked stands in `unacked`; both together hold at most the window and one slot.

use crate::envelope::{Page, PageEnd, Slot, SlotBody};
use crate::frame::{Deliver, Limits, Role, ServerFrame, TruncatedReason};
use crate::id::{DeviceId, Seq};
use alloc::collections::VecDeque;

/// What a queued item counts against the window beside its payload; the same as in [`Slot::cost`].
const ITEM_COST: usize = 64;

/// Something that waits to be told.
#[derive(Debug, Clone)]
enum Ready {
    /// An envelope; its `prev` is filled in when it is told.
    Deliver(Deliver),
    /// Slots that cannot be delivered.
    Truncated { from: Seq, to: Seq, why: TruncatedReason },
}

impl Ready {
    /// Its first slot.
    fn first(&self) -> Seq {
        match self {
            Self::Deliver(deliver) => deliver.seq,
            Self::Truncated { from, .. } => *from,
        }
    }

    fn cost(&self) -> usize {
        match self {
            Self::Deliver(deliver) => ITEM_COST + deliver.payload.len(),
            Self::Truncated { .. } => ITEM_COST,
        }
    }
}

/// Something that was told and not acked.
#[derive(Debug, Clone, Copy)]
struct Unacked {
    /// Its first slot: the cursor stays before it.
    first: Seq,
    /// Its last slot: an ack up to here settles it.
    last: Seq,
    cost: usize,
}

/// What came of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// The walk moved on.
    Progress,
    /// Nothing joined on to where the walk stands: as good as a failed read.
    Nothing,
}

/// The window and the two queues it bounds.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    /// The position last told on this connection: the next `prev`.
    told: Seq,
    /// Everything up to here is told, waits in `ready`, or does not target the device.
    walked: Seq,
    known_head: Seq,
    /// The head at attach, until `BacklogEnd` is told.
    backlog: Option<Seq>,
    /// The first frame, if the client's cursor was foreign.
    foreign: Option<Seq>,
    ready: VecDeque<Ready>,
    ready_bytes: usize,
    unacked: VecDeque<Unacked>,
    unacked_bytes: usize,
    /// The window's bytes at present.
    window_bytes: u32,
    /// Bytes acked since the window last grew.
    acked_bytes: u32,
    /// The window kept something back, or is used up, since the last ack.
    was_full: bool,
}

impl Delivery {
    pub(super) fn new(from: Seq, head: Seq, foreign: Option<Seq>, window_bytes: u32) -> Self {
        Self {
            told: from,
            walked: from,
            known_head: head.max(from),
            backlog: Some(head),
            foreign,
            ready: VecDeque::new(),
            ready_bytes: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            window_bytes,
            acked_bytes: 0,
            was_full: false,
        }
    }

    pub(super) fn told(&self) -> Seq {
        self.told
    }

    pub(super) fn walked(&self) -> Seq {
        self.walked
    }

    pub(super) fn known_head(&self) -> Seq {
        self.known_head
    }

    pub(super) fn raise_head(&mut self, head: Seq) {
        self.known_head = self.known_head.max(head);
    }

    pub(super) fn has_unacked(&self) -> bool {
        !self.unacked.is_empty()
    }

    /// Items and bytes told and not acked.
    pub(super) fn unacked(&self) -> (usize, usize) {
        (self.unacked.len(), self.unacked_bytes)
    }

    /// Items and bytes held: waiting, or told and not acked.
    pub(super) fn held(&self) -> (usize, usize) {
        (self.ready.len() + self.unacked.len(), self.ready_bytes + self.unacked_bytes)
    }

    /// Items that the queues have room for: memory that is held.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.ready.capacity() + self.unacked.capacity()
    }

    pub(super) fn window_bytes(&self) -> u32 {
        self.window_bytes
    }

    /// Everything up to here was acked or does not target the device.
    pub(super) fn cursor(&self) -> Seq {
        let first =
            self.unacked.front().map(|item| item.first).or_else(|| self.ready.front().map(Ready::first));
        first.map_or(self.walked, before)
    }

    /// How much to read now: rows and bytes. `None`: nothing to read, or less than half of the window is free.
    /// Half, so that a device which acks one by one does not make us read one by one.
    pub(super) fn wanted(&self, limits: &Limits) -> Option<(usize, usize)> {
        let (items, bytes) = self.held();
        let (items_max, bytes_max) = (limits.window_envelopes_max as usize, self.window_bytes as usize);
        let open = items == 0 || (items * 2 <= items_max && bytes * 2 <= bytes_max);
        (self.walked < self.known_head && open)
            .then(|| (items_max.saturating_sub(items).max(1), bytes_max.saturating_sub(bytes).max(1)))
    }

    /// Takes a slot that rode on a doorbell, if it is the next one and the window has room for it.
    pub(super) fn take_rung(&mut self, slot: &Slot, device: &DeviceId, since: Seq, limits: &Limits) -> bool {
        let (items, bytes) = self.held();
        let next = slot.seq == self.walked.next() && slot.seq > self.walked;
        if next && self.fits(items, bytes, slot.cost(), limits) {
            self.walk(slot.clone(), device, since);
            true
        } else {
            false
        }
    }

    /// Takes what a read returned, as far as it joins on and the window has room.
    pub(super) fn take_page(&mut self, page: Page, device: &DeviceId, since: Seq, limits: &Limits) -> Intake {
        let before = self.walked;
        for slot in page.slots {
            let (items, bytes) = self.held();
            let joins = slot.seq == self.walked.next() && slot.seq > self.walked;
            if !joins || !self.fits(items, bytes, 1, limits) {
                // The rest, and what `end` says about the place behind it, is read again.
                return if self.walked > before { Intake::Progress } else { Intake::Nothing };
            }
            self.walk(slot, device, since);
        }
        match page.end {
            PageEnd::Head(head) => self.raise_head(head),
            // Without room for it, the next read finds it out again.
            PageEnd::Truncated(to)
                if to > self.walked && self.fits(self.held().0, self.held().1, 1, limits) =>
            {
                self.truncate(self.walked.next(), to, TruncatedReason::Trimmed);
            }
            PageEnd::Truncated(_) | PageEnd::Limit => {}
        }
        if self.walked > before { Intake::Progress } else { Intake::Nothing }
    }

    /// The device has everything up to `upto`. Returns whether that opened a window which was full.
    pub(super) fn ack(&mut self, upto: Seq, limits: &Limits) -> bool {
        while let Some(item) = self.unacked.pop_front_if(|item| item.last <= upto) {
            self.unacked_bytes -= item.cost;
            self.acked_bytes = self.acked_bytes.saturating_add(u32::try_from(item.cost).unwrap_or(u32::MAX));
        }
        if self.unacked.is_empty() {
            self.unacked = VecDeque::new();
        }
        if self.acked_bytes >= self.window_bytes {
            self.acked_bytes = 0;
            let doubled = self.window_bytes.saturating_mul(2);
            self.window_bytes = doubled.min(limits.window_bytes_max).max(self.window_bytes);
        }
        core::mem::take(&mut self.was_full)
    }

    /// The position that a Pong may tell: past untargeted slots, never past an item that is still to be told.
    pub(super) fn tell_position(&mut self) -> Seq {
        let position = self.ready.front().map_or(self.walked, |item| before(item.first()));
        self.told = self.told.max(position);
        self.told
    }

    /// The Truncated of a foreign cursor: before every other frame. It needs no ack: told again until the client's tag is right.
    pub(super) fn poll_foreign(&mut self) -> Option<ServerFrame> {
        let from = self.foreign.take()?;
        Some(ServerFrame::Truncated { from, to: self.told, why: TruncatedReason::ForeignCursor })
    }

    /// `BacklogEnd`, once everything up to the head at attach was told.
    pub(super) fn poll_backlog_end(&mut self) -> Option<ServerFrame> {
        let head = self.backlog?;
        let still_to_tell = self.walked < head || self.ready.front().is_some_and(|item| item.first() <= head);
        if still_to_tell {
            return None;
        }
        self.backlog = None;
        self.told = self.told.max(head);
        Some(ServerFrame::BacklogEnd { upto: self.told })
    }

    /// The next item, if the window lets it out. What a main session is told waits for its ack; a peek acks nothing.
    pub(super) fn poll_item(&mut self, role: Role, limits: &Limits) -> Option<ServerFrame> {
        let cost = self.ready.front()?.cost();
        if !self.fits(self.unacked.len(), self.unacked_bytes, cost, limits) {
            self.was_full = true;
            return None;
        }
        let item = self.ready.pop_front()?;
        self.ready_bytes -= cost;
        if self.ready.is_empty() {
            self.ready = VecDeque::new();
        }
        let first = item.first();
        let (frame, last) = match item {
            Ready::Deliver(mut deliver) => {
                deliver.prev = self.told;
                (ServerFrame::Deliver(deliver), first)
            }
            Ready::Truncated { from, to, why } => (ServerFrame::Truncated { from, to, why }, to),
        };
        self.told = last;
        if role == Role::Main {
            self.unacked.push_back(Unacked { first, last, cost });
            self.unacked_bytes += cost;
            self.was_full |= !self.fits(self.unacked.len(), self.unacked_bytes, 1, limits);
        }
        Some(frame)
    }

    /// Whether one more of this cost is within the window; one envelope always is.
    fn fits(&self, items: usize, bytes: usize, cost: usize, limits: &Limits) -> bool {
        let within_bytes = bytes.saturating_add(cost) <= self.window_bytes as usize;
        items == 0 || (items < limits.window_envelopes_max as usize && within_bytes)
    }

    /// Walks over the next slot, queueing it if it targets the device.
    fn walk(&mut self, slot: Slot, device: &DeviceId, since: Seq) {
        if !slot.devices.targets(device, since, slot.seq) {
            self.move_to(slot.seq);
            return;
        }
        let (seq, why) = match slot.body {
            SlotBody::Present(payload) => {
                self.move_to(slot.seq);
                self.push(Ready::Deliver(Deliver {
                    seq: slot.seq,
                    prev: Seq::ZERO,
                    envelope_id: slot.envelope_id,
                    sender: slot.sender,
                    at: slot.at,
                    expires_at: slot.expires_at,
                    payload,
                    urgency: slot.urgency,
                }));
                return;
            }
            SlotBody::Expired => (slot.seq, TruncatedReason::Expired),
            SlotBody::Lost => (slot.seq, TruncatedReason::Lost),
        };
        self.truncate(seq, seq, why);
    }

    /// Queues a Truncated, as part of the one before it where that joins on.
    fn truncate(&mut self, from: Seq, to: Seq, why: TruncatedReason) {
        match self.ready.back_mut() {
            Some(Ready::Truncated { to: last, why: same, .. }) if *same == why && last.next() == from => {
                *last = to;
            }
            Some(Ready::Deliver(_) | Ready::Truncated { .. }) | None => {
                self.push(Ready::Truncated { from, to, why });
            }
        }
        self.move_to(to);
    }

    fn push(&mut self, item: Ready) {
        self.ready_bytes += item.cost();
        self.ready.push_back(item);
    }

    fn move_to(&mut self, seq: Seq) {
        self.walked = seq;
        self.raise_head(seq);
    }
}

/// The place before this one.
fn before(seq: Seq) -> Seq {
    Seq(seq.0.saturating_sub(1))
}
