//! Envelopes and their targets, as every role knows them. **Invariant:** a payload is opaque bytes.

use crate::id::{DeviceId, EnvelopeId, Seq, UserId};
use crate::time::UnixMillis;
use alloc::vec::Vec;
use bytes::Bytes;

/// Who sent an envelope, as the gateway has checked it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sender {
    /// The sending user.
    pub user: UserId,
    /// The sending device.
    pub device: DeviceId,
}

/// How soon an envelope matters to the person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Urgency {
    /// Can wait for the device to wake by itself.
    Background,
    /// A message.
    #[default]
    Message,
    /// A call: rings.
    Call,
}

/// Which devices of the mailbox's user an envelope is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum DeviceFilter {
    /// Every device whose first cursor (`since`) lies below the slot.
    #[default]
    All,
    /// These, if their `since` lies below the slot.
    Only(Vec<DeviceId>),
    /// All but these.
    AllBut(Vec<DeviceId>),
}

impl DeviceFilter {
    /// Whether slot `seq` targets the device, whose first cursor is `since`.
    pub fn targets(&self, device: &DeviceId, since: Seq, seq: Seq) -> bool {
        since < seq && self.names(device)
    }

    /// Whether the device passes the filter, whatever its age.
    pub fn names(&self, device: &DeviceId) -> bool {
        match self {
            Self::All => true,
            Self::Only(devices) => devices.contains(device),
            Self::AllBut(devices) => !devices.contains(device),
        }
    }
}

/// What a slot holds, as read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotBody {
    /// The payload.
    Present(Bytes),
    /// Past `expires_at`: gone as promised.
    Expired,
    /// The store lost it before its time; told to the device, alarm raised.
    Lost,
}

/// One slot of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its place.
    pub seq: Seq,
    /// Its envelope.
    pub envelope_id: EnvelopeId,
    /// Who sent it; `None` when the payload is gone.
    pub sender: Option<Sender>,
    /// For which devices.
    pub devices: DeviceFilter,
    /// When the router accepted it.
    pub at: UnixMillis,
    /// When the payload goes.
    pub expires_at: UnixMillis,
    /// How soon it matters.
    pub urgency: Urgency,
    /// The payload, or why there is none.
    pub body: SlotBody,
}

impl Slot {
    /// Bytes this slot counts against windows and pages: its payload plus a flat 64 for the rest.
    pub fn cost(&self) -> usize {
        64 + match &self.body {
            SlotBody::Present(payload) => payload.len(),
            SlotBody::Expired | SlotBody::Lost => 0,
        }
    }
}

/// A contiguous run of a mailbox, as a read returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Slots `after + 1, after + 2, …` without a gap; empty if the run is.
    pub slots: Vec<Slot>,
    /// Why the run ended.
    pub end: PageEnd,
}

/// Why a page ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageEnd {
    /// At the head, which is this.
    Head(Seq),
    /// At the limit of rows or bytes; there is more.
    Limit,
    /// The slots behind the run, up to and including this one, were trimmed; read on after it.
    Truncated(Seq),
}
