//! The store of the one-process product: a journal beneath pages, one writing thread, one sync for all appends that wait.
//! **Invariant:** nothing is answered `Ok` before the sync behind it returned, but for pending notes, whose order is enough.

mod append;
mod committer;
mod database;
mod directory;
mod expiry;
mod file;
mod journal;
mod keys;
mod leisure;
mod memtable;
mod operations;
mod pages;
mod table;
mod values;
mod wakes;

use crate::error::{Result, StoreError};
use chappe_protocol::time::Time;
use chappe_protocol::world::World;
use committer::{Committer, Pace, Queued, Write};
use database::{Opened, Opener, Recipe, Shared, count};
use directory::{Content, Directory};
pub use file::Layer;
use file::{DiskFile, SyncFailed, abort_on_failed_sync};
use pages::Pages;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use table::{Outcome, Snapshot, Tables};
use tokio::sync::Semaphore;

/// Bounds of the embedded store.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct EmbeddedConfig {
    /// Memory for pages of the database, in bytes.
    pub cache_bytes: usize,
    /// Writes that may wait for the committer, in bytes; each counts its rows and a flat 1 KiB. More wait in their callers.
    pub queue_bytes_max: usize,
    /// Writes in one transaction, at most.
    pub batch_writes_max: usize,
    /// Bytes in one transaction, at most (one write may always go).
    pub batch_bytes_max: usize,
    /// Page reads that may run at once beside the async threads.
    pub readers_max: usize,
    /// Bytes of the journal. From half of it on, what it holds goes into the pages, while the other half takes the next batches;
    /// writers wait only when both are full. More journal: fewer page writes under load, longer recovery, more memory.
    pub journal_bytes_max: u64,
    /// Whether batches are synced. `false` loses acknowledged entries with the power; for the benchmark, and for the test that
    /// must then see the loss.
    #[cfg(feature = "testing")]
    pub sync: bool,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            queue_bytes_max: 32 << 20,
            batch_writes_max: 1024,
            batch_bytes_max: 8 << 20,
            readers_max: 16,
            journal_bytes_max: 32 << 20,
            #[cfg(feature = "testing")]
            sync: true,
        }
    }
}

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open. Code `data_dir_locked`.
    #[error(
        "the data directory is in use by another process: end that process or choose another --data directory"
    )]
    Locked,
    /// The data are damaged; they are left as they are. Code `data_dir_corrupt`.
    #[error("the data directory is damaged ({0}): restore it from a backup, or move it away to start empty")]
    Corrupt(String),
    /// Written by another version, or not a data directory of Chappe. Code `data_dir_format`.
    #[error(
        "the data directory has another format ({0}): use the version of Chappe that wrote it, or another directory"
    )]
    Format(String),
    /// The disk or the permissions. Code `data_dir_io`.
    #[error("the data directory cannot be used: {0}")]
    Io(#[from] std::io::Error),
}

impl OpenError {
    /// A stable word for scripts and documentation.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Locked => "data_dir_locked",
            Self::Corrupt(_) => "data_dir_corrupt",
            Self::Format(_) => "data_dir_format",
            Self::Io(_) => "data_dir_io",
        }
    }
}

/// What a store has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EmbeddedStats {
    /// Reads of a few rows, where the caller runs.
    pub reads: u64,
    /// Reads of a range of rows or of a large one, on the blocking pool.
    pub range_reads: u64,
    /// Writes that were queued.
    pub writes: u64,
    /// Batches of writes, each journalled with one sync.
    pub batches: u64,
    /// Memtables taken into the pages.
    pub checkpoints: u64,
}

/// The rows of one data directory. Dropping it writes out what waits, closes the file and frees the lock; it blocks for that long.
pub struct EmbeddedRows {
    shared: Arc<Shared>,
    incarnation: [u8; 16],
    /// `None` once closing.
    queue: RwLock<Option<SyncSender<Queued>>>,
    /// Bytes that may still be queued.
    room: Arc<Semaphore>,
    queue_bytes_max: usize,
    readers: Arc<Semaphore>,
    committer: Option<JoinHandle<()>>,
}

/// What every queued write counts beside its bytes.
const FLAT_BYTES: usize = 1024;

impl EmbeddedRows {
    /// Opens a data directory, or creates it if it does not exist or is empty. Every page is read and checked first, which
    /// takes about a second per GiB. Blocks; call it before the runtime serves.
    pub fn open(path: &Path, world: Arc<dyn World>, config: EmbeddedConfig) -> Result<Self, OpenError> {
        Self::open_watched(path, world, config, abort_on_failed_sync())
    }

    fn open_watched(
        path: &Path,
        world: Arc<dyn World>,
        config: EmbeddedConfig,
        on_failed_sync: SyncFailed,
    ) -> Result<Self, OpenError> {
        let (directory, content) = Directory::open(path)?;
        let recipe = Recipe::new(&config, on_failed_sync);
        let (rows, [first, second]) = (directory.rows(), directory.journals());
        let layer = move |create| -> std::io::Result<Layer> {
            let rows = Arc::new(DiskFile::open(&rows, create)?);
            let (first, second) = (DiskFile::open(&first, create)?, DiskFile::open(&second, create)?);
            Ok(Layer { rows, journals: [Arc::new(first), Arc::new(second)] })
        };
        if content == Content::Empty {
            directory.begin()?;
            recipe.create(&layer(true)?, &*world)?;
            directory.created()?;
        }
        let opener: Opener = Box::new(move || recipe.open(&layer(false)?));
        let opened = opener()?;
        if directory.closed()?.is_some_and(|batch| opened.batch < batch) {
            return Err(OpenError::Corrupt("rows.redb is older than it was when it was last closed".into()));
        }
        Self::start(world, config, opened, opener, Some(directory))
    }

    /// Runs on files of the caller's: for tests that cut the power or fill the disk. Creates the rows if the file is empty.
    #[cfg(feature = "testing")]
    pub fn open_layer(
        layer: Layer,
        world: Arc<dyn World>,
        config: EmbeddedConfig,
    ) -> Result<Self, OpenError> {
        let recipe = Recipe::new(&config, abort_on_failed_sync());
        if layer.rows.len()? == 0 {
            recipe.create(&layer, &*world)?;
        }
        let opener: Opener = Box::new(move || recipe.open(&layer));
        let opened = opener()?;
        Self::start(world, config, opened, opener, None)
    }

    /// Starts the committer.
    fn start(
        world: Arc<dyn World>,
        config: EmbeddedConfig,
        opened: Opened,
        opener: Opener,
        directory: Option<Directory>,
    ) -> Result<Self, OpenError> {
        let queue_bytes_max = config.queue_bytes_max.clamp(FLAT_BYTES, u32::MAX as usize);
        let (sender, queue) = sync_channel(queue_bytes_max / FLAT_BYTES + 1);
        let shared = Arc::new(Shared::new(world, opened.database));
        let committer = Committer {
            shared: Arc::clone(&shared),
            pages: Pages::start(Arc::clone(&shared), opened.leisure)?,
            in_pages: opened.in_pages,
            wanted: opened.in_pages,
            wanted_at: Time::default(),
            opener,
            journal: opened.journal,
            journal_bytes_max: config.journal_bytes_max,
            queue,
            batch_writes_max: config.batch_writes_max.max(1),
            batch_bytes_max: config.batch_bytes_max,
            last_writes: 0,
            batch: opened.batch,
            expiry_at: Time::default(),
            reopen: Pace::default(),
            checkpoint: Pace::default(),
        };
        // A thread of its own: it spends its life in `fdatasync`, and the one writer is what makes a condition and its write one step.
        let thread = std::thread::Builder::new().name("chappe-store".into()).spawn(move || {
            let batch = committer.run();
            if let Some(Err(error)) = directory.map(|directory| directory.close(batch)) {
                tracing::warn!(%error, "the orderly close could not be noted");
            }
        })?;
        Ok(Self {
            shared,
            incarnation: opened.incarnation,
            queue: RwLock::new(Some(sender)),
            room: Arc::new(Semaphore::new(queue_bytes_max)),
            queue_bytes_max,
            readers: Arc::new(Semaphore::new(config.readers_max.max(1))),
            committer: Some(thread),
        })
    }

    /// What it has done so far.
    pub fn stats(&self) -> EmbeddedStats {
        let counts = &self.shared.counts;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        EmbeddedStats {
            reads: of(&counts.reads),
            range_reads: of(&counts.range_reads),
            writes: of(&counts.writes),
            batches: of(&counts.batches),
            checkpoints: of(&counts.checkpoints),
        }
    }

    /// Queues a write in order, and waits until it is durable. `bytes`: what it will write.
    async fn write<T, F>(&self, bytes: usize, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tables<'_>) -> Outcome<T> + Send + 'static,
    {
        let closing = || StoreError::Unavailable("the store is closing".into());
        let bytes = (bytes + FLAT_BYTES).min(self.queue_bytes_max);
        let share = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.room).acquire_many_owned(share).await.map_err(|_| closing())?;
        let (write, answer) = Write::new(work);
        let queued = Queued { work: Box::new(write), bytes, _permit: permit };
        {
            let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
            // There is room: each write holds at least `FLAT_BYTES` of the semaphore.
            queue.as_ref().ok_or_else(closing)?.try_send(queued).map_err(|_| closing())?;
        }
        count(&self.shared.counts.writes);
        // The committer died with the write: nobody knows.
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the store ended".into())))
    }

    /// A read of a few rows, where the caller runs: some microseconds from the cache (`docs/performance.md`).
    fn read<T>(&self, read: impl FnOnce(&Snapshot<'_>) -> Outcome<T>) -> Result<T> {
        self.shared.read(read)
    }

    /// A read of a range (from, inclusive, to, exclusive) that may take many pages. On the blocking pool, since it may wait for the
    /// disk; at most `readers_max` at a time.
    async fn read_aside<T, F>(&self, range: (Vec<u8>, Vec<u8>), read: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Snapshot<'_>, &[u8], &[u8]) -> Outcome<T> + Send + 'static,
    {
        let closing = |_| StoreError::Unavailable("the store is closing".into());
        let permit = Arc::clone(&self.readers).acquire_owned().await.map_err(closing)?;
        let shared = Arc::clone(&self.shared);
        let read = move || {
            let _permit = permit;
            let (from, to) = (&range.0[..], &range.1[..]);
            shared.read_range((from, to), |rows| read(rows, from, to))
        };
        let failed = |_| StoreError::Unavailable("the read failed".into());
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(failed(error)))
    }
}

impl Drop for EmbeddedRows {
    fn drop(&mut self) {
        drop(self.queue.write().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(committer) = self.committer.take() {
            let _ = committer.join();
        }
    }
}
