//! The store of the one-process product: one file, one writing thread, one sync for all appends that wait.
//! **Invariant:** nothing is answered `Ok` before the sync behind it returned, but for pending notes, whose order is enough.

use chappe_protocol::world::World;
use std::path::Path;
use std::sync::Arc;

/// Bounds of the embedded store.
#[derive(Debug, Clone)]
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
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            queue_bytes_max: 32 << 20,
            batch_writes_max: 1024,
            batch_bytes_max: 8 << 20,
            readers_max: 16,
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

/// The rows of one data directory. Dropping it writes out what waits, closes the file and frees the lock (it blocks for that long).
pub struct EmbeddedRows {}

impl EmbeddedRows {
    /// Opens a data directory, or creates it if it does not exist or is empty. Blocks; call it before the runtime serves.
    pub fn open(path: &Path, world: Arc<dyn World>, config: EmbeddedConfig) -> Result<Self, OpenError> {
        let _ = (path, world, config);
        Err(OpenError::Format("the embedded store is not there yet".into()))
    }
}
