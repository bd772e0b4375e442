//! The journal beneath the pages: each batch is one record, written in sequence and synced before anyone sees it.
//! **Invariant:** records that were synced stand in a row from the start of the file, numbered without a gap; whatever else
//! the file holds is never taken for one of them.
//!
//! A batch changes many pages in many places; as a record it is one sequential write and one `fdatasync`. The journal has two
//! files: while the batches in one of them go into the pages, the next ones are written to the other, from its start, over the old
//! records. A record:
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
#[derive(Debug, Default)]
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
    files: [Guarded; 2],
    key: Key,
    /// The file that is written to.
    current: usize,
    /// Where the next record goes in it.
    position: u64,
    /// The last batch in each of them.
    last: [u64; 2],
    /// Kept between batches.
    buffer: Vec<u8>,
}

impl Journal {
    pub(super) fn new(files: [Guarded; 2], key: Key) -> Self {
        Self { files, key, current: 0, position: 0, last: [0; 2], buffer: Vec::new() }
    }

    /// Bytes in the present file.
    pub(super) fn len(&self) -> u64 {
        self.position
    }

    /// Goes on in the other file, if everything in it is in the pages, which hold the batches up to `in_pages` for good.
    pub(super) fn turn(&mut self, in_pages: u64) {
        let other = 1 - self.current;
        if self.last[other] <= in_pages {
            (self.current, self.position) = (other, 0);
        }
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
        let file = &self.files[self.current];
        file.write(self.position, &bytes)?;
        file.sync_data()?;
        self.position = (self.position + bytes.len() as u64).next_multiple_of(ALIGN);
        self.last[self.current] = number;
        if bytes.capacity() <= KEPT_MAX {
            self.buffer = bytes;
        }
        Ok(())
    }

    /// Syncs what another process may have left unsynced.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(StorageBackend::sync_data)
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
        let mut firsts = Vec::new();
        for file in 0..self.files.len() {
            if let Some((number, _)) = self.record_at(file, 0)? {
                firsts.push((number, file));
            }
        }
        firsts.sort_unstable();
        let mut reached = batch;
        let mut ends = [0; 2];
        (self.current, self.position, self.last) = (0, 0, [0; 2]);
        for (first, file) in firsts {
            if first > reached + 1 {
                return Err(ReplayError::Damaged(
                    "rows.redb is older than its journal, or a part of that is missing",
                ));
            }
            let mut expected = first;
            while let Some((number, changes)) = self.record_at(file, ends[file])? {
                // Older records are behind the last one.
                if number != expected {
                    break;
                }
                if number > reached {
                    let mut rest = &changes[..];
                    while let Some(change) = next_change(&mut rest) {
                        apply(change).map_err(ReplayError::Rows)?;
                    }
                    (reached, self.current) = (number, file);
                }
                (expected, self.last[file]) = (number + 1, number);
                ends[file] = (ends[file] + (HEAD + changes.len()) as u64).next_multiple_of(ALIGN);
            }
        }
        // A record is written after the one before was synced: whatever is behind a gap was answered, and so was the gap.
        for (file, end) in ends.into_iter().enumerate() {
            self.nothing_behind(file, end, reached)?;
        }
        if reached == batch {
            self.last = [0; 2];
        } else {
            self.position = ends[self.current];
        }
        Ok(reached)
    }

    /// No record of a batch later than `reached` stands here or further behind.
    fn nothing_behind(&self, file: usize, mut at: u64, reached: u64) -> Result<(), ReplayError> {
        let end = self.files[file].len()?;
        while at < end {
            if self.record_at(file, at)?.is_some_and(|(number, _)| number > reached) {
                return Err(ReplayError::Damaged("a batch in the journal is damaged"));
            }
            at += ALIGN;
        }
        Ok(())
    }

    /// The record that begins here, if one does.
    fn record_at(&self, file: usize, at: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
        let file = &self.files[file];
        let end = file.len()?;
        let mut head = [0; HEAD];
        if at + HEAD as u64 > end {
            return Ok(None);
        }
        file.read(at, &mut head)?;
        let number = u64::from_be_bytes(std::array::from_fn(|byte| head[4 + byte]));
        let length = u32::from_be_bytes(std::array::from_fn(|byte| head[12 + byte]));
        let known = head[..4] == MAGIC && head[SAID..SAID + 8] == self.tag(number, &head[..SAID])[..8];
        if !known || at + HEAD as u64 + u64::from(length) > end {
            return Ok(None);
        }
        let mut changes = vec![0; length as usize];
        file.read(at + HEAD as u64, &mut changes)?;
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

    fn journal_of(files: &[Arc<dyn StorageBackend>; 2], key: u8) -> Journal {
        let guarded = |file: &Arc<dyn StorageBackend>| Guarded::new(Arc::clone(file), true, Arc::new(|_| {}));
        Journal::new(files.each_ref().map(guarded), [key; 32])
    }

    fn journal(file: &Arc<dyn StorageBackend>, key: u8) -> Journal {
        journal_of(&[Arc::clone(file), self::file()], key)
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
        assert_eq!(replay(&mut journal, 9).unwrap(), (9, vec![]));
        assert_eq!(journal.len(), 0, "everything is in the pages");
        append(&mut journal, 10, b"new");
        append(&mut journal, 11, b"new");
        assert_eq!(replay(&mut journal, 9).unwrap(), (11, vec![10, 11]));
        assert_eq!(replay(&mut journal, 11).unwrap(), (11, vec![]));
        assert_eq!(journal.len(), 0, "everything is in the pages");
    }

    #[test]
    fn the_files_take_turns_and_only_what_is_in_the_pages_is_written_over() {
        let files = [file(), file()];
        let mut first = journal_of(&files, 1);
        (1..=5).for_each(|number| append(&mut first, number, b"a"));
        first.turn(0);
        (6..=9).for_each(|number| append(&mut first, number, b"b"));
        first.turn(4);
        assert_ne!(first.len(), 0, "batch 5 is not in the pages");
        append(&mut first, 10, b"b");
        first.turn(5);
        assert_eq!(first.len(), 0);
        append(&mut first, 11, b"c");
        let all: Vec<u64> = (6..=11).collect();
        for in_pages in 5..=11 {
            let mut second = journal_of(&files, 1);
            let lacking = all.iter().copied().filter(|number| *number > in_pages).collect();
            assert_eq!(replay(&mut second, in_pages).unwrap(), (11, lacking));
            assert_eq!(second.len(), if in_pages == 11 { 0 } else { ALIGN }, "behind 11");
        }
        assert!(
            matches!(replay(&mut journal_of(&files, 1), 4), Err(ReplayError::Damaged(_))),
            "5 is nowhere"
        );
        // The process that comes next must not turn to the file whose batches are in the journal alone.
        let mut second = journal_of(&files, 1);
        replay(&mut second, 8).unwrap();
        second.turn(8);
        assert_ne!(second.len(), 0);
        append(&mut second, 12, b"d");
        assert_eq!(replay(&mut journal_of(&files, 1), 5).unwrap(), (12, (6..=12).collect()));
    }

    #[test]
    fn a_turn_that_was_torn_is_no_damage_and_a_lost_first_record_is() {
        let files = [file(), file()];
        let mut first = journal_of(&files, 1);
        (1..=5).for_each(|number| append(&mut first, number, b"a"));
        first.turn(0);
        append(&mut first, 6, b"b");
        // The first record of the second file was not written to its end.
        files[1].write(SAID as u64 + 8, &[0xff]).unwrap();
        assert_eq!(replay(&mut journal_of(&files, 1), 0).unwrap(), (5, (1..=5).collect()));
        let mut second = journal_of(&files, 1);
        replay(&mut second, 0).unwrap();
        append(&mut second, 6, b"again");
        assert_eq!(replay(&mut journal_of(&files, 1), 0).unwrap(), (6, (1..=6).collect()));
        // With another behind it, it was answered.
        let mut third = journal_of(&files, 1);
        replay(&mut third, 0).unwrap();
        third.turn(6);
        append(&mut third, 7, b"c");
        append(&mut third, 8, b"c");
        files[1].write(SAID as u64 + 8, &[0xff]).unwrap();
        assert!(matches!(replay(&mut journal_of(&files, 1), 0), Err(ReplayError::Damaged(_))));
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
