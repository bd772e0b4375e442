//! The reference database: plain tables in memory behind one lock, in the shape of the CQL schema.
//! **Invariant:** every operation happens inside one lock, so all of them are linearizable. Nothing survives the process.
//!
//! What has passed its time is invisible at once and removed by later writes, a few rows each.

mod devices;
mod wakes;

use crate::error::{Result, StoreError};
#[cfg(feature = "testing")]
use crate::planted::Planted;
use crate::rows::{Applied, Batch, Floor, Head, Partition, Rows, SlotRow};
use crate::{Device, Entry, EntryPayload, PendingFrom, PendingPage, User, Woken};
use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::id::{
    Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_protocol::world::World;
use devices::DeviceTable;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long an id is remembered.
pub(crate) const ID_MS: Millis = Millis::from_secs(2 * 24 * 3600);
/// Rows past their time that one write removes.
const REMOVED_PER_WRITE_MAX: usize = 8;

/// The tables; clones share nothing, so hand an `Arc` of it to several `SlotLog`s.
pub struct MemoryRows {
    world: Arc<dyn World>,
    incarnation: [u8; 16],
    tables: Mutex<Tables>,
    #[cfg(feature = "testing")]
    planted: Mutex<Option<Planted>>,
}

/// What will pass its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Id(Partition, EnvelopeId),
    InSlot(Partition, Seq),
    Payload(PayloadId),
    Pending(u64, MailboxId),
}

#[derive(Debug, Default)]
struct Tables {
    heads: BTreeMap<Partition, Head>,
    slots: BTreeMap<(Partition, Seq), SlotRow>,
    ids: BTreeMap<(Partition, EnvelopeId), (Seq, UnixMillis)>,
    hints: BTreeMap<MailboxId, Bucket>,
    floors: BTreeMap<MailboxId, Floor>,
    cursors: BTreeMap<(MailboxId, DeviceId), Seq>,
    devices: BTreeMap<MailboxId, DeviceTable>,
    pushes: BTreeMap<(MailboxId, DeviceId), Bytes>,
    wokens: BTreeMap<(MailboxId, DeviceId), Woken>,
    users: BTreeMap<UserId, User>,
    payloads: BTreeMap<PayloadId, (Bytes, UnixMillis)>,
    pending: BTreeSet<(u64, MailboxId)>,
    swept: BTreeMap<u8, UnixMillis>,
    due: BTreeSet<(UnixMillis, Due)>,
}

impl MemoryRows {
    /// Empty tables with a random incarnation.
    pub fn new(world: Arc<dyn World>) -> Self {
        let mut incarnation = [0; 16];
        world.fill_random(&mut incarnation);
        Self {
            world,
            incarnation,
            tables: Mutex::default(),
            #[cfg(feature = "testing")]
            planted: Mutex::default(),
        }
    }

    /// Plants a defect of the database.
    #[cfg(feature = "testing")]
    pub fn plant(&self, planted: Option<Planted>) {
        *self.planted.lock().unwrap_or_else(PoisonError::into_inner) = planted;
    }

    #[cfg(feature = "testing")]
    fn has(&self, planted: Planted) -> bool {
        *self.planted.lock().unwrap_or_else(PoisonError::into_inner) == Some(planted)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables, after a few rows past their time are gone.
    fn tables_mut(&self) -> (MutexGuard<'_, Tables>, UnixMillis) {
        let now = self.world.wall();
        let mut tables = self.tables();
        tables.remove_due(now);
        (tables, now)
    }
}

impl Tables {
    fn remove_due(&mut self, now: UnixMillis) {
        for _ in 0..REMOVED_PER_WRITE_MAX {
            let Some(&(at, due)) = self.due.first() else { return };
            if at > now {
                return;
            }
            self.due.pop_first();
            match due {
                // An id may have been written again since: only the row of this time goes.
                Due::Id(partition, id) => {
                    if self.ids.get(&(partition, id)).is_some_and(|(_, until)| *until == at) {
                        self.ids.remove(&(partition, id));
                    }
                }
                Due::InSlot(partition, seq) => {
                    if let Some(row) = self.slots.get_mut(&(partition, seq)) {
                        hide_payload(row);
                    }
                }
                Due::Payload(id) => drop(self.payloads.remove(&id)),
                Due::Pending(minute, mailbox) => drop(self.pending.remove(&(minute, mailbox))),
            }
        }
    }

    fn id(&self, partition: Partition, id: EnvelopeId, now: UnixMillis) -> Option<Seq> {
        self.ids.get(&(partition, id)).filter(|(_, until)| *until > now).map(|(seq, _)| *seq)
    }

    fn insert(&mut self, partition: Partition, seq: Seq, entry: &Entry, now: UnixMillis) {
        let until = now + ID_MS;
        self.ids.insert((partition, entry.envelope_id), (seq, until));
        self.due.insert((until, Due::Id(partition, entry.envelope_id)));
        if matches!(entry.payload, EntryPayload::Inline(_)) {
            self.due.insert((entry.expires_at, Due::InSlot(partition, seq)));
        }
        let row = SlotRow { seq, entry: entry.clone(), payload_gone: false, lost: false };
        self.slots.insert((partition, seq), row);
    }
}

fn hide_payload(row: &mut SlotRow) {
    if let EntryPayload::Inline(payload) = &mut row.entry.payload {
        *payload = Bytes::new();
        row.payload_gone = true;
    }
}

/// A batch that no correct caller sends.
pub(crate) fn check(batch: &Batch<'_>) -> Result<()> {
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

#[async_trait]
impl Rows for MemoryRows {
    async fn head(&self, partition: Partition) -> Result<Option<Head>> {
        Ok(self.tables().heads.get(&partition).copied())
    }

    async fn compare_and_append(&self, partition: Partition, batch: Batch<'_>) -> Result<Applied> {
        check(&batch)?;
        let (mut tables, now) = self.tables_mut();
        let head = tables.heads.get(&partition).copied();
        let found = |(_, entry): &(Seq, &Entry)| {
            Some((entry.envelope_id, tables.id(partition, entry.envelope_id, now)?))
        };
        let existing: Vec<_> = batch.slots.iter().filter_map(found).collect();
        let same_head = head.map(|head| head.seq) == batch.expected;
        #[cfg(feature = "testing")]
        let same_head = same_head || self.has(Planted::ExpectIgnored);
        #[cfg(feature = "testing")]
        let existing = if self.has(Planted::IdsIgnored) { Vec::new() } else { existing };
        if !same_head || !existing.is_empty() {
            return Ok(Applied::No { head, existing });
        }
        tables.heads.insert(partition, batch.to);
        for (seq, entry) in batch.slots {
            tables.insert(partition, seq, entry, now);
        }
        Ok(Applied::Yes)
    }

    async fn seal(&self, partition: Partition, expected: Option<Seq>) -> Result<bool> {
        let (mut tables, now) = self.tables_mut();
        let head = tables.heads.get(&partition).copied();
        if head.map(|head| head.seq) != expected {
            return Ok(false);
        }
        let empty = Head { seq: Seq::MAX, opened_at: now, bytes_total: 0 };
        tables.heads.insert(partition, Head { seq: Seq::MAX, ..head.unwrap_or(empty) });
        Ok(true)
    }

    async fn find_ids(&self, partition: Partition, ids: &[EnvelopeId]) -> Result<Vec<Option<Seq>>> {
        let now = self.world.wall();
        let tables = self.tables();
        Ok(ids.iter().map(|id| tables.id(partition, *id, now)).collect())
    }

    async fn slots(
        &self,
        partition: Partition,
        after: Seq,
        rows_max: usize,
        bytes_max: usize,
        _serial: bool,
    ) -> Result<Vec<SlotRow>> {
        let now = self.world.wall();
        let tables = self.tables();
        let run = tables.slots.range((Excluded((partition, after)), Included((partition, Seq::MAX))));
        let mut rows = Vec::new();
        let mut bytes = 0;
        for (_, row) in run.take(rows_max) {
            let mut row = row.clone();
            #[cfg(feature = "testing")]
            if self.has(Planted::SlotsExpire) && row.entry.expires_at <= now {
                continue;
            }
            if row.entry.expires_at <= now {
                hide_payload(&mut row);
            }
            if let EntryPayload::Inline(payload) = &row.entry.payload {
                bytes += payload.len();
            }
            rows.push(row);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(rows)
    }

    async fn mark_lost(&self, partition: Partition, seq: Seq) -> Result<bool> {
        let (mut tables, now) = self.tables_mut();
        let row = tables.slots.entry((partition, seq)).or_insert_with(|| SlotRow::lost(seq));
        if row.entry.expires_at <= now {
            hide_payload(row);
        }
        let there = matches!(row.entry.payload, EntryPayload::Inline(_)) && !row.payload_gone;
        row.lost |= !there;
        row.payload_gone |= row.lost;
        Ok(row.lost)
    }

    async fn delete_slots(&self, partition: Partition) -> Result<()> {
        let (mut tables, _) = self.tables_mut();
        let bucket = (partition, Seq::ZERO)..=(partition, Seq::MAX);
        let gone: Vec<_> = tables.slots.range(bucket).map(|(key, _)| *key).collect();
        for key in gone {
            tables.slots.remove(&key);
        }
        #[cfg(feature = "testing")]
        if self.has(Planted::TrimDropsHead) {
            tables.heads.remove(&partition);
        }
        #[cfg(feature = "testing")]
        if self.has(Planted::TrimDropsIds) {
            tables.ids.retain(|(of, _), _| *of != partition);
        }
        Ok(())
    }

    async fn hint(&self, mailbox: MailboxId) -> Result<Bucket> {
        Ok(self.tables().hints.get(&mailbox).copied().unwrap_or_default())
    }

    async fn raise_hint(&self, mailbox: MailboxId, bucket: Bucket) -> Result<()> {
        let (mut tables, _) = self.tables_mut();
        let hint = tables.hints.entry(mailbox).or_default();
        *hint = bucket.max(*hint);
        Ok(())
    }

    async fn floor(&self, mailbox: MailboxId) -> Result<Floor> {
        Ok(self.tables().floors.get(&mailbox).copied().unwrap_or_default())
    }

    async fn raise_floor(&self, mailbox: MailboxId, floor: Floor) -> Result<Floor> {
        let (mut tables, _) = self.tables_mut();
        let stored = tables.floors.entry(mailbox).or_default();
        if floor.bucket > stored.bucket {
            *stored = floor;
        }
        Ok(*stored)
    }

    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        Ok(self.tables().cursors.get(&(mailbox, device.clone())).copied().unwrap_or_default())
    }

    async fn raise_cursor(&self, mailbox: MailboxId, device: &DeviceId, seq: Seq) -> Result<()> {
        let (mut tables, _) = self.tables_mut();
        let cursor = tables.cursors.entry((mailbox, device.clone())).or_default();
        #[cfg(feature = "testing")]
        if self.has(Planted::CursorsGoBack) {
            *cursor = seq;
        }
        *cursor = seq.max(*cursor);
        Ok(())
    }

    async fn devices(&self, mailbox: MailboxId) -> Result<(u64, Vec<(Device, UnixMillis)>)> {
        let tables = self.tables();
        let Some(table) = tables.devices.get(&mailbox) else { return Ok((0, Vec::new())) };
        Ok((table.version, table.rows.values().cloned().collect()))
    }

    async fn device(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Device>> {
        let tables = self.tables();
        Ok(tables
            .devices
            .get(&mailbox)
            .and_then(|table| table.rows.get(device))
            .map(|(device, _)| device.clone()))
    }

    async fn create_device(&self, mailbox: MailboxId, device: &DeviceId, since: Seq) -> Result<Device> {
        let (mut tables, now) = self.tables_mut();
        let table = tables.devices.entry(mailbox).or_default();
        if let Some((row, _)) = table.rows.get(device) {
            return Ok(row.clone());
        }
        Ok(table.add(Device::fresh(device, since), now))
    }

    async fn add_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
        version: u64,
    ) -> Result<bool> {
        let (mut tables, now) = self.tables_mut();
        let table = tables.devices.entry(mailbox).or_default();
        let may = table.version == version && !table.rows.contains_key(device);
        may.then(|| table.add(Device::fresh(device, since), now));
        Ok(may)
    }

    async fn raise_session(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        epoch: Epoch,
        connection: ConnectionId,
    ) -> Result<()> {
        let (mut tables, now) = self.tables_mut();
        let row = tables.devices.get_mut(&mailbox).and_then(|table| table.rows.get_mut(device));
        let Some((row, written)) = row else { return Err(StoreError::Invalid("no such device")) };
        let newer = (epoch, connection) > (row.epoch, row.connection);
        #[cfg(feature = "testing")]
        let newer = newer || self.has(Planted::SessionsGoBack);
        if newer {
            (row.epoch, row.connection) = (epoch, connection);
            *written = now;
        }
        Ok(())
    }

    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        let (mut tables, _) = self.tables_mut();
        let Some(table) = tables.devices.get_mut(&mailbox) else { return Ok(()) };
        let Some((row, _)) = table.rows.get_mut(device) else { return Ok(()) };
        table.version += u64::from(!row.revoked);
        row.revoked = true;
        tables.pushes.remove(&(mailbox, device.clone()));
        Ok(())
    }

    async fn push(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        Ok(self.push_of(mailbox, device))
    }

    async fn set_push(&self, mailbox: MailboxId, device: &DeviceId, push: Bytes) -> Result<bool> {
        Ok(self.put_push(mailbox, device, push))
    }

    async fn replace_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        Ok(self.swap_push(mailbox, device, old, new))
    }

    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        Ok(self.woken_of(mailbox, device))
    }

    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        self.put_woken(mailbox, device, woken)
    }

    async fn delete_devices(&self, mailbox: MailboxId) -> Result<()> {
        let (mut tables, _) = self.tables_mut();
        tables.devices.remove(&mailbox);
        tables.cursors.retain(|(of, _), _| *of != mailbox);
        tables.pushes.retain(|(of, _), _| *of != mailbox);
        tables.wokens.retain(|(of, _), _| *of != mailbox);
        Ok(())
    }

    async fn user(&self, user: &UserId, _serial: bool) -> Result<Option<User>> {
        Ok(self.tables().users.get(user).copied())
    }

    async fn create_user(&self, user: &UserId, mailbox: MailboxId) -> Result<User> {
        let (mut tables, _) = self.tables_mut();
        let fresh = User { mailbox, erased: false };
        let stored = tables.users.entry(user.clone()).or_insert(fresh);
        if stored.erased {
            *stored = fresh;
        }
        Ok(*stored)
    }

    async fn mark_erased(&self, user: &UserId, mailbox: MailboxId) -> Result<()> {
        let (mut tables, _) = self.tables_mut();
        if let Some(stored) = tables.users.get_mut(user).filter(|stored| stored.mailbox == mailbox) {
            stored.erased = true;
        }
        Ok(())
    }

    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()> {
        let (mut tables, _) = self.tables_mut();
        if let std::collections::btree_map::Entry::Vacant(place) = tables.payloads.entry(id) {
            place.insert((bytes, expires_at));
            tables.due.insert((expires_at, Due::Payload(id)));
        }
        Ok(())
    }

    async fn payload(&self, id: PayloadId) -> Result<Option<Bytes>> {
        let now = self.world.wall();
        Ok(self.tables().payloads.get(&id).filter(|(_, until)| *until > now).map(|(bytes, _)| bytes.clone()))
    }

    async fn delete_payload(&self, id: PayloadId) -> Result<()> {
        let (mut tables, _) = self.tables_mut();
        tables.payloads.remove(&id);
        Ok(())
    }

    async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        self.note(mailbox, UnixMillis(0));
        Ok(())
    }

    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        self.note(mailbox, at);
        Ok(())
    }

    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        Ok(self.noted_since(since))
    }

    async fn pending_page(&self, shard: u8, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        Ok(self.noted(shard, from, rows_max))
    }

    async fn swept(&self, shard: u8) -> Result<Option<UnixMillis>> {
        Ok(self.tables().swept.get(&shard).copied())
    }

    async fn raise_swept(&self, shard: u8, upto: UnixMillis) -> Result<()> {
        self.put_swept(shard, upto);
        Ok(())
    }

    fn now(&self) -> UnixMillis {
        self.world.wall()
    }

    fn incarnation(&self) -> [u8; 16] {
        self.incarnation
    }
}
