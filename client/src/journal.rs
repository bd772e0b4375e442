//! An append-only file of checked records. **Invariant:** after a crash at any byte, opening it yields a prefix of what
//! was appended that holds everything committed; a failed sync is never retried.

use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Length (4 bytes, little-endian) and checksum stand before each record.
const HEAD_BYTES: usize = 12;
/// A length beyond this is damage.
const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A file below this size is not worth rewriting.
const COMPACT_MIN_BYTES: u64 = 256 * 1024;

/// See the module.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Appended and not yet written.
    buffer: Vec<u8>,
    file_bytes: u64,
    /// Size after the last rewrite: the file may double before the next.
    base_bytes: u64,
    /// A write or a sync has failed: what the file holds is not known, and nothing more is written to it.
    failed: bool,
}

impl Journal {
    /// Opens or makes the file; cuts off a torn tail. Returns the whole records, oldest first.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Vec<Vec<u8>>)> {
        let mut file = private().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (records, good) = parse(&bytes);
        if good < bytes.len() {
            file.set_len(good as u64)?;
        }
        file.seek(SeekFrom::Start(good as u64))?;
        file.sync_all()?;
        sync_directory(path)?;
        let file_bytes = good as u64;
        Ok((
            Self {
                path: path.to_owned(),
                file,
                buffer: Vec::new(),
                file_bytes,
                base_bytes: file_bytes,
                failed: false,
            },
            records,
        ))
    }

    /// Adds a record; durable after the next [`Journal::commit`].
    pub(crate) fn append(&mut self, record: &[u8]) {
        frame(&mut self.buffer, record);
    }

    /// Writes and syncs what was appended.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.begin()?;
        self.file.write_all(&self.buffer)?;
        self.file.sync_data()?;
        self.failed = false;
        self.file_bytes += self.buffer.len() as u64;
        self.buffer = Vec::new();
        Ok(())
    }

    /// Whether most of the file may be history.
    pub(crate) fn wants_rewrite(&self) -> bool {
        self.file_bytes > COMPACT_MIN_BYTES.max(self.base_bytes.saturating_mul(2))
    }

    /// Replaces the file by one that holds only these records, all or nothing.
    pub(crate) fn rewrite(&mut self, records: &[Vec<u8>]) -> io::Result<()> {
        self.begin()?;
        let mut bytes = Vec::new();
        for record in records {
            frame(&mut bytes, record);
        }
        let beside = self.path.with_extension("new");
        let mut file = private().write(true).create(true).truncate(true).open(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        sync_directory(&self.path)?;
        self.file = file;
        self.buffer.clear();
        self.file_bytes = bytes.len() as u64;
        self.base_bytes = self.file_bytes;
        self.failed = false;
        Ok(())
    }

    /// Failed until it has succeeded.
    fn begin(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(io::Error::other("an earlier write to this file has failed"));
        }
        Ok(())
    }
}

fn frame(out: &mut Vec<u8>, record: &[u8]) {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(&length, record));
    out.extend_from_slice(record);
}

/// The whole records and where they end.
fn parse(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some((head, rest)) = bytes.get(at..).and_then(|rest| rest.split_at_checked(HEAD_BYTES)) {
        let (length, sum) = head.split_at(4);
        let count = length.try_into().map_or(usize::MAX, |four| u32::from_le_bytes(four) as usize);
        let Some(record) = rest.get(..count).filter(|_| count <= RECORD_BYTES_MAX) else { break };
        if checksum(length, record) != *sum {
            break;
        }
        records.push(record.to_vec());
        at += HEAD_BYTES + count;
    }
    (records, at)
}

/// 64 bits of SHA-256 over length and record.
fn checksum(length: &[u8], record: &[u8]) -> [u8; 8] {
    let digest = Sha256::new().chain_update(length).chain_update(record).finalize();
    let mut sum = [0; 8];
    sum.copy_from_slice(&digest[..8]);
    sum
}

/// Readable by its owner only.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A new name is durable once its directory is synced.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) if cfg!(unix) => File::open(directory)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(path: &Path) -> Vec<Vec<u8>> {
        Journal::open(path).unwrap().1
    }

    #[test]
    fn a_failed_write_is_never_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut journal, _) = Journal::open(&path).unwrap();
        let good = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
        journal.append(b"one");
        assert!(journal.commit().is_err(), "the file cannot be written");
        journal.file = good;
        assert!(journal.commit().is_err());
        assert!(journal.rewrite(&[b"two".to_vec()]).is_err());
        assert!(records(&path).is_empty());
    }

    #[test]
    fn a_file_cut_at_any_byte_yields_the_whole_records_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let wrote: Vec<Vec<u8>> = vec![b"one".to_vec(), Vec::new(), vec![7; 300], b"four".to_vec()];
        let mut ends = vec![0];
        let (mut journal, _) = Journal::open(&path).unwrap();
        for record in &wrote {
            journal.append(record);
            journal.commit().unwrap();
            ends.push(usize::try_from(journal.file_bytes).unwrap());
        }
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let want = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(records(&path), wrote[..want], "cut at {cut}");
            // What is appended after the cut is readable too.
            let (mut journal, _) = Journal::open(&path).unwrap();
            journal.append(b"after");
            journal.commit().unwrap();
            assert_eq!(records(&path).last().unwrap(), b"after", "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_log_and_invents_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(b"one");
        journal.append(b"two");
        journal.commit().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let got = records(&path);
            assert!(got.len() < 2 && got.iter().all(|record| record == b"one"), "byte {at}: {got:?}");
        }
    }

    #[test]
    fn a_rewrite_replaces_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut journal, _) = Journal::open(&path).unwrap();
        for _ in 0..40 {
            journal.append(&[1; 10_000]);
        }
        journal.commit().unwrap();
        assert!(journal.wants_rewrite());
        journal.rewrite(&[b"kept".to_vec()]).unwrap();
        assert!(!journal.wants_rewrite());
        journal.append(b"next");
        journal.commit().unwrap();
        assert_eq!(records(&path), [b"kept".to_vec(), b"next".to_vec()]);
    }
}
