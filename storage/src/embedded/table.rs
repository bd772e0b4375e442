//! The rows as the writing thread and the readers see them: typed reads, and writes inside the running batch.
//! **Invariant:** a write that refuses or meets a damaged row has written nothing before.

use super::journal::{Change, Record};
use super::keys;
use super::values::{self, Damaged};
use crate::error::StoreError;
use crate::rows::{Floor, Head, Partition};
use crate::{Device, User, Woken};
use bytes::Bytes;
use chappe_protocol::id::{Bucket, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::time::{Millis, UnixMillis};
use redb::{ReadableTable, Table, TableDefinition};

/// The one table: what is one mailbox's lies together, and a batch touches few pages.
pub(super) const ROWS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("rows");

/// How long an id is remembered.
pub(super) const ID_MS: Millis = Millis::from_secs(2 * 24 * 3600);

/// Why an operation on the rows did not happen.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database or the disk; the whole batch goes.
    Storage(redb::StorageError),
    /// A row is not what was written; only this operation goes.
    Damaged,
    /// The call is refused; only this operation goes.
    Refused(StoreError),
}

impl From<redb::StorageError> for Failure {
    fn from(error: redb::StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<Damaged> for Failure {
    fn from(_: Damaged) -> Self {
        Self::Damaged
    }
}

pub(super) type Outcome<T> = core::result::Result<T, Failure>;

/// Typed reads, of a snapshot or of the running batch.
pub(super) trait Reads: ReadableTable<&'static [u8], &'static [u8]> {
    /// Reads one row.
    fn row<T>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> Result<T, Damaged>) -> Outcome<Option<T>> {
        match self.get(key)? {
            Some(value) => Ok(Some(read(value.value())?)),
            None => Ok(None),
        }
    }

    /// Visits rows from `from` (inclusive) to `to` (exclusive) until `visit` says `false`.
    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, Damaged>,
    ) -> Outcome<()> {
        for row in self.range(from..to)? {
            let (key, value) = row?;
            if !visit(key.value(), value.value())? {
                break;
            }
        }
        Ok(())
    }

    /// A head and when its partition is due.
    fn head_and_due(&self, of: Partition) -> Outcome<Option<(Head, UnixMillis)>> {
        self.row(&keys::head(of), values::read_head)
    }

    /// Where an id stands, unless its time is over.
    fn find_id(&self, of: Partition, id: EnvelopeId, now: UnixMillis) -> Outcome<Option<Seq>> {
        let found = self.row(&keys::id(of, id), values::read_id)?;
        Ok(found.filter(|(_, at)| *at + ID_MS > now).map(|(seq, _)| seq))
    }

    /// The hint.
    fn read_hint(&self, of: MailboxId) -> Outcome<Bucket> {
        Ok(Bucket(self.row(&keys::hint(of), values::read_number)?.unwrap_or_default()))
    }

    /// The floor.
    fn read_floor(&self, of: MailboxId) -> Outcome<Floor> {
        Ok(self.row(&keys::floor(of), values::read_floor)?.unwrap_or_default())
    }

    /// A cursor.
    fn read_cursor(&self, of: MailboxId, device: &DeviceId) -> Outcome<Seq> {
        Ok(Seq(self.row(&keys::cursor(of, device), values::read_number)?.unwrap_or_default()))
    }

    /// A device and the time of its last session write.
    fn read_device(&self, of: MailboxId, device: &DeviceId) -> Outcome<Option<(Device, UnixMillis)>> {
        self.row(&keys::device(of, device), |value| values::read_device(device.clone(), value))
    }

    /// The version of a device set.
    fn read_device_version(&self, of: MailboxId) -> Outcome<u64> {
        Ok(self.row(&keys::device_version(of), values::read_number)?.unwrap_or_default())
    }

    /// A device set.
    fn read_devices(&self, of: MailboxId) -> Outcome<(u64, Vec<(Device, UnixMillis)>)> {
        let version = self.read_device_version(of)?;
        let (from, to, prefix) = keys::devices(of);
        let mut devices = Vec::new();
        self.visit(&from, &to, |key, value| {
            let name = key.get(prefix..).and_then(|name| core::str::from_utf8(name).ok()).ok_or(Damaged)?;
            devices.push(values::read_device(DeviceId::new(name).map_err(|_| Damaged)?, value)?);
            Ok(true)
        })?;
        Ok((version, devices))
    }

    /// A device's sealed push targets.
    fn read_push(&self, of: MailboxId, device: &DeviceId) -> Outcome<Option<Bytes>> {
        self.row(&keys::push(of, device), values::read_push)
    }

    /// How far a device was woken.
    fn read_woken(&self, of: MailboxId, device: &DeviceId) -> Outcome<Option<Woken>> {
        self.row(&keys::woken(of, device), values::read_woken)
    }

    /// A shard's watermark.
    fn read_swept(&self, shard: u8) -> Outcome<Option<UnixMillis>> {
        Ok(self.row(&keys::swept(shard), values::read_number)?.map(UnixMillis))
    }

    /// A user.
    fn read_user(&self, user: &UserId) -> Outcome<Option<User>> {
        self.row(&keys::user(user), values::read_user)
    }

    /// The number of the last committed batch.
    fn batch(&self) -> Outcome<u64> {
        Ok(self.row(keys::BATCH, values::read_number)?.unwrap_or_default())
    }
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Reads for T {}

/// Makes one change, in a running batch or in a replay.
pub(super) fn apply(
    rows: &mut Table<'_, &'static [u8], &'static [u8]>,
    change: Change<'_>,
) -> core::result::Result<(), redb::StorageError> {
    match change {
        Change::Put(key, value) => drop(rows.insert(key, value)?),
        Change::Remove(key) => drop(rows.remove(key)?),
        Change::RemoveRange(from, to) => rows.retain_in(from..to, |_, _| false)?,
    }
    Ok(())
}

/// The rows inside the running batch.
pub(super) struct Tables<'txn> {
    rows: Table<'txn, &'static [u8], &'static [u8]>,
    /// Every change of the rows, for the journal.
    record: Record,
    /// The store's clock when the batch began.
    pub(super) now: UnixMillis,
}

impl<'txn> Tables<'txn> {
    pub(super) fn new(
        rows: Table<'txn, &'static [u8], &'static [u8]>,
        record: Record,
        now: UnixMillis,
    ) -> Self {
        Self { rows, record, now }
    }

    /// What was changed.
    pub(super) fn into_record(self) -> Record {
        self.record
    }

    /// For reads of the state so far.
    pub(super) fn rows(&self) -> &Table<'txn, &'static [u8], &'static [u8]> {
        &self.rows
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        self.change(Change::Put(key, value))
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Outcome<()> {
        self.change(Change::Remove(key))
    }

    /// Removes the rows from `from` (inclusive) to `to` (exclusive).
    pub(super) fn remove_range(&mut self, from: &[u8], to: &[u8]) -> Outcome<()> {
        self.change(Change::RemoveRange(from, to))
    }

    fn change(&mut self, change: Change<'_>) -> Outcome<()> {
        apply(&mut self.rows, change)?;
        self.record.push(change);
        Ok(())
    }

    pub(super) fn put_head(&mut self, of: Partition, head: Head, due: UnixMillis) -> Outcome<()> {
        self.put(&keys::head(of), &values::head(head, due))
    }

    pub(super) fn put_device(&mut self, of: MailboxId, device: &Device, written: UnixMillis) -> Outcome<()> {
        self.put(&keys::device(of, &device.device), &values::device(device, written))
    }

    pub(super) fn raise_device_version(&mut self, of: MailboxId) -> Outcome<()> {
        let version = self.rows.read_device_version(of)?;
        self.put(&keys::device_version(of), &values::number(version + 1))
    }
}
