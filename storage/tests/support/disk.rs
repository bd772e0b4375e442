//! A disk in memory that loses power or fills up at a chosen operation.
#![allow(dead_code, reason = "each test binary uses a part")]

use chappe_storage::embedded::Layer;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// The contents of the files of a store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) rows: Vec<u8>,
    pub(crate) journals: [Vec<u8>; 2],
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Rows,
    Journal(usize),
}

impl Image {
    fn of(&mut self, which: Which) -> &mut Vec<u8> {
        match which {
            Which::Rows => &mut self.rows,
            Which::Journal(which) => &mut self.journals[which],
        }
    }

    fn apply(&mut self, which: Which, change: &Change) {
        let file = self.of(which);
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
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Clone)]
struct State {
    /// What the process sees.
    seen: Image,
    /// What the disk surely holds.
    synced: Image,
    /// What it may hold, whole or torn, in any order.
    unsynced: Vec<(Which, Change)>,
    changes: usize,
    syncs: usize,
    cut_at: Option<usize>,
    /// What was on the disk when the power went.
    image: Option<Image>,
    /// Writes from this change on fail, until the space returns.
    full_from: Option<usize>,
    refused: usize,
    rng: SmallRng,
}

/// A disk with the files of a store.
#[derive(Debug)]
pub(crate) struct SimDisk(Mutex<State>);

impl SimDisk {
    /// A disk with these contents.
    pub(crate) fn new(contents: Image, seed: u64) -> Arc<Self> {
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

    /// An empty disk.
    pub(crate) fn empty(seed: u64) -> Arc<Self> {
        Self::new(Image::default(), seed)
    }

    /// The disk as a killed process leaves it: all it wrote is seen, and what it did not sync may yet be lost.
    pub(crate) fn killed(&self) -> Arc<Self> {
        Arc::new(Self(Mutex::new(self.state().clone())))
    }

    /// Its files, as a store opens them.
    pub(crate) fn layer(self: &Arc<Self>) -> Layer {
        let file = |which| Arc::new(SimFile { disk: Arc::clone(self), which });
        Layer { rows: file(Which::Rows), journals: [file(Which::Journal(0)), file(Which::Journal(1))] }
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
    pub(crate) fn image(&self) -> Image {
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

    /// Turns bytes of the pages over, as a failing disk would.
    pub(crate) fn damage_pages(&self, at: impl Iterator<Item = usize>) {
        let mut state = self.state();
        at.for_each(|at| state.seen.rows[at] ^= 0x5a);
    }

    /// Syncs so far.
    pub(crate) fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// What the process sees.
    pub(crate) fn contents(&self) -> Image {
        self.state().seen.clone()
    }
}

impl State {
    fn change(&mut self, which: Which, change: Change) -> io::Result<()> {
        if self.full_from.is_some_and(|from| self.changes >= from) {
            self.refused += 1;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if self.cut_at.is_some_and(|at| self.changes >= at) {
            self.cut();
        }
        self.changes += 1;
        self.seen.apply(which, &change);
        self.unsynced.push((which, change));
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
        for (which, change) in changes {
            if !self.rng.random_bool(kept) {
                continue;
            }
            match change {
                Change::Write(offset, data) if self.rng.random_bool(0.5) => {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        if self.rng.random_bool(0.5) {
                            let write = Change::Write(offset + index * SECTOR, sector.to_vec());
                            image.apply(which, &write);
                        }
                    }
                }
                whole @ (Change::Write(..) | Change::Length(_)) => image.apply(which, &whole),
            }
        }
        self.image = Some(image);
    }
}

/// One file of a disk.
#[derive(Debug)]
struct SimFile {
    disk: Arc<SimDisk>,
    which: Which,
}

impl StorageBackend for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().seen.of(self.which).len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let from = usize::try_from(offset).unwrap();
        let bytes = state.seen.of(self.which).get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.state().change(self.which, Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.cut_at.is_some_and(|at| state.changes >= at) {
            state.cut();
        }
        state.syncs += 1;
        let seen = state.seen.of(self.which).clone();
        *state.synced.of(self.which) = seen;
        state.unsynced.retain(|(which, _)| *which != self.which);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let write = Change::Write(usize::try_from(offset).unwrap(), data.to_vec());
        self.disk.state().change(self.which, write)
    }
}
