//! One mailbox as simply as it can be said: a list of slots, a floor, and a cursor per device.
//! **Invariant:** the list is dense from 1 and a slot, once there, changes only by losing its payload (I2, I7).

use crate::envelope::{DeviceFilter, Page, PageEnd, Slot, SlotBody};
use crate::id::{ConnectionId, DeviceId, EnvelopeId, Epoch, Seq};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// A device of the model.
#[derive(Debug, Clone)]
pub struct ModelDevice {
    /// Which.
    pub device: DeviceId,
    /// Its first cursor.
    pub since: Seq,
    /// Its cursor as stored: a max-register.
    pub cursor: Seq,
    /// Its newest session.
    pub epoch: Epoch,
    /// That session's socket.
    pub connection: ConnectionId,
}

/// The reference mailbox.
#[derive(Debug, Clone, Default)]
pub struct Model {
    slots: Vec<Slot>,
    ids: BTreeSet<EnvelopeId>,
    floor: u64,
}

impl Model {
    /// An empty mailbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its head.
    pub fn head(&self) -> Seq {
        Seq(u64::try_from(self.slots.len()).unwrap_or(u64::MAX))
    }

    /// The last slot that was trimmed.
    pub fn floor(&self) -> Seq {
        Seq(self.floor)
    }

    /// Appends, once per id (I14): `None` for a duplicate. The slot's `seq` is set here.
    pub fn append(&mut self, mut slot: Slot) -> Option<Seq> {
        if !self.ids.insert(slot.envelope_id) {
            return None;
        }
        slot.seq = self.head().next();
        let seq = slot.seq;
        self.slots.push(slot);
        Some(seq)
    }

    /// The slot as it stands, trimmed or not.
    pub fn slot(&self, seq: Seq) -> Option<&Slot> {
        let index = usize::try_from(seq.0.checked_sub(1)?).ok()?;
        self.slots.get(index)
    }

    /// Takes a payload away.
    pub fn set_body(&mut self, seq: Seq, body: SlotBody) {
        let index = seq.0.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        if let Some(slot) = index.and_then(|index| self.slots.get_mut(index)) {
            slot.body = body;
        }
    }

    /// Trims everything up to here; never back, never beyond the head.
    pub fn trim(&mut self, upto: Seq) {
        self.floor = self.floor.max(upto.0.min(self.head().0));
    }

    /// Whether the slot exists and targets the device.
    pub fn targets(&self, device: &ModelDevice, seq: Seq) -> bool {
        self.slot(seq).is_some_and(|slot| filter_of(slot).targets(&device.device, device.since, seq))
    }

    /// As `Store::read` promises it.
    pub fn read(&self, after: Seq, rows_max: usize, bytes_max: usize) -> Page {
        if after.0 < self.floor {
            return Page { slots: Vec::new(), end: PageEnd::Truncated(Seq(self.floor)) };
        }
        let mut slots = Vec::new();
        let mut bytes = 0_usize;
        let mut next = after.next();
        while let Some(slot) = self.slot(next) {
            bytes = bytes.saturating_add(slot.cost());
            if slots.len() >= rows_max || (bytes > bytes_max && !slots.is_empty()) {
                return Page { slots, end: PageEnd::Limit };
            }
            slots.push(slot.clone());
            next = next.next();
        }
        Page { slots, end: PageEnd::Head(self.head()) }
    }
}

fn filter_of(slot: &Slot) -> &DeviceFilter {
    &slot.devices
}
