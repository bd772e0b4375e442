//! Arbitrary words of the protocol from a [`Rng`]. **Invariant:** all that is generated is well-formed unless its name says otherwise.

use super::Rng;
use crate::envelope::{DeviceFilter, Page, PageEnd, Sender, Slot, SlotBody, Urgency};
use crate::id::{ConnectionId, DeviceId, EnvelopeId, Epoch, Seq, UserId};
use crate::internode::DeviceNews;
use crate::time::UnixMillis;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

/// The device with this number: `device-0`, `device-1`, …; `None` never.
pub fn device(number: u64) -> Option<DeviceId> {
    DeviceId::new(&format!("device-{number}")).ok()
}

/// A sender.
pub fn sender(rng: &mut Rng) -> Option<Sender> {
    let user = UserId::new(&format!("user-{}", rng.below(4))).ok()?;
    Some(Sender { user, device: device(rng.below(4))? })
}

/// A filter over these devices; more often than not it lets all of them pass.
pub fn filter(rng: &mut Rng, devices: &[DeviceId]) -> DeviceFilter {
    let some = |rng: &mut Rng| devices.iter().filter(|_| rng.percent(50)).cloned().collect();
    match rng.below(4) {
        0 => DeviceFilter::Only(some(rng)),
        1 => DeviceFilter::AllBut(some(rng)),
        _ => DeviceFilter::All,
    }
}

/// How soon it matters.
pub fn urgency(rng: &mut Rng) -> Urgency {
    match rng.below(3) {
        0 => Urgency::Background,
        1 => Urgency::Message,
        _ => Urgency::Call,
    }
}

/// A slot with a payload of at most `bytes_max` bytes, most often a short one.
pub fn slot(rng: &mut Rng, seq: Seq, devices: &[DeviceId], bytes_max: u64) -> Slot {
    let bytes_max = if rng.percent(70) { bytes_max / 8 } else { bytes_max };
    let length = usize::try_from(rng.below(bytes_max.saturating_add(1))).unwrap_or(0);
    Slot {
        seq,
        envelope_id: EnvelopeId(rng.bytes16()),
        sender: sender(rng),
        devices: filter(rng, devices),
        at: UnixMillis(rng.below(1 << 41)),
        expires_at: UnixMillis(rng.below(1 << 42)),
        urgency: urgency(rng),
        body: SlotBody::Present(Bytes::from(vec![0x5a; length])),
    }
}

/// A seq near `around`, or, rarely, one from the edges of its range.
pub fn wild_seq(rng: &mut Rng, around: Seq) -> Seq {
    match rng.below(20) {
        0 => Seq::ZERO,
        1 => Seq(u64::MAX - rng.below(3)),
        2 => Seq(rng.bits()),
        _ => Seq((around.0.saturating_sub(4)).saturating_add(rng.below(9))),
    }
}

/// A page that keeps no promise: it starts anywhere, may have gaps and repeats, and ends for any reason.
pub fn wild_page(rng: &mut Rng, around: Seq, devices: &[DeviceId]) -> Page {
    let mut seq = wild_seq(rng, around);
    let mut slots = Vec::new();
    for _ in 0..rng.below(12) {
        let mut slot = slot(rng, seq, devices, 2000);
        slot.body = match rng.below(6) {
            0 => SlotBody::Expired,
            1 => SlotBody::Lost,
            _ => slot.body,
        };
        slots.push(slot);
        seq = if rng.percent(90) { seq.next() } else { wild_seq(rng, seq) };
    }
    let end = match rng.below(4) {
        0 => PageEnd::Limit,
        1 => PageEnd::Truncated(wild_seq(rng, seq)),
        _ => PageEnd::Head(wild_seq(rng, seq)),
    };
    Page { slots, end }
}

/// News of any of these devices, near this epoch.
pub fn news(rng: &mut Rng, devices: &[DeviceId], epoch: Epoch) -> Option<DeviceNews> {
    Some(DeviceNews {
        device: rng.pick(devices)?.clone(),
        epoch: Epoch((epoch.0 + rng.below(3)).saturating_sub(1)),
        connection: ConnectionId(rng.bytes16()),
        revoked: rng.percent(3),
    })
}
