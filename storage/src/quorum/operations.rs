//! The operations of [`Rows`], each one statement or two of CQL. **Invariant:** no column is written both plainly and by a
//! transaction; every condition is decided inside one transaction.

use super::QuorumRows;
use super::cell::{Column, Key, Mutation, Row, Stamp, Value, Write};
use super::network::LateAppend;
use super::paxos::{Found, read_error};
use super::writes::{
    device_of, floor_of, has_inline, head_of, id_of, next_version, set_head, user_of, version_of,
};
use crate::error::{Result, StoreError};
use crate::memory::check;
use crate::planted::Planted;
use crate::rows::{Applied, Batch, Floor, Head, Partition, Rows, SlotRow};
use crate::{Device, Entry, PendingFrom, PendingPage, User, Woken};
use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::id::{
    Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::UnixMillis;

fn one(key: Key, write: Write) -> Mutation {
    Mutation { key, writes: vec![write] }
}

fn log(partition: Partition) -> Key {
    Key::Log(partition)
}

impl QuorumRows {
    /// The conditional batch, by some coordinator that answers.
    async fn append_at(
        &self,
        node: usize,
        partition: Partition,
        expected: Option<Seq>,
        to: Head,
        slots: &[(Seq, &Entry)],
    ) -> Result<Applied> {
        let decide = |found: &Found<'_>| {
            let head = head_of(found.view);
            let known =
                |(_, entry): &(Seq, &Entry)| Some((entry.envelope_id, id_of(found.view, entry.envelope_id)?));
            let mut existing: Vec<_> = slots.iter().filter_map(known).collect();
            if self.has(Planted::IdsIgnored) {
                existing.clear();
            }
            let same = head.map(|head| head.seq) == expected || self.has(Planted::ExpectIgnored);
            if !same || !existing.is_empty() {
                return (None, Applied::No { head, existing });
            }
            let rows = slots.iter().flat_map(|(seq, entry)| self.slot_writes(found, *seq, entry));
            let writes = std::iter::once(set_head(to)).chain(rows).collect();
            (Some(Mutation { key: log(partition), writes }), Applied::Yes)
        };
        self.transact_at(node, &log(partition), decide).await
    }

    /// An append whose caller has long gone.
    pub(super) async fn arrive(&self, append: LateAppend) {
        let LateAppend { partition, expected, to, slots, .. } = append;
        let slots: Vec<_> = slots.iter().map(|(seq, entry)| (*seq, entry)).collect();
        if let Ok(node) = self.coordinator() {
            // Nobody waits for the answer.
            drop(Box::pin(self.append_at(node, partition, expected, to, &slots)).await);
        }
    }

    /// A timestamp that is later than all before it: for planted defects.
    fn later(&self) -> Stamp {
        (1 << 60) + self.cluster().next_number()
    }
}

#[async_trait]
impl Rows for QuorumRows {
    async fn head(&self, partition: Partition) -> Result<Option<Head>> {
        self.transact(&log(partition), |found| (None, head_of(found.view))).await.map_err(read_error)
    }

    async fn compare_and_append(&self, partition: Partition, batch: Batch<'_>) -> Result<Applied> {
        check(&batch)?;
        let node = self.begin().await?;
        if self.happens(self.faults.late_append) {
            self.delay_append(partition, &batch);
            return Err(StoreError::Unknown("the coordinator does not answer".into()));
        }
        self.append_at(node, partition, batch.expected, batch.to, &batch.slots).await
    }

    async fn seal(&self, partition: Partition, expected: Option<Seq>) -> Result<bool> {
        let decide = |found: &Found<'_>| {
            let head = head_of(found.view);
            if head.map(|head| head.seq) != expected {
                return (None, false);
            }
            let empty = Head { seq: Seq::MAX, opened_at: self.now(), bytes_total: 0 };
            let closed = Head { seq: Seq::MAX, ..head.unwrap_or(empty) };
            (Some(one(log(partition), set_head(closed))), true)
        };
        self.transact(&log(partition), decide).await
    }

    async fn find_ids(&self, partition: Partition, ids: &[EnvelopeId]) -> Result<Vec<Option<Seq>>> {
        let view = self.read(&log(partition)).await?;
        Ok(ids.iter().map(|id| id_of(&view, *id)).collect())
    }

    async fn slots(
        &self,
        partition: Partition,
        after: Seq,
        rows_max: usize,
        bytes_max: usize,
        serial: bool,
    ) -> Result<Vec<SlotRow>> {
        let key = log(partition);
        if serial {
            let decide = |found: &Found<'_>| (None, self.slots_of(found.view, after, rows_max, bytes_max));
            return self.transact(&key, decide).await.map_err(read_error);
        }
        let short = self.short_replica();
        let view = self.read(&key).await?;
        let mut rows = self.slots_of(&view, after, rows_max, bytes_max);
        if let Some(replica) = short {
            let copy = self.one_copy(&key, replica).await.map_err(read_error)?;
            rows.retain(|row| self.slot_of(&copy, row.seq).is_some());
        }
        Ok(rows)
    }

    async fn mark_lost(&self, partition: Partition, seq: Seq) -> Result<bool> {
        let decide = |found: &Found<'_>| {
            let row = self.slot_of(found.view, seq);
            match row {
                Some(row) if row.lost => (None, true),
                Some(row) if has_inline(&row) => (None, false),
                Some(_) | None => {
                    let lost = Write::set(Row::Slot(seq), Column::Lost, Value::Yes);
                    (Some(one(log(partition), lost)), true)
                }
            }
        };
        self.transact(&log(partition), decide).await
    }

    async fn delete_slots(&self, partition: Partition) -> Result<()> {
        let key = log(partition);
        // At SERIAL, so that no cell hides whose commit is under way. The slots may hide behind an earlier delete that has
        // reached one replica only: its own timestamp nobody can read, but every append has stamped the head as well.
        let written = |found: &Found<'_>| {
            let head = found.view.head_written().filter(|_| !self.has(Planted::DeleteBySlots));
            (None, found.view.slots_written().max(head))
        };
        let written = self.transact(&key, written).await.map_err(read_error)?.unwrap_or_default();
        let naive = self.has(Planted::NaiveDelete);
        let upto = if naive { self.now_stamp() } else { self.now_stamp().max(written) + 1 };
        let mut mutation = one(key.clone(), Write::Slots(upto));
        let gone =
            |row, at| Write::Cell { row, column: Column::Value, value: None, at: Some(at), until: None };
        if self.has(Planted::TrimDropsHead) {
            mutation.writes.push(gone(Row::Static, self.later()));
        }
        if self.has(Planted::TrimDropsIds) {
            let view = self.read(&key).await?;
            for (row, _) in view.rows(Column::Value) {
                if matches!(row, Row::Id(_)) {
                    mutation.writes.push(gone(row.clone(), self.later()));
                }
            }
        }
        self.write(mutation, 0).await
    }

    async fn hint(&self, mailbox: MailboxId) -> Result<Bucket> {
        let view = self.read(&Key::Hint(mailbox)).await?;
        Ok(match view.get(&Row::Static, Column::Value) {
            Some(Value::Bucket(bucket)) => *bucket,
            Some(_) | None => Bucket::default(),
        })
    }

    async fn raise_hint(&self, mailbox: MailboxId, bucket: Bucket) -> Result<()> {
        let write = Write::raise(Row::Static, Column::Value, Value::Bucket(bucket), bucket.0);
        self.write(one(Key::Hint(mailbox), write), 0).await
    }

    async fn floor(&self, mailbox: MailboxId) -> Result<Floor> {
        Ok(floor_of(&self.read(&Key::Floor(mailbox)).await?))
    }

    async fn raise_floor(&self, mailbox: MailboxId, floor: Floor) -> Result<Floor> {
        let key = Key::Floor(mailbox);
        let decide = |found: &Found<'_>| {
            let stored = floor_of(found.view);
            if floor.bucket <= stored.bucket {
                return (None, stored);
            }
            let write = Write::set(Row::Static, Column::Value, Value::Floor(floor));
            (Some(one(key.clone(), write)), floor)
        };
        self.transact(&key, decide).await
    }

    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        let view = self.read(&Key::Cursors(mailbox)).await?;
        Ok(match view.get(&Row::Device(device.clone()), Column::Value) {
            Some(Value::Seq(seq)) => *seq,
            Some(_) | None => Seq::ZERO,
        })
    }

    async fn raise_cursor(&self, mailbox: MailboxId, device: &DeviceId, seq: Seq) -> Result<()> {
        let at = if self.has(Planted::CursorsGoBack) { self.later() } else { seq.0 };
        let write = Write::raise(Row::Device(device.clone()), Column::Value, Value::Seq(seq), at);
        self.write(one(Key::Cursors(mailbox), write), 0).await
    }

    async fn devices(&self, mailbox: MailboxId) -> Result<(u64, Vec<(Device, UnixMillis)>)> {
        let view = self.read(&Key::Devices(mailbox)).await?;
        let device = |(row, _): (&Row, &Value)| match row {
            Row::Device(device) => device_of(&view, device),
            Row::Static | Row::Slot(_) | Row::Id(_) | Row::Minute(..) => None,
        };
        Ok((version_of(&view), view.rows(Column::Value).filter_map(device).collect()))
    }

    async fn device(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Device>> {
        let view = self.read(&Key::Devices(mailbox)).await?;
        Ok(device_of(&view, device).map(|(device, _)| device))
    }

    async fn create_device(&self, mailbox: MailboxId, device: &DeviceId, since: Seq) -> Result<Device> {
        let key = Key::Devices(mailbox);
        let decide = |found: &Found<'_>| {
            if let Some((device, _)) = device_of(found.view, device) {
                return (None, device);
            }
            let fresh = Device::fresh(device, since);
            let row =
                Write::set(Row::Device(device.clone()), Column::Value, Value::Device(since, self.now()));
            let writes = vec![row, next_version(found.view)];
            (Some(Mutation { key: key.clone(), writes }), fresh)
        };
        self.transact(&key, decide).await
    }

    async fn add_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
        version: u64,
    ) -> Result<bool> {
        let key = Key::Devices(mailbox);
        let decide = |found: &Found<'_>| {
            if device_of(found.view, device).is_some() || version_of(found.view) != version {
                return (None, false);
            }
            let row =
                Write::set(Row::Device(device.clone()), Column::Value, Value::Device(since, self.now()));
            let writes = vec![row, next_version(found.view)];
            (Some(Mutation { key: key.clone(), writes }), true)
        };
        self.transact(&key, decide).await
    }

    async fn raise_session(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        epoch: Epoch,
        connection: ConnectionId,
    ) -> Result<()> {
        let at = if self.has(Planted::SessionsGoBack) { self.later() } else { epoch.0 };
        let session = Value::Session(epoch, connection, self.now());
        let write = Write::raise(Row::Device(device.clone()), Column::Session, session, at);
        self.write(one(Key::Devices(mailbox), write), 0).await
    }

    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        let key = Key::Devices(mailbox);
        let decide = |found: &Found<'_>| {
            if device_of(found.view, device).is_none_or(|(device, _)| device.revoked) {
                return (None, ());
            }
            let row = Row::Device(device.clone());
            let writes = vec![
                Write::set(row.clone(), Column::Revoked, Value::Yes),
                Write::unset(row, Column::Push),
                next_version(found.view),
            ];
            (Some(Mutation { key: key.clone(), writes }), ())
        };
        self.transact(&key, decide).await
    }

    async fn push(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        self.push_of(mailbox, device).await
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
        self.woken_of(mailbox, device).await
    }

    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        self.put_woken(mailbox, device, woken).await
    }

    async fn delete_devices(&self, mailbox: MailboxId) -> Result<()> {
        // A mailbox id is never used again, so nothing may ever be seen in these partitions.
        self.write(one(Key::Devices(mailbox), Write::Partition(Stamp::MAX)), 0).await?;
        self.write(one(Key::Cursors(mailbox), Write::Partition(Stamp::MAX)), 0).await?;
        self.write(one(Key::Wokens(mailbox), Write::Partition(Stamp::MAX)), 0).await
    }

    async fn user(&self, user: &UserId, serial: bool) -> Result<Option<User>> {
        let key = Key::User(user.clone());
        if serial {
            return self.transact(&key, |found| (None, user_of(found.view))).await.map_err(read_error);
        }
        Ok(user_of(&self.read(&key).await?))
    }

    async fn create_user(&self, user: &UserId, mailbox: MailboxId) -> Result<User> {
        let key = Key::User(user.clone());
        let decide = |found: &Found<'_>| {
            if let Some(there) = user_of(found.view).filter(|user| !user.erased) {
                return (None, there);
            }
            let fresh = User { mailbox, erased: false };
            (Some(one(key.clone(), Write::set(Row::Static, Column::Value, Value::User(fresh)))), fresh)
        };
        self.transact(&key, decide).await
    }

    async fn mark_erased(&self, user: &UserId, mailbox: MailboxId) -> Result<()> {
        let key = Key::User(user.clone());
        let decide = |found: &Found<'_>| {
            let same = user_of(found.view).filter(|user| user.mailbox == mailbox);
            let erased = |user| Value::User(User { erased: true, ..user });
            let write = |user| one(key.clone(), Write::set(Row::Static, Column::Value, erased(user)));
            (same.map(write), ())
        };
        self.transact(&key, decide).await
    }

    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()> {
        let key = Key::Payload(id);
        let decide = |found: &Found<'_>| {
            if found.view.get(&Row::Static, Column::Value).is_some() {
                return (None, ());
            }
            let value = Value::Bytes(bytes.clone(), expires_at);
            let write = Write::set_until(Row::Static, Column::Value, value, self.ends(found, expires_at));
            (Some(one(key.clone(), write)), ())
        };
        self.transact(&key, decide).await
    }

    async fn payload(&self, id: PayloadId) -> Result<Option<Bytes>> {
        let view = self.read(&Key::Payload(id)).await?;
        Ok(match view.get(&Row::Static, Column::Value) {
            Some(Value::Bytes(bytes, until)) if *until > self.now() => Some(bytes.clone()),
            Some(_) | None => None,
        })
    }

    async fn delete_payload(&self, id: PayloadId) -> Result<()> {
        self.write(one(Key::Payload(id), Write::Partition(Stamp::MAX)), 0).await
    }

    async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        self.note(mailbox, UnixMillis(0)).await
    }

    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        self.note(mailbox, at).await
    }

    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        self.noted_since(since).await
    }

    async fn pending_page(&self, shard: u8, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        self.noted(shard, from, rows_max).await
    }

    async fn swept(&self, shard: u8) -> Result<Option<UnixMillis>> {
        self.swept_of(shard).await
    }

    async fn raise_swept(&self, shard: u8, upto: UnixMillis) -> Result<()> {
        self.put_swept(shard, upto).await
    }

    fn now(&self) -> UnixMillis {
        self.world.wall()
    }

    fn incarnation(&self) -> [u8; 16] {
        self.incarnation
    }
}
