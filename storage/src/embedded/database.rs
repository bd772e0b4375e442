//! The open database, shared by the committer and the readers, and how to open it.
//! **Invariant:** two database handles on one file never live at the same time.

use super::file::{Guarded, Layer, SyncFailed};
use super::journal::{Journal, ReplayError};
use super::keys;
use super::table::{self, Outcome, ROWS, Reads};
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// Pending notes `(minute, mailbox)` that no committed batch holds yet.
pub(super) type Notes = BTreeSet<(u64, MailboxId)>;

/// What committer and readers share.
pub(super) struct Shared {
    pub(super) world: Arc<dyn World>,
    /// `None` while the file is being opened again. Readers hold the lock for one read, never over an await.
    database: RwLock<Option<Database>>,
    notes: Mutex<Notes>,
}

impl Shared {
    pub(super) fn new(world: Arc<dyn World>, database: Database) -> Self {
        Self { world, database: RwLock::new(Some(database)), notes: Mutex::default() }
    }

    /// The notes that wait.
    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the notes that a batch now holds.
    pub(super) fn forget_notes(&self, written: &Notes) {
        self.notes().retain(|note| !written.contains(note));
    }

    /// For the committer.
    pub(super) fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_open(&self) -> bool {
        self.database().is_some()
    }

    pub(super) fn set(&self, database: Database) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
    }

    /// Waits for the running reads and closes the database.
    pub(super) fn close(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let open = database.take();
        // After a failed write the drop may complain about pages in use; the file is as it is by then.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
    }

    /// Writes all pages and syncs them.
    pub(super) fn write_pages(&self, batch: u64) -> core::result::Result<(), redb::Error> {
        let database = self.database();
        let Some(database) = database.as_ref() else {
            return Err(redb::Error::Io(std::io::Error::other("closed")));
        };
        let transaction = database.begin_write()?;
        transaction.open_table(ROWS)?.insert(keys::BATCH, &values::number(batch)[..])?;
        Ok(transaction.commit()?)
    }

    /// Reads a snapshot.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&ReadOnlyTable<&'static [u8], &'static [u8]>) -> Outcome<T>,
    ) -> Result<T> {
        // The database panics on some damaged pages: that is this read's end and nobody else's.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.read_open(read)));
        outcome.unwrap_or_else(|_| Err(super::committer::damaged()))
    }

    fn read_open<T>(
        &self,
        read: impl FnOnce(&ReadOnlyTable<&'static [u8], &'static [u8]>) -> Outcome<T>,
    ) -> Result<T> {
        let closed = || StoreError::Unavailable("the data file is being opened again".into());
        let failed = |error: &dyn std::fmt::Display| StoreError::Unavailable(error.to_string());
        let database = self.database.try_read().map_err(|_| closed())?;
        let transaction =
            database.as_ref().ok_or_else(closed)?.begin_read().map_err(|error| failed(&error))?;
        let rows = transaction.open_table(ROWS).map_err(|error| failed(&error))?;
        read(&rows).map_err(|failure| match failure {
            table::Failure::Storage(error) => failed(&error),
            table::Failure::Damaged => super::committer::damaged(),
            table::Failure::Refused(error) => error,
        })
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
    pub(super) journal: Journal,
}

/// How the files are opened.
pub(super) struct Recipe {
    pub(super) cache_bytes: usize,
    pub(super) sync: bool,
    pub(super) on_failed_sync: SyncFailed,
}

impl Recipe {
    pub(super) fn new(config: &EmbeddedConfig, on_failed_sync: SyncFailed) -> Self {
        #[cfg(feature = "testing")]
        let sync = config.sync;
        #[cfg(not(feature = "testing"))]
        let sync = true;
        Self { cache_bytes: config.cache_bytes, sync, on_failed_sync }
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
            .create_with_backend(self.guarded(Arc::clone(&layer.rows)))
            .map_err(|error| open_error(&error))?;
        let corrupt = |error: &dyn std::fmt::Display| OpenError::Corrupt(error.to_string());
        let (incarnation, key, batch) = {
            let transaction = database.begin_read().map_err(|error| corrupt(&error))?;
            let rows = transaction.open_table(ROWS).map_err(|error| corrupt(&error))?;
            let incarnation = rows.row(keys::INCARNATION, values::read_id16).ok().flatten();
            let incarnation = incarnation.ok_or_else(|| corrupt(&"no incarnation"))?;
            let key = rows.row(keys::JOURNAL_KEY, values::read_key).ok().flatten();
            let key = key.ok_or_else(|| corrupt(&"no key of the journal"))?;
            (incarnation, key, rows.batch().map_err(|_| corrupt(&"no batch number"))?)
        };
        let mut journal = Journal::new(self.guarded(Arc::clone(&layer.journal)), key);
        let batch = replay(&database, &mut journal, batch)?;
        // A killed process leaves writes behind that it had not synced. They are seen now, so they must not go with the power.
        self.guarded(Arc::clone(&layer.rows)).sync_data()?;
        journal.sync()?;
        Ok(Opened { database, incarnation, batch, journal })
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
