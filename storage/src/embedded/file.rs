//! The files of a store: plain reads and writes, and what must happen when a sync fails.
//! **Invariant:** a sync that failed ends the process.

use super::leisure::Leisure;
use redb::StorageBackend;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What happens when the disk fails to sync. Never returns in production: what the kernel dropped after a failed
/// `fdatasync` cannot be written again (<https://wiki.postgresql.org/wiki/Fsync_Errors>), so the next start reads the truth.
pub(super) type SyncFailed = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// Logs and ends the process.
pub(super) fn abort_on_failed_sync() -> SyncFailed {
    Arc::new(|error| {
        tracing::error!(%error, "the disk failed to sync: ending the process, since nothing written since can be trusted");
        std::process::abort();
    })
}

/// The files of a store; tests bring their own.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The pages of the database.
    pub rows: Arc<dyn StorageBackend>,
    /// The journal beneath them: while the batches in one file go into the pages, the next ones are written to the other.
    pub journals: [Arc<dyn StorageBackend>; 2],
}

/// The file on the disk.
#[derive(Debug)]
pub(super) struct DiskFile(File);

impl DiskFile {
    /// Opens the file, or creates it if `create`, for its owner alone.
    pub(super) fn open(path: &Path, create: bool) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(create).truncate(false).mode(0o600);
        options.open(path).map(Self)
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// Bytes of pages that are written between two syncs, at leisure and in a hurry: the journal's syncs share the disk with them, and wait
/// for no more than this.
const PACE_BYTES: (usize, usize) = (128 << 10, 1 << 20);

/// A file whose failed sync has consequences.
pub(super) struct Guarded {
    file: Arc<dyn StorageBackend>,
    sync: bool,
    on_failed_sync: SyncFailed,
    /// Bytes written since the last sync, if those are bounded, and whether there is time.
    pace: Option<(AtomicUsize, Arc<Leisure>)>,
}

impl Guarded {
    /// `sync: false` leaves the syncs out and exists for the benchmark and for a test that must then lose entries.
    pub(super) fn new(file: Arc<dyn StorageBackend>, sync: bool, on_failed_sync: SyncFailed) -> Self {
        Self { file, sync, on_failed_sync, pace: None }
    }

    /// The same, synced after [`PACE_BYTES`] that were written, with a rest if there is time.
    pub(super) fn paced(self, leisure: Arc<Leisure>) -> Self {
        Self { pace: Some((AtomicUsize::new(0), leisure)), ..self }
    }
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").field("file", &self.file).finish_non_exhaustive()
    }
}

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.sync {
            return Ok(());
        }
        self.file.sync_data().inspect_err(|error| (self.on_failed_sync)(error))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)?;
        let Some((unsynced, leisure)) = &self.pace else { return Ok(()) };
        let bytes_max = if leisure.is_hurried() { PACE_BYTES.1 } else { PACE_BYTES.0 };
        if unsynced.fetch_add(data.len(), Ordering::Relaxed) + data.len() >= bytes_max {
            unsynced.store(0, Ordering::Relaxed);
            self.sync_data()?;
            leisure.rest();
        }
        Ok(())
    }
}
