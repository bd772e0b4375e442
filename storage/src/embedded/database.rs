//! The open database, shared by the committer and the readers, and how to open it.
//! **Invariant:** two database handles on one file never live at the same time.

use super::file::{Guarded, Layer, SyncFailed};
use super::journal::{Journal, ReplayError};
use super::keys;
use super::leisure::Leisure;
use super::memtable::{Memtable, Memtables};
use super::table::{self, Outcome, Over, ROWS, Reads, Snapshot};
use super::values;
use super::{EmbeddedConfig, OpenError};
use crate::error::{Result, StoreError};
use chappe_protocol::id::MailboxId;
use chappe_protocol::world::World;
use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, StorageBackend, StorageError,
};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Rows that go into the pages between two rests: a millisecond's work or so.
const ROWS_AT_ONCE: usize = 256;

/// Pending notes `(minute, mailbox)` that no committed batch holds yet.
pub(super) type Notes = BTreeSet<(u64, MailboxId)>;

/// What committer and readers share.
pub(super) struct Shared {
    pub(super) world: Arc<dyn World>,
    /// `None` while the file is being opened again. Readers hold the lock for one read, never over an await.
    database: RwLock<Option<Database>>,
    /// What the pages lack. Locked before the pages are looked at, so that nothing falls between the two.
    memtables: RwLock<Memtables>,
    notes: Mutex<Notes>,
    pub(super) counts: Counts,
}

/// What has been done since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) reads: AtomicU64,
    pub(super) range_reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) checkpoints: AtomicU64,
}

/// One more of something.
pub(super) fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

impl Shared {
    pub(super) fn new(world: Arc<dyn World>, database: Database) -> Self {
        Self {
            world,
            database: RwLock::new(Some(database)),
            memtables: RwLock::default(),
            notes: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// The notes that wait.
    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the notes that a batch now holds.
    pub(super) fn forget_notes(&self, written: &Notes) {
        self.notes().retain(|note| !written.contains(note));
    }

    /// What the pages lack, to be looked at.
    pub(super) fn memtables(&self) -> RwLockReadGuard<'_, Memtables> {
        self.memtables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the pages lack, to be changed.
    pub(super) fn memtables_mut(&self) -> RwLockWriteGuard<'_, Memtables> {
        self.memtables.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_open(&self) -> bool {
        self.database().is_some()
    }

    /// A database that holds everything that the journal holds.
    pub(super) fn set(&self, database: Database) {
        *self.memtables_mut() = Memtables::default();
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
    }

    /// Waits for the running reads and closes the database.
    pub(super) fn close(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let open = database.take();
        // After a failed write the drop may complain about pages in use; the file is as it is by then.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }

    /// Takes the frozen memtable into the pages and syncs them: afterwards they hold all batches up to this one.
    pub(super) fn write_pages(&self, batch: u64, leisure: &Leisure) -> core::result::Result<(), redb::Error> {
        let frozen = self.memtables().frozen();
        {
            let database = self.database();
            let Some(database) = database.as_ref() else {
                return Err(redb::Error::Io(std::io::Error::other("closed")));
            };
            let transaction = database.begin_write()?;
            {
                let mut rows = transaction.open_table(ROWS)?;
                for (number, (key, value)) in frozen.iter().flat_map(|frozen| frozen.iter()).enumerate() {
                    if number % ROWS_AT_ONCE == ROWS_AT_ONCE - 1 {
                        leisure.rest();
                    }
                    match value {
                        Some(value) => drop(rows.insert(key, value)?),
                        None => drop(rows.remove(key)?),
                    }
                }
                rows.insert(keys::BATCH, &values::number(batch)[..])?;
            }
            transaction.commit()?;
        }
        self.memtables_mut().thaw();
        count(&self.counts.checkpoints);
        Ok(())
    }

    /// Reads a consistent state of all rows; short, since no batch is committed meanwhile.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Snapshot<'_>) -> Outcome<T>) -> Result<T> {
        count(&self.counts.reads);
        Self::caught(|| {
            let snapshot = self.snapshot()?;
            read(&snapshot).map_err(refusal)
        })
    }

    /// Reads a consistent state of the rows from `from` (inclusive) to `to` (exclusive), and of no other; may take its time.
    pub(super) fn read_range<T>(
        &self,
        (from, to): (&[u8], &[u8]),
        read: impl FnOnce(&Snapshot<'_>) -> Outcome<T>,
    ) -> Result<T> {
        count(&self.counts.range_reads);
        Self::caught(|| {
            let snapshot = {
                let memtables = self.memtables();
                Snapshot::new(Over::Part(memtables.cut(from, to)), self.pages()?)
            };
            read(&snapshot).map_err(refusal)
        })
    }

    /// Everything as it is now; no batch is committed while it lives.
    pub(super) fn snapshot(&self) -> Result<Snapshot<'_>> {
        let memtables = self.memtables();
        let pages = self.pages()?;
        Ok(Snapshot::new(Over::Whole(memtables), pages))
    }

    /// The database panics on some damaged pages: that is this read's end and nobody else's.
    fn caught<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(super::committer::damaged()))
    }

    fn pages(&self) -> Result<ReadOnlyTable<&'static [u8], &'static [u8]>> {
        let closed = || StoreError::Unavailable("the data file is being opened again".into());
        let failed = |error: &dyn std::fmt::Display| StoreError::Unavailable(error.to_string());
        let database = self.database.try_read().map_err(|_| closed())?;
        let transaction =
            database.as_ref().ok_or_else(closed)?.begin_read().map_err(|error| failed(&error))?;
        transaction.open_table(ROWS).map_err(|error| failed(&error))
    }
}

/// What a failed read is to the caller.
fn refusal(failure: table::Failure) -> StoreError {
    match failure {
        table::Failure::Storage(error) => StoreError::Unavailable(error.to_string()),
        table::Failure::Damaged => super::committer::damaged(),
        table::Failure::Refused(error) => error,
    }
}

/// Opens the file.
pub(super) type Opener = Box<dyn Fn() -> core::result::Result<Opened, OpenError> + Send>;

/// A database that passed its checks.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) incarnation: [u8; 16],
    /// The number of the last batch.
    pub(super) batch: u64,
    /// The number of the last batch that the pages hold for good.
    pub(super) in_pages: u64,
    pub(super) journal: Journal,
    /// Of its pages, the same each time.
    pub(super) leisure: Arc<Leisure>,
}

/// How the files are opened.
pub(super) struct Recipe {
    pub(super) cache_bytes: usize,
    pub(super) sync: bool,
    pub(super) on_failed_sync: SyncFailed,
    leisure: Arc<Leisure>,
}

impl Recipe {
    pub(super) fn new(config: &EmbeddedConfig, on_failed_sync: SyncFailed) -> Self {
        #[cfg(feature = "testing")]
        let sync = config.sync;
        #[cfg(not(feature = "testing"))]
        let sync = true;
        Self { cache_bytes: config.cache_bytes, sync, on_failed_sync, leisure: Arc::default() }
    }

    fn guarded(&self, file: Arc<dyn StorageBackend>) -> Guarded {
        Guarded::new(file, self.sync, Arc::clone(&self.on_failed_sync))
    }

    /// Writes an empty database into the file; its journal is to be empty.
    pub(super) fn create(&self, layer: &Layer, world: &dyn World) -> core::result::Result<(), OpenError> {
        let database = redb::Builder::new()
            .create_with_backend(self.guarded(Arc::clone(&layer.rows)))
            .map_err(|error| open_error(&error))?;
        let (mut incarnation, mut key) = ([0; 16], [0; 32]);
        world.fill_random(&mut incarnation);
        world.fill_random(&mut key);
        let fill = || -> core::result::Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            {
                let mut rows = transaction.open_table(ROWS)?;
                rows.insert(keys::INCARNATION, &values::id16(incarnation)[..])?;
                rows.insert(keys::JOURNAL_KEY, &values::key(key)[..])?;
                rows.insert(keys::BATCH, &values::number(1)[..])?;
            }
            transaction.commit()?;
            Ok(())
        };
        fill().map_err(|error| OpenError::Io(std::io::Error::other(error.to_string())))
    }

    /// Opens a database that was created before, checks every page of it (a damaged file is not served), and brings it up to
    /// its journal. That needs no space on the disk but for a longer file: the pages are written by the next checkpoint.
    pub(super) fn open(&self, layer: &Layer) -> core::result::Result<Opened, OpenError> {
        if layer.rows.len()? == 0 {
            return Err(OpenError::Corrupt("the file rows.redb is empty".into()));
        }
        let opened = catch_unwind(AssertUnwindSafe(|| self.open_checked(layer)));
        opened.unwrap_or_else(|_| Err(OpenError::Corrupt("the check of rows.redb failed".into())))
    }

    fn open_checked(&self, layer: &Layer) -> core::result::Result<Opened, OpenError> {
        let database = redb::Builder::new()
            .set_cache_size(self.cache_bytes)
            .set_check_integrity_on_open(true)
            .create_with_backend(self.guarded(Arc::clone(&layer.rows)).paced(Arc::clone(&self.leisure)))
            .map_err(|error| open_error(&error))?;
        let corrupt = |error: &dyn std::fmt::Display| OpenError::Corrupt(error.to_string());
        let (incarnation, key, batch) = {
            let transaction = database.begin_read().map_err(|error| corrupt(&error))?;
            let rows = transaction.open_table(ROWS).map_err(|error| corrupt(&error))?;
            let rows = Snapshot::new(Over::Part(Memtable::default()), rows);
            let incarnation = rows.row(keys::INCARNATION, values::read_id16).ok().flatten();
            let incarnation = incarnation.ok_or_else(|| corrupt(&"no incarnation"))?;
            let key = rows.row(keys::JOURNAL_KEY, values::read_key).ok().flatten();
            let key = key.ok_or_else(|| corrupt(&"no key of the journal"))?;
            (incarnation, key, rows.batch().map_err(|_| corrupt(&"no batch number"))?)
        };
        let files = layer.journals.each_ref().map(|file| self.guarded(Arc::clone(file)));
        let mut journal = Journal::new(files, key);
        let in_pages = batch;
        let batch = replay(&database, &mut journal, batch)?;
        // A killed process leaves writes behind that it had not synced. They are seen now, so they must not go with the power.
        self.guarded(Arc::clone(&layer.rows)).sync_data()?;
        journal.sync()?;
        Ok(Opened { database, incarnation, batch, in_pages, journal, leisure: Arc::clone(&self.leisure) })
    }
}

/// Applies what the journal has beyond the pages.
fn replay(database: &Database, journal: &mut Journal, batch: u64) -> core::result::Result<u64, OpenError> {
    let failed = |error: &dyn std::fmt::Display| OpenError::Io(std::io::Error::other(error.to_string()));
    let mut transaction = database.begin_write().map_err(|error| failed(&error))?;
    transaction.set_durability(Durability::None).map_err(|error| failed(&error))?;
    let last = {
        let mut rows = transaction.open_table(ROWS).map_err(|error| failed(&error))?;
        journal.replay(batch, |change| table::apply(&mut rows, change)).map_err(|error| match error {
            ReplayError::Damaged(what) => OpenError::Corrupt(what.into()),
            ReplayError::Io(error) => OpenError::Io(error),
            ReplayError::Rows(error) => failed(&error),
        })?
    };
    if last > batch {
        transaction.commit().map_err(|error| failed(&error))?;
    }
    Ok(last)
}

fn open_error(error: &DatabaseError) -> OpenError {
    match error {
        DatabaseError::Storage(StorageError::Io(io)) if io.kind() == std::io::ErrorKind::InvalidData => {
            OpenError::Corrupt(io.to_string())
        }
        DatabaseError::Storage(StorageError::Io(io)) => {
            OpenError::Io(std::io::Error::new(io.kind(), io.to_string()))
        }
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked,
        DatabaseError::UpgradeRequired(version) => {
            OpenError::Format(format!("file format {version} of the database"))
        }
        DatabaseError::Storage(_)
        | DatabaseError::RepairAborted
        | DatabaseError::LockProtocolMismatch
        | DatabaseError::TransactionInProgress
        | _ => OpenError::Corrupt(error.to_string()),
    }
}
