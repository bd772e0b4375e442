//! What the statements write, and how rows come back: the CQL schema as cells. **Invariant:** a slot's form has no TTL, its
//! sender and payload have the payload's; an id has 2 days; heads never end.

use super::cell::{Column, Row, Value, View, Write};
use super::paxos::Found;
use super::{QuorumRows, TTL_SLACK};
use crate::memory::ID_MS;
use crate::planted::Planted;
use crate::rows::{Floor, Head, Rows, SlotRow};
use crate::{Device, Entry, EntryPayload, User};
use bytes::Bytes;
use chappe_protocol::id::{ConnectionId, DeviceId, EnvelopeId, Epoch, Seq};
use chappe_protocol::time::{Millis, UnixMillis};
use std::sync::Arc;

pub(super) fn set_head(head: Head) -> Write {
    Write::set(Row::Static, Column::Value, Value::Head(head))
}

pub(super) fn head_of(view: &View) -> Option<Head> {
    match view.get(&Row::Static, Column::Value) {
        Some(Value::Head(head)) => Some(*head),
        Some(_) | None => None,
    }
}

pub(super) fn floor_of(view: &View) -> Floor {
    match view.get(&Row::Static, Column::Value) {
        Some(Value::Floor(floor)) => *floor,
        Some(_) | None => Floor::default(),
    }
}

pub(super) fn user_of(view: &View) -> Option<User> {
    match view.get(&Row::Static, Column::Value) {
        Some(Value::User(user)) => Some(*user),
        Some(_) | None => None,
    }
}

pub(super) fn id_of(view: &View, id: EnvelopeId) -> Option<Seq> {
    match view.get(&Row::Id(id), Column::Value) {
        Some(Value::Seq(seq)) => Some(*seq),
        Some(_) | None => None,
    }
}

/// The version of a device set.
pub(super) fn version_of(view: &View) -> u64 {
    match view.get(&Row::Static, Column::Version) {
        Some(Value::Count(count)) => *count,
        Some(_) | None => 0,
    }
}

pub(super) fn next_version(view: &View) -> Write {
    Write::set(Row::Static, Column::Version, Value::Count(version_of(view) + 1))
}

/// A device and the time of its last session; there is none without a `since`.
pub(super) fn device_of(view: &View, device: &DeviceId) -> Option<(Device, UnixMillis)> {
    let row = Row::Device(device.clone());
    let Some(Value::Device(since, created_at)) = view.get(&row, Column::Value) else { return None };
    let (epoch, connection, at) = match view.get(&row, Column::Session) {
        Some(Value::Session(epoch, connection, at)) => (*epoch, *connection, *at),
        Some(_) | None => (Epoch::default(), ConnectionId::default(), *created_at),
    };
    let revoked = view.get(&row, Column::Revoked).is_some();
    Some((Device { device: device.clone(), since: *since, revoked, epoch, connection }, at))
}

/// Whether a slot has its payload, or refers to one.
pub(super) fn has_inline(row: &SlotRow) -> bool {
    matches!(row.entry.payload, EntryPayload::Inline(_)) && !row.payload_gone
}

impl QuorumRows {
    /// The end of a cell that lives until then, by the clock of the coordinator that writes it.
    pub(super) fn ends(&self, found: &Found<'_>, until: UnixMillis) -> UnixMillis {
        // A TTL has at least a second: 0 means none.
        let left = Millis(until.0.saturating_sub(self.now().0).max(1000));
        let slack = if self.has(Planted::TtlWithoutSlack) { Millis(0) } else { TTL_SLACK };
        found.now + left + slack
    }

    /// A slot with its id row.
    pub(super) fn slot_writes(&self, found: &Found<'_>, seq: Seq, entry: &Entry) -> [Write; 3] {
        let nobody = SlotRow::lost(seq).entry.sender;
        let (inline, left) = match &entry.payload {
            EntryPayload::Inline(payload) => (payload.clone(), EntryPayload::Inline(Bytes::new())),
            shared @ EntryPayload::Ref { .. } => (Bytes::new(), shared.clone()),
        };
        let form = Entry { sender: nobody, payload: left, ..entry.clone() };
        let form_until = self.has(Planted::SlotsExpire).then_some(entry.expires_at);
        let payload = Value::Payload(entry.sender.clone(), inline);
        [
            Write::Cell {
                row: Row::Slot(seq),
                column: Column::Value,
                value: Some(Value::Form(Arc::new(form))),
                at: None,
                until: form_until,
            },
            Write::set_until(Row::Slot(seq), Column::Payload, payload, self.ends(found, entry.expires_at)),
            Write::set_until(
                Row::Id(entry.envelope_id),
                Column::Value,
                Value::Seq(seq),
                self.ends(found, self.now() + ID_MS),
            ),
        ]
    }

    /// A slot's row as it is told: a payload past its time is not shown, whatever its TTL.
    pub(super) fn slot_of(&self, view: &View, seq: Seq) -> Option<SlotRow> {
        let row = Row::Slot(seq);
        let lost = view.get(&row, Column::Lost).is_some();
        let Some(Value::Form(form)) = view.get(&row, Column::Value) else {
            return lost.then(|| SlotRow::lost(seq));
        };
        let mut entry = Entry::clone(form);
        let ended = entry.expires_at <= self.now();
        let inline = matches!(entry.payload, EntryPayload::Inline(_));
        let mut payload_gone = inline || lost;
        if let Some(Value::Payload(sender, payload)) = view.get(&row, Column::Payload).filter(|_| !ended) {
            entry.sender = sender.clone();
            if inline {
                entry.payload = EntryPayload::Inline(payload.clone());
                payload_gone = lost;
            }
        }
        Some(SlotRow { seq, entry, payload_gone, lost })
    }

    /// The slots behind `after`, cut as [`Rows::slots`] says.
    pub(super) fn slots_of(
        &self,
        view: &View,
        after: Seq,
        rows_max: usize,
        bytes_max: usize,
    ) -> Vec<SlotRow> {
        let mut seqs: Vec<_> = [Column::Value, Column::Lost]
            .into_iter()
            .flat_map(|column| view.rows(column))
            .filter_map(|(row, _)| match row {
                Row::Slot(seq) if *seq > after => Some(*seq),
                Row::Slot(_) | Row::Static | Row::Id(_) | Row::Device(_) | Row::Minute(..) => None,
            })
            .collect();
        seqs.sort_unstable();
        seqs.dedup();
        let mut rows = Vec::new();
        let mut bytes = 0;
        for row in seqs.into_iter().take(rows_max).filter_map(|seq| self.slot_of(view, seq)) {
            if let EntryPayload::Inline(payload) = &row.entry.payload {
                bytes += payload.len();
            }
            rows.push(row);
            if bytes >= bytes_max {
                break;
            }
        }
        rows
    }
}
