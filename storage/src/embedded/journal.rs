//! The journal beneath the pages: each batch is one record, written in sequence and synced before anyone sees it.
//! **Invariant:** records that were synced stand in a row from the start of the file, numbered without a gap; whatever else
//! the file holds is never taken for one of them.
//!
//! A batch changes many pages in many places; as a record it is one sequential write and one `fdatasync`. The pages follow
//! in a checkpoint, after which the journal begins at the start of its file again, over the old records. A record:
//!
//! | bytes | holds |
//! |--:|---|
//! | 4 | `CHJ` and the version |
//! | 8 | the batch's number |
//! | 4 | the length of the changes |
//! | 8 | tag of the 16 bytes before |
//! | 16 | tag of the changes |
//! | | the changes: put, remove, remove a range |
//!
//! Records begin at multiples of [`ALIGN`], so that no write touches a sector that holds an answered record. A tag is a cut
//! SHA-256 over a secret of the data directory, the number and the bytes: the file holds bytes chosen by users, also left over
//! from old records, and none of them can be read as a record or as the beginning of one.

use super::file::Guarded;
use redb::StorageBackend;
use sha2::{Digest, Sha256};
use std::io;

/// Where records may begin.
const ALIGN: u64 = 4096;
const MAGIC: [u8; 4] = *b"CHJ\x01";
const SAID: usize = 16;
const HEAD: usize = SAID + 8 + 16;
/// A record is never longer; the committer's batches are far below.
const RECORD_MAX: usize = 1 << 30;
/// What a record's buffer may keep between batches.
const KEPT_MAX: usize = 1 << 20;

/// The secret under the tags.
pub(super) type Key = [u8; 32];

/// One change of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change<'a> {
    Put(&'a [u8], &'a [u8]),
    Remove(&'a [u8]),
    /// From (inclusive) to (exclusive).
    RemoveRange(&'a [u8], &'a [u8]),
}

/// The changes of the running batch.
#[derive(Debug)]
pub(super) struct Record(Vec<u8>);

impl Record {
    pub(super) fn push(&mut self, change: Change<'_>) {
        let (kind, first, second): (u8, &[u8], &[u8]) = match change {
            Change::Put(key, value) => (0, key, value),
            Change::Remove(key) => (1, key, &[]),
            Change::RemoveRange(from, to) => (2, from, to),
        };
        self.0.push(kind);
        for part in [first, second] {
            // Bounded by the size of a batch.
            self.0.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            self.0.extend_from_slice(part);
        }
    }
}

/// Reads a record's changes; `None` behind the last, or for what no [`Record`] holds.
fn next_change<'a>(changes: &mut &'a [u8]) -> Option<Change<'a>> {
    let (kind, rest) = changes.split_first()?;
    let (first, rest) = part(rest)?;
    let (second, rest) = part(rest)?;
    *changes = rest;
    match kind {
        0 => Some(Change::Put(first, second)),
        1 => Some(Change::Remove(first)),
        2 => Some(Change::RemoveRange(first, second)),
        _ => None,
    }
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// Why a journal cannot be replayed.
#[derive(Debug)]
pub(super) enum ReplayError {
    /// The journal is not what was written, or not of these pages.
    Damaged(&'static str),
    Io(io::Error),
    Rows(redb::StorageError),
}

impl From<io::Error> for ReplayError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An open journal.
pub(super) struct Journal {
    file: Guarded,
    key: Key,
    /// Where the next record goes.
    position: u64,
    /// Kept between batches.
    buffer: Vec<u8>,
}

impl Journal {
    pub(super) fn new(file: Guarded, key: Key) -> Self {
        Self { file, key, position: 0, buffer: Vec::new() }
    }

    /// Bytes from the start to the next record.
    pub(super) fn len(&self) -> u64 {
        self.position
    }

    /// All records are in the pages, and the pages are synced.
    pub(super) fn restart(&mut self) {
        self.position = 0;
    }

    /// An empty record.
    pub(super) fn begin(&mut self) -> Record {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(HEAD, 0);
        Record(buffer)
    }

    /// Writes and syncs a record. After an error the record is not in the journal: it was not written to its end.
    pub(super) fn append(&mut self, number: u64, record: Record) -> io::Result<()> {
        let mut bytes = record.0;
        let length = u32::try_from(bytes.len() - HEAD).ok().filter(|length| *length as usize <= RECORD_MAX);
        let length = length.ok_or(io::ErrorKind::FileTooLarge)?;
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&number.to_be_bytes());
        bytes[12..16].copy_from_slice(&length.to_be_bytes());
        let tag = self.tag(number, &bytes[HEAD..]);
        bytes[SAID + 8..HEAD].copy_from_slice(&tag);
        let tag = self.tag(number, &bytes[..SAID]);
        bytes[SAID..SAID + 8].copy_from_slice(&tag[..8]);
        self.file.write(self.position, &bytes)?;
        self.file.sync_data()?;
        self.position = (self.position + bytes.len() as u64).next_multiple_of(ALIGN);
        if bytes.capacity() <= KEPT_MAX {
            self.buffer = bytes;
        }
        Ok(())
    }

    /// Syncs what another process may have left unsynced.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn tag(&self, number: u64, bytes: &[u8]) -> [u8; 16] {
        let digest = Sha256::new().chain_update(self.key).chain_update(number.to_be_bytes());
        let digest = digest.chain_update(bytes).finalize();
        std::array::from_fn(|at| digest[at])
    }

    /// Gives the changes of all batches behind `batch` to `apply`, in order; returns the number of the last batch that pages
    /// and journal hold together. The next record goes behind them.
    pub(super) fn replay(
        &mut self,
        batch: u64,
        mut apply: impl FnMut(Change<'_>) -> Result<(), redb::StorageError>,
    ) -> Result<u64, ReplayError> {
        let end = self.file.len()?;
        let mut last = None;
        self.position = 0;
        while let Some((number, changes)) = self.record_at(self.position, end)? {
            match last {
                None if number > batch + 1 => {
                    return Err(ReplayError::Damaged("rows.redb is older than its journal"));
                }
                Some(last) if number != last + 1 => break,
                None | Some(_) => last = Some(number),
            }
            if number > batch {
                let mut rest = &changes[..];
                while let Some(change) = next_change(&mut rest) {
                    apply(change).map_err(ReplayError::Rows)?;
                }
            }
            self.position = (self.position + (HEAD + changes.len()) as u64).next_multiple_of(ALIGN);
        }
        let last = last.unwrap_or_default().max(batch);
        // A record is written after the one before was synced: whatever is behind a gap was answered, and so was the gap.
        let mut at = self.position;
        while at < end {
            if self.record_at(at, end)?.is_some_and(|(number, _)| number > last) {
                return Err(ReplayError::Damaged("a batch in the journal is damaged"));
            }
            at += ALIGN;
        }
        if last == batch {
            self.position = 0;
        }
        Ok(last)
    }

    /// The record that begins here, if one does.
    fn record_at(&self, at: u64, end: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut head = [0; HEAD];
        if at + HEAD as u64 > end {
            return Ok(None);
        }
        self.file.read(at, &mut head)?;
        let number = u64::from_be_bytes(std::array::from_fn(|byte| head[4 + byte]));
        let length = u32::from_be_bytes(std::array::from_fn(|byte| head[12 + byte]));
        let known = head[..4] == MAGIC && head[SAID..SAID + 8] == self.tag(number, &head[..SAID])[..8];
        if !known || at + HEAD as u64 + u64::from(length) > end {
            return Ok(None);
        }
        let mut changes = vec![0; length as usize];
        self.file.read(at + HEAD as u64, &mut changes)?;
        Ok((head[SAID + 8..] == self.tag(number, &changes)).then_some((number, changes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::file::DiskFile;
    use std::sync::Arc;

    fn file() -> Arc<dyn StorageBackend> {
        // The path goes, the file stays for as long as it is open.
        Arc::new(DiskFile::open(&tempfile::NamedTempFile::new().unwrap().into_temp_path(), true).unwrap())
    }

    fn journal(file: &Arc<dyn StorageBackend>, key: u8) -> Journal {
        Journal::new(Guarded::new(Arc::clone(file), true, Arc::new(|_| {})), [key; 32])
    }

    fn append(journal: &mut Journal, number: u64, value: &[u8]) {
        let mut record = journal.begin();
        record.push(Change::Put(&number.to_be_bytes(), value));
        record.push(Change::Remove(b"gone"));
        record.push(Change::RemoveRange(b"from", b"to"));
        journal.append(number, record).unwrap();
    }

    /// The last batch, and the numbers of the batches that were applied.
    fn replay(journal: &mut Journal, batch: u64) -> Result<(u64, Vec<u64>), ReplayError> {
        let mut applied = Vec::new();
        let last = journal.replay(batch, |change| {
            match change {
                Change::Put(key, _) => applied.push(u64::from_be_bytes(key.try_into().unwrap())),
                Change::Remove(key) => assert_eq!(key, b"gone"),
                Change::RemoveRange(from, to) => assert_eq!((from, to), (&b"from"[..], &b"to"[..])),
            }
            Ok(())
        })?;
        Ok((last, applied))
    }

    #[test]
    fn what_the_pages_lack_is_applied_and_the_next_record_goes_behind_it() {
        let file = file();
        let mut first = journal(&file, 1);
        (8..=11).for_each(|number| append(&mut first, number, &[0; 5000]));
        assert_eq!(replay(&mut journal(&file, 1), 7).unwrap(), (11, vec![8, 9, 10, 11]));
        let mut second = journal(&file, 1);
        assert_eq!(replay(&mut second, 9).unwrap(), (11, vec![10, 11]));
        assert_eq!(second.len(), first.len());
        append(&mut second, 12, b"next");
        assert_eq!(replay(&mut journal(&file, 1), 9).unwrap(), (12, vec![10, 11, 12]));
    }

    #[test]
    fn old_records_behind_new_ones_are_over() {
        let file = file();
        let mut journal = journal(&file, 1);
        (2..=9).for_each(|number| append(&mut journal, number, b"old"));
        journal.restart();
        append(&mut journal, 10, b"new");
        append(&mut journal, 11, b"new");
        assert_eq!(replay(&mut journal, 9).unwrap(), (11, vec![10, 11]));
        assert_eq!(replay(&mut journal, 11).unwrap(), (11, vec![]));
        assert_eq!(journal.len(), 0, "everything is in the pages");
    }

    #[test]
    fn pages_older_than_the_journal_and_a_gap_in_it_are_told() {
        let file = file();
        let mut journal = journal(&file, 1);
        (5..=8).for_each(|number| append(&mut journal, number, b"x"));
        assert!(matches!(replay(&mut journal, 3), Err(ReplayError::Damaged(_))));
        file.write(ALIGN + 50, &[0xff]).unwrap();
        assert!(matches!(replay(&mut journal, 4), Err(ReplayError::Damaged(_))));
        assert_eq!(replay(&mut journal, 8).unwrap(), (8, vec![]), "nothing is missing");
    }

    #[test]
    fn what_users_write_is_not_read_as_a_record() {
        // A user who knows the format, but not the secret, sends records as payloads, so that they lie where records begin.
        let forged = self::file();
        append(&mut journal(&forged, 2), 3, b"forged");
        let mut bytes = vec![0; usize::try_from(forged.len().unwrap()).unwrap()];
        forged.read(0, &mut bytes).unwrap();
        let file = file();
        let mut ours = journal(&file, 1);
        append(&mut ours, 2, b"ours");
        file.write(ALIGN, &bytes).unwrap();
        assert_eq!(replay(&mut ours, 1).unwrap(), (2, vec![2]));
    }
}
