//! The operations of [`Rows`] on the embedded store. **Invariant:** conditions are judged by the one writing thread, in the
//! order in which the writes came, against everything before them in the same batch.

use super::EmbeddedRows;
use super::append::{self, Owned};
use super::expiry::due_at;
use super::keys::{self, Mortal};
use super::table::{Failure, Reads};
use super::values::{self, Damaged};
use crate::error::{Result, StoreError};
use crate::rows::{Applied, Batch, Floor, Head, Partition, Rows, SlotRow};
use crate::{Device, EntryPayload, PendingFrom, PendingPage, User, Woken};
use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::id::{
    Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::UnixMillis;

/// Pending notes that may wait in memory; a note beyond that is a write of its own.
const NOTES_MAX: usize = 65_536;

#[async_trait]
impl Rows for EmbeddedRows {
    async fn head(&self, partition: Partition) -> Result<Option<Head>> {
        self.read(|rows| Ok(rows.head_and_due(partition)?.map(|(head, _)| head)))
    }

    async fn compare_and_append(&self, partition: Partition, batch: Batch<'_>) -> Result<Applied> {
        let batch = Owned::new(&batch)?;
        self.write(batch.bytes(), move |tables| batch.apply(tables, partition)).await
    }

    async fn seal(&self, partition: Partition, expected: Option<Seq>) -> Result<bool> {
        self.write(0, move |tables| append::seal(tables, partition, expected)).await
    }

    async fn find_ids(&self, partition: Partition, ids: &[EnvelopeId]) -> Result<Vec<Option<Seq>>> {
        let now = self.now();
        self.read(|rows| ids.iter().map(|id| rows.find_id(partition, *id, now)).collect())
    }

    async fn slots(
        &self,
        partition: Partition,
        after: Seq,
        rows_max: usize,
        bytes_max: usize,
        _serial: bool,
    ) -> Result<Vec<SlotRow>> {
        let now = self.now();
        if after == Seq::MAX || rows_max == 0 {
            return Ok(Vec::new());
        }
        self.read_aside(keys::slots_behind(partition, after), move |rows, from, to| {
            let (mut slots, mut bytes) = (Vec::new(), 0);
            rows.visit(from, to, |key, value| {
                // A damaged row is as good as none: the log looks into the hole and tells that the slot is lost.
                let Ok(mut slot) = values::read_slot(keys::seq_of_slot(key).ok_or(Damaged)?, value) else {
                    tracing::error!("a slot's row in the data directory is damaged");
                    return Ok(true);
                };
                if let EntryPayload::Inline(payload) = &mut slot.entry.payload {
                    if slot.entry.expires_at <= now {
                        (*payload, slot.payload_gone) = (Bytes::new(), true);
                    }
                    bytes += payload.len();
                }
                slots.push(slot);
                Ok(slots.len() < rows_max && bytes < bytes_max)
            })?;
            Ok(slots)
        })
        .await
    }

    async fn mark_lost(&self, partition: Partition, seq: Seq) -> Result<bool> {
        self.write(0, move |tables| append::mark_lost(tables, partition, seq)).await
    }

    async fn delete_slots(&self, partition: Partition) -> Result<()> {
        self.write(0, move |tables| {
            let (from, to) = keys::slots(partition);
            tables.remove_range(&from, &to)
        })
        .await
    }

    async fn hint(&self, mailbox: MailboxId) -> Result<Bucket> {
        self.read(|rows| rows.read_hint(mailbox))
    }

    async fn raise_hint(&self, mailbox: MailboxId, bucket: Bucket) -> Result<()> {
        self.write(0, move |tables| {
            if bucket > tables.read_hint(mailbox)? {
                tables.put(keys::hint(mailbox), values::number(bucket.0));
            }
            Ok(())
        })
        .await
    }

    async fn floor(&self, mailbox: MailboxId) -> Result<Floor> {
        self.read(|rows| rows.read_floor(mailbox))
    }

    async fn raise_floor(&self, mailbox: MailboxId, floor: Floor) -> Result<Floor> {
        self.write(0, move |tables| {
            let stored = tables.read_floor(mailbox)?;
            if floor.bucket <= stored.bucket {
                return Ok(stored);
            }
            tables.put(keys::floor(mailbox), values::floor(floor));
            Ok(floor)
        })
        .await
    }

    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        self.read(|rows| rows.read_cursor(mailbox, device))
    }

    async fn raise_cursor(&self, mailbox: MailboxId, device: &DeviceId, seq: Seq) -> Result<()> {
        let device = device.clone();
        self.write(0, move |tables| {
            if seq > tables.read_cursor(mailbox, &device)? {
                tables.put(keys::cursor(mailbox, &device), values::number(seq.0));
            }
            Ok(())
        })
        .await
    }

    async fn devices(&self, mailbox: MailboxId) -> Result<(u64, Vec<(Device, UnixMillis)>)> {
        self.read(|rows| rows.read_devices(mailbox))
    }

    async fn device(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Device>> {
        self.read(|rows| Ok(rows.read_device(mailbox, device)?.map(|(device, _)| device)))
    }

    async fn create_device(&self, mailbox: MailboxId, device: &DeviceId, since: Seq) -> Result<Device> {
        let device = device.clone();
        self.write(0, move |tables| {
            if let Some((stored, _)) = tables.read_device(mailbox, &device)? {
                return Ok(stored);
            }
            let fresh = Device::fresh(&device, since);
            tables.raise_device_version(mailbox)?;
            tables.put_device(mailbox, &fresh, tables.now);
            Ok(fresh)
        })
        .await
    }

    async fn add_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
        version: u64,
    ) -> Result<bool> {
        let device = device.clone();
        self.write(0, move |tables| {
            let stored = tables.read_device(mailbox, &device)?;
            if stored.is_some() || tables.read_device_version(mailbox)? != version {
                return Ok(false);
            }
            tables.raise_device_version(mailbox)?;
            tables.put_device(mailbox, &Device::fresh(&device, since), tables.now);
            Ok(true)
        })
        .await
    }

    async fn raise_session(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        epoch: Epoch,
        connection: ConnectionId,
    ) -> Result<()> {
        let device = device.clone();
        self.write(0, move |tables| {
            let Some((stored, _)) = tables.read_device(mailbox, &device)? else {
                return Err(Failure::Refused(StoreError::Invalid("no such device")));
            };
            if (epoch, connection) > (stored.epoch, stored.connection) {
                tables.put_device(mailbox, &Device { epoch, connection, ..stored }, tables.now);
            }
            Ok(())
        })
        .await
    }

    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        let device = device.clone();
        self.write(0, move |tables| {
            let stored = tables.read_device(mailbox, &device)?;
            if let Some((device, written)) = stored.filter(|(device, _)| !device.revoked) {
                tables.raise_device_version(mailbox)?;
                tables.remove(keys::push(mailbox, &device.device));
                tables.put_device(mailbox, &Device { revoked: true, ..device }, written);
            }
            Ok(())
        })
        .await
    }

    async fn push(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        self.read(|rows| rows.read_push(mailbox, device))
    }

    async fn set_push(&self, mailbox: MailboxId, device: &DeviceId, push: Bytes) -> Result<bool> {
        self.put_push(mailbox, device, push).await
    }

    async fn replace_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        self.swap_push(mailbox, device, old, new).await
    }

    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        self.read(|rows| rows.read_woken(mailbox, device))
    }

    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        self.put_woken(mailbox, device, woken).await
    }

    async fn delete_devices(&self, mailbox: MailboxId) -> Result<()> {
        self.write(0, move |tables| {
            let (from, to) = keys::devices_and_cursors(mailbox);
            tables.remove_range(&from, &to)?;
            let (from, to) = keys::pushes_and_wakes(mailbox);
            tables.remove_range(&from, &to)?;
            tables.remove(keys::device_version(mailbox));
            Ok(())
        })
        .await
    }

    async fn user(&self, user: &UserId, _serial: bool) -> Result<Option<User>> {
        self.read(|rows| rows.read_user(user))
    }

    async fn create_user(&self, user: &UserId, mailbox: MailboxId) -> Result<User> {
        let name = user.clone();
        self.write(0, move |tables| {
            if let Some(stored) = tables.read_user(&name)?.filter(|stored| !stored.erased) {
                return Ok(stored);
            }
            let fresh = User { mailbox, erased: false };
            tables.put(keys::user(&name), values::user(fresh));
            Ok(fresh)
        })
        .await
    }

    async fn mark_erased(&self, user: &UserId, mailbox: MailboxId) -> Result<()> {
        let name = user.clone();
        self.write(0, move |tables| {
            let stored = tables.read_user(&name)?;
            if let Some(stored) = stored.filter(|stored| stored.mailbox == mailbox) {
                tables.put(keys::user(&name), values::user(User { erased: true, ..stored }));
            }
            Ok(())
        })
        .await
    }

    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()> {
        self.write(bytes.len(), move |tables| {
            let key = keys::payload(id);
            if tables.row(&key, |_| Ok(()))?.is_some() {
                return Ok(());
            }
            tables.put(keys::due(due_at(expires_at), Mortal::Payload(id)), Bytes::new());
            tables.put(key, values::payload(expires_at, &bytes));
            Ok(())
        })
        .await
    }

    async fn payload(&self, id: PayloadId) -> Result<Option<Bytes>> {
        let now = self.now();
        self.read_aside(keys::alone(keys::payload(id)), move |rows, key, _| {
            let found = match rows.row(key, values::read_payload) {
                Err(Failure::Damaged) => {
                    tracing::error!("a payload in the data directory is damaged");
                    None
                }
                other => other?,
            };
            Ok(found.filter(|(expires_at, _)| *expires_at > now).map(|(_, bytes)| bytes))
        })
        .await
    }

    async fn delete_payload(&self, id: PayloadId) -> Result<()> {
        self.write(0, move |tables| {
            tables.remove(keys::payload(id));
            Ok(())
        })
        .await
    }

    /// Answered before it is durable. What a note must guarantee is that no append behind it becomes durable without it, and
    /// that holds: a batch first takes its writes from the queue and then all notes, so an append that was queued after this
    /// call returned is never in an earlier batch than the note. A batch that fails keeps its notes for the next one. A note
    /// without any write behind it is written within about a second.
    async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        let minute = self.now().0 / 60_000;
        {
            let mut notes = self.shared.notes();
            if notes.len() < NOTES_MAX || notes.contains(&(minute, mailbox)) {
                notes.insert((minute, mailbox));
                return Ok(());
            }
        }
        self.note_in(mailbox, minute).await
    }

    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        self.note_at(mailbox, at).await
    }

    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        self.noted_since(since).await
    }

    async fn pending_page(&self, shard: u8, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        self.noted(shard, from, rows_max).await
    }

    async fn swept(&self, shard: u8) -> Result<Option<UnixMillis>> {
        self.read(|rows| rows.read_swept(shard))
    }

    async fn raise_swept(&self, shard: u8, upto: UnixMillis) -> Result<()> {
        self.put_swept(shard, upto).await
    }

    fn now(&self) -> UnixMillis {
        self.shared.world.wall()
    }

    fn incarnation(&self) -> [u8; 16] {
        self.incarnation
    }
}

#[cfg(feature = "testing")]
impl EmbeddedRows {
    /// Runs the background removal until nothing is left to do; returns the number of steps.
    pub async fn remove_ended(&self) -> Result<usize> {
        let mut steps = 1;
        while self.write(0, super::expiry::step).await? {
            steps += 1;
        }
        Ok(steps)
    }
}
