//! The rows as the writing thread and the readers see them: typed reads, and writes inside the running batch.
//! **Invariant:** a write that refuses or meets a damaged row has written nothing before.

use super::journal::{Change, Record};
use super::keys;
use super::memtable::{Found, Memtable, Memtables};
use super::values::{self, Damaged};
use crate::error::StoreError;
use crate::rows::{Floor, Head, Partition};
use crate::{Device, User, Woken};
use bytes::Bytes;
use chappe_protocol::id::{Bucket, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::time::{Millis, UnixMillis};
use redb::{ReadOnlyTable, Table, TableDefinition};
use std::collections::BTreeMap;
use std::sync::RwLockReadGuard;

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

/// What is to be found in memory of a range of keys; `None`: removed.
type Known<'a> = BTreeMap<&'a [u8], Option<&'a [u8]>>;

/// Typed reads, of a snapshot or of the running batch.
pub(super) trait Reads {
    /// Reads one row.
    fn row<T>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> Result<T, Damaged>) -> Outcome<Option<T>>;

    /// Visits rows from `from` (inclusive) to `to` (exclusive) until `visit` says `false`.
    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, Damaged>,
    ) -> Outcome<()>;

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

/// A consistent state of the rows: what is in memory, over the pages.
pub(super) struct Snapshot<'a> {
    over: Over<'a>,
    pages: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

/// The part in memory.
pub(super) enum Over<'a> {
    /// All of it, kept as it is while this read takes: for short ones.
    Whole(RwLockReadGuard<'a, Memtables>),
    /// What was there of one range, and nothing outside of it is asked for.
    Part(Memtable),
}

impl Over<'_> {
    fn get(&self, key: &[u8]) -> Found<'_> {
        match self {
            Self::Whole(tables) => tables.get(key),
            Self::Part(table) => table.get(key),
        }
    }

    fn cut(&self, from: &[u8], to: &[u8]) -> Memtable {
        match self {
            Self::Whole(tables) => tables.cut(from, to),
            Self::Part(table) => table.cut(from, to),
        }
    }
}

impl<'a> Snapshot<'a> {
    pub(super) fn new(over: Over<'a>, pages: ReadOnlyTable<&'static [u8], &'static [u8]>) -> Self {
        Self { over, pages }
    }

    fn get_from_pages<T>(
        &self,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> Result<T, Damaged>,
    ) -> Outcome<Option<T>> {
        match self.pages.get(key)? {
            Some(value) => Ok(Some(read(value.value())?)),
            None => Ok(None),
        }
    }

    /// Visits what is known in memory, and between it the rows of the pages that it does not hide.
    fn merge(
        &self,
        known: Known<'_>,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, Damaged>,
    ) -> Outcome<()> {
        let mut known = known.into_iter().peekable();
        if from >= to {
            return Ok(());
        }
        for row in self.pages.range(from..to)? {
            let (key, value) = row?;
            while let Some((earlier, value)) = known.next_if(|(known, _)| *known < key.value()) {
                if let Some(value) = value
                    && !visit(earlier, value)?
                {
                    return Ok(());
                }
            }
            let hidden = known.peek().is_some_and(|(known, _)| *known == key.value());
            if !hidden && !visit(key.value(), value.value())? {
                return Ok(());
            }
        }
        for (key, value) in known {
            if let Some(value) = value
                && !visit(key, value)?
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Reads for Snapshot<'_> {
    fn row<T>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> Result<T, Damaged>) -> Outcome<Option<T>> {
        match self.over.get(key) {
            Found::Value(value) => Ok(Some(read(value)?)),
            Found::Removed => Ok(None),
            Found::Unknown => self.get_from_pages(key, read),
        }
    }

    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, Damaged>,
    ) -> Outcome<()> {
        let over = self.over.cut(from, to);
        self.merge(over.iter().collect(), from, to, visit)
    }
}

/// Makes one change of the pages.
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
pub(super) struct Tables<'a> {
    /// Before the batch.
    snapshot: Snapshot<'a>,
    /// What the batch has written so far.
    written: Memtable,
    /// Every change of the rows, for the journal.
    record: Record,
    /// The store's clock when the batch began.
    pub(super) now: UnixMillis,
}

impl<'a> Tables<'a> {
    pub(super) fn new(snapshot: Snapshot<'a>, record: Record, now: UnixMillis) -> Self {
        Self { snapshot, written: Memtable::default(), record, now }
    }

    /// What was changed: for the journal, and for the memtable.
    pub(super) fn into_changes(self) -> (Record, Memtable) {
        (self.record, self.written)
    }

    pub(super) fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        let value = value.into();
        self.record.push(Change::Put(&key, &value));
        self.written.put(key, Some(value));
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) {
        self.record.push(Change::Remove(&key));
        self.written.put(key, None);
    }

    /// Removes the rows from `from` (inclusive) to `to` (exclusive).
    pub(super) fn remove_range(&mut self, from: &[u8], to: &[u8]) -> Outcome<()> {
        let mut there = Vec::new();
        self.visit(from, to, |key, _| {
            there.push(key.to_vec());
            Ok(true)
        })?;
        self.record.push(Change::RemoveRange(from, to));
        for key in there {
            self.written.put(key, None);
        }
        Ok(())
    }

    pub(super) fn put_head(&mut self, of: Partition, head: Head, due: UnixMillis) {
        self.put(keys::head(of), values::head(head, due));
    }

    pub(super) fn put_device(&mut self, of: MailboxId, device: &Device, written: UnixMillis) {
        self.put(keys::device(of, &device.device), values::device(device, written));
    }

    pub(super) fn raise_device_version(&mut self, of: MailboxId) -> Outcome<()> {
        let version = self.read_device_version(of)?;
        self.put(keys::device_version(of), values::number(version + 1));
        Ok(())
    }
}

impl Reads for Tables<'_> {
    fn row<T>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> Result<T, Damaged>) -> Outcome<Option<T>> {
        match self.written.get(key) {
            Found::Value(value) => Ok(Some(read(value)?)),
            Found::Removed => Ok(None),
            Found::Unknown => self.snapshot.row(key, read),
        }
    }

    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, Damaged>,
    ) -> Outcome<()> {
        let over = self.snapshot.over.cut(from, to);
        let known = over.iter().chain(self.written.range(from, to)).collect();
        self.snapshot.merge(known, from, to, visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{Database, ReadableDatabase};

    /// A batch sees its own writes and removals, also in a range that it removes.
    #[test]
    fn a_batch_sees_what_it_has_written() {
        let database =
            Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut rows = transaction.open_table(ROWS).unwrap();
            for key in [b"a", b"c"] {
                rows.insert(&key[..], &b"pages"[..]).unwrap();
            }
        }
        transaction.commit().unwrap();
        let pages = database.begin_read().unwrap().open_table(ROWS).unwrap();
        let mut seen = Vec::new();
        let snapshot = Snapshot::new(Over::Part(Memtable::default()), pages);
        let mut tables = Tables::new(snapshot, Record::default(), UnixMillis(0));
        let mut keys = |tables: &Tables<'_>| {
            seen.clear();
            tables
                .visit(b"a", b"z", |key, _| {
                    seen.push(String::from_utf8(key.to_vec()).unwrap());
                    Ok(true)
                })
                .unwrap();
            seen.join(" ")
        };
        tables.put(b"b".to_vec(), Bytes::from_static(b"batch"));
        tables.put(b"d".to_vec(), Bytes::from_static(b"batch"));
        assert_eq!(keys(&tables), "a b c d");
        tables.remove(b"c".to_vec());
        assert_eq!(keys(&tables), "a b d");
        tables.remove_range(b"a", b"c").unwrap();
        assert_eq!(keys(&tables), "d");
        let read = |key: &[u8]| tables.row(key, |value| Ok(value.to_vec())).unwrap();
        assert_eq!((read(b"a"), read(b"b"), read(b"d")), (None, None, Some(b"batch".to_vec())));
    }
}
