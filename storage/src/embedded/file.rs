//! The file beneath the database: plain reads and writes, and what must happen when one of them fails.
//! **Invariant:** a sync that failed ends the process; the header that makes a batch visible is written after all else of it.

use redb::StorageBackend;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

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

/// The two files of a store.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The pages of the database.
    pub rows: Arc<dyn StorageBackend>,
    /// The journal beneath them.
    pub journal: Arc<dyn StorageBackend>,
}

/// The file on the disk.
#[derive(Debug)]
pub(super) struct DiskFile(File);

impl DiskFile {
    /// Opens the file, or creates it if `create`.
    pub(super) fn open(path: &Path, create: bool) -> io::Result<Self> {
        File::options().read(true).write(true).create(create).truncate(false).open(path).map(Self)
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

/// What the database sees: the file with the rules of this module.
pub(super) struct Guarded {
    file: Arc<dyn StorageBackend>,
    /// The header, if it was written since the last sync. Held back until the sync, so that a disk that fills up
    /// while the pages of a batch are written leaves the header of the batch before in place.
    header: Mutex<Option<Vec<u8>>>,
    sync: bool,
    on_failed_sync: SyncFailed,
}

impl Guarded {
    /// `sync: false` leaves the syncs out and exists for the benchmark and for a test that must then lose entries.
    pub(super) fn new(file: Arc<dyn StorageBackend>, sync: bool, on_failed_sync: SyncFailed) -> Self {
        Self { file, header: Mutex::new(None), sync, on_failed_sync }
    }

    fn write_header(&self) -> io::Result<()> {
        let mut held = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(header) = held.as_deref() {
            self.file.write(0, header)?;
        }
        *held = None;
        Ok(())
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
        self.file.read(offset, out)?;
        let held = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(header) = held.as_deref() {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(header.len());
            let count = out.len().min(header.len() - from);
            out[..count].copy_from_slice(&header[from..from + count]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.write_header()?;
        if !self.sync {
            return Ok(());
        }
        self.file.sync_data().inspect_err(|error| (self.on_failed_sync)(error))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset == 0 {
            *self.header.lock().unwrap_or_else(PoisonError::into_inner) = Some(data.to_vec());
            return Ok(());
        }
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        // What was not synced was not answered: a database that is closed after a failure must not become visible.
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}
