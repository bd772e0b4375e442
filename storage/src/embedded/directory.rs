//! The data directory: `lock`, `format`, `rows.redb`, `journal`, `journal-2`, `closed`.
//! **Invariant:** a directory is used by one process at a time, and only if every file in it belongs to this format.
//!
//! | file | holds |
//! |---|---|
//! | `lock` | nothing; locked while a process has the directory open |
//! | `format` | `creating`, then the format's name; written by rename, last |
//! | `rows.redb` | the rows, the incarnation, the journal's secret and the number of the last batch in it |
//! | `journal`, `journal-2` | the batches that are not in the rows yet, and what is left of older ones; in turns |
//! | `closed` | the number of the last batch when the directory was closed, so that an older file in its place is noticed |

use super::OpenError;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What `format` says.
const FORMAT: &str = "chappe-embedded-3\n";
/// The same with one journal. Opened by us it gets the second one, and the versions that know one refuse it from then on.
const FORMAT_2: &str = "chappe-embedded-2\n";
const CREATING: &str = "creating\n";

/// An open, locked data directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

/// Whether there is something to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Rows of this format.
    Rows,
    /// Nothing, or a creation that was interrupted before anything was answered.
    Empty,
}

impl Directory {
    /// Locks the directory (creating it if needed) and checks what is in it.
    pub(super) fn open(path: &Path) -> Result<(Self, Content), OpenError> {
        fs::create_dir_all(path)?;
        let lock = File::options().write(true).create(true).truncate(false).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let directory = Self { path: path.to_path_buf(), _lock: lock };
        let content = directory.content()?;
        Ok((directory, content))
    }

    fn content(&self) -> Result<Content, OpenError> {
        let rows = self.rows().try_exists()?;
        match self.text("format")?.as_deref() {
            Some(FORMAT | FORMAT_2) if !rows => {
                Err(OpenError::Corrupt("the file rows.redb is missing".into()))
            }
            Some(FORMAT_2) if self.journals()[0].try_exists()? => {
                File::create(&self.journals()[1])?.sync_all()?;
                self.replace("format", FORMAT)?;
                Ok(Content::Rows)
            }
            Some(FORMAT) if self.journals()[0].try_exists()? && self.journals()[1].try_exists()? => {
                Ok(Content::Rows)
            }
            Some(FORMAT | FORMAT_2) => Err(OpenError::Corrupt("a file of the journal is missing".into())),
            Some(CREATING) => Ok(Content::Empty),
            Some(other) => Err(OpenError::Format(format!("the file format says {:?}", other.trim_end()))),
            None if rows => Err(OpenError::Format("there is a rows.redb, but no file format".into())),
            None => Ok(Content::Empty),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>, OpenError> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) if bytes.len() <= 64 => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Ok(_) => Err(OpenError::Format(format!("the file {name} is too long"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where the rows are.
    pub(super) fn rows(&self) -> PathBuf {
        self.path.join("rows.redb")
    }

    /// Where the two files of the journal are.
    pub(super) fn journals(&self) -> [PathBuf; 2] {
        ["journal", "journal-2"].map(|name| self.path.join(name))
    }

    /// Begins a creation: whatever an interrupted one left is removed.
    pub(super) fn begin(&self) -> Result<(), OpenError> {
        self.replace("format", CREATING)?;
        let [first, second] = self.journals();
        for left in [self.rows(), first, second] {
            match fs::remove_file(left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends a creation: the rows are there and synced.
    pub(super) fn created(&self) -> Result<(), OpenError> {
        File::open(&self.path)?.sync_all()?;
        Ok(self.replace("format", FORMAT)?)
    }

    /// The number of the last batch at the last orderly close.
    pub(super) fn closed(&self) -> Result<Option<u64>, OpenError> {
        let Some(text) = self.text("closed")? else { return Ok(None) };
        match text.trim_end().parse() {
            Ok(batch) => Ok(Some(batch)),
            Err(_) => Err(OpenError::Corrupt("the file closed holds no number".into())),
        }
    }

    /// Notes an orderly close.
    pub(super) fn close(&self, batch: u64) -> io::Result<()> {
        self.replace("closed", &format!("{batch}\n"))
    }

    /// Replaces a small file so that a crash leaves the old one or the new one.
    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let fresh = self.path.join(format!("{name}.new"));
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }
}
