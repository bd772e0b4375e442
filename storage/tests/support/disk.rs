//! A disk in memory that loses power or fills up at a chosen operation.
#![allow(dead_code, reason = "each test binary uses a part")]

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug)]
struct State {
    /// What the process sees.
    seen: Vec<u8>,
    /// What the disk surely holds.
    synced: Vec<u8>,
    /// What it may hold, whole or torn, in any order.
    unsynced: Vec<Change>,
    changes: usize,
    syncs: usize,
    cut_at: Option<usize>,
    /// What was on the disk when the power went.
    image: Option<Vec<u8>>,
    /// Writes from this change on fail, until the space returns.
    full_from: Option<usize>,
    refused: usize,
    rng: SmallRng,
}

/// One file on such a disk.
#[derive(Debug)]
pub(crate) struct SimFile(Mutex<State>);

impl SimFile {
    /// A file with these contents.
    pub(crate) fn new(contents: Vec<u8>, seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            seen: contents.clone(),
            synced: contents,
            unsynced: Vec::new(),
            changes: 0,
            syncs: 0,
            cut_at: None,
            image: None,
            full_from: None,
            refused: 0,
            rng: SmallRng::seed_from_u64(seed),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Cuts the power before the change that comes `changes` from now.
    pub(crate) fn cut_after(&self, changes: usize) {
        let mut state = self.state();
        state.cut_at = Some(state.changes + changes);
    }

    /// Whether the power is gone: what the process does now, nobody sees.
    pub(crate) fn is_cut(&self) -> bool {
        self.state().image.is_some()
    }

    /// What the disk holds after the power cut (cuts it now if it is still on).
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut state = self.state();
        state.cut();
        state.image.clone().unwrap()
    }

    /// Fills the disk up after some more changes.
    pub(crate) fn full_after(&self, changes: usize) {
        let mut state = self.state();
        state.full_from = Some(state.changes + changes);
    }

    /// The space returns; the answer says how many writes were refused.
    pub(crate) fn space_returns(&self) -> usize {
        let mut state = self.state();
        state.full_from = None;
        std::mem::take(&mut state.refused)
    }

    /// Syncs so far.
    pub(crate) fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// What the process sees.
    pub(crate) fn contents(&self) -> Vec<u8> {
        self.state().seen.clone()
    }
}

impl State {
    fn change(&mut self, change: Change) -> io::Result<()> {
        if self.full_from.is_some_and(|from| self.changes >= from) {
            self.refused += 1;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if self.cut_at.is_some_and(|at| self.changes >= at) {
            self.cut();
        }
        self.changes += 1;
        apply(&mut self.seen, &change);
        self.unsynced.push(change);
        Ok(())
    }

    /// A subset of what was not synced, in any order, each write whole or torn into sectors.
    fn cut(&mut self) {
        if self.image.is_some() {
            return;
        }
        let mut image = self.synced.clone();
        let mut changes = self.unsynced.clone();
        let ordered = self.rng.random_bool(0.3);
        if !ordered {
            changes.shuffle(&mut self.rng);
        }
        let kept = self.rng.random_range(0.0..=1.0);
        for change in changes {
            if !self.rng.random_bool(kept) {
                continue;
            }
            match change {
                Change::Write(offset, data) if self.rng.random_bool(0.5) => {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        if self.rng.random_bool(0.5) {
                            apply(&mut image, &Change::Write(offset + index * SECTOR, sector.to_vec()));
                        }
                    }
                }
                whole @ (Change::Write(..) | Change::Length(_)) => apply(&mut image, &whole),
            }
        }
        self.image = Some(image);
    }
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => file.resize(*length, 0),
        Change::Write(offset, data) => {
            if file.len() < offset + data.len() {
                file.resize(offset + data.len(), 0);
            }
            file[*offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

impl StorageBackend for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let from = usize::try_from(offset).unwrap();
        let bytes = state.seen.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state().change(Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.cut_at.is_some_and(|at| state.changes >= at) {
            state.cut();
        }
        state.syncs += 1;
        let seen = std::mem::take(&mut state.seen);
        state.synced.clone_from(&seen);
        state.seen = seen;
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.state().change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}
