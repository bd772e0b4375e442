//! The one thread that judges and journals: it takes what waits, applies it in order, journals it with one sync, then answers all.
//! **Invariant:** a caller is told `Ok` after the sync of its batch, `Unavailable` only if its batch is certainly not in the file.

use super::database::{Opened, Opener, Shared, count};
use super::expiry;
use super::journal::Journal;
use super::keys;
use super::memtable::Fill;
use super::pages::Pages;
use super::table::{Failure, Outcome, Tables};
use crate::error::{Result, StoreError};
use bytes::Bytes;
use chappe_protocol::time::{Millis, Time};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How often the committer looks for what has ended while nobody writes; also how long a pending note may wait for a batch.
const IDLE: Duration = Duration::from_secs(1);
/// The same while pages are written, so that it is soon noticed if they cannot be: readers wait for that.
const BUSY: Duration = Duration::from_millis(10);
/// The same as `IDLE` by the world's clock, while there are writes.
const EXPIRY_MS: Millis = Millis(1000);
/// How long a batch waits for the next of the writers that shared the one before.
const GAP: Duration = Duration::from_micros(200);
/// The first and the longest wait of a [`Pace`].
const AGAIN_MS: (u64, u64) = (250, 15_000);

/// A write on its way.
pub(super) trait Work: Send {
    /// Applies it to the running batch. Only a failure of the storage comes back; all else is for the caller.
    fn run(&mut self, tables: &mut Tables<'_>) -> core::result::Result<(), redb::StorageError>;
    /// Answers the caller; `Err` if the batch did not come to pass.
    fn answer(self: Box<Self>, verdict: Result<()>);
}

/// A write by a closure.
pub(super) struct Write<T, F> {
    work: Option<F>,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Write<T, F>
where
    T: Send,
    F: FnOnce(&mut Tables<'_>) -> Outcome<T> + Send,
{
    pub(super) fn new(work: F) -> (Self, oneshot::Receiver<Result<T>>) {
        let (reply, answer) = oneshot::channel();
        (Self { work: Some(work), result: None, reply }, answer)
    }
}

impl<T, F> Work for Write<T, F>
where
    T: Send,
    F: FnOnce(&mut Tables<'_>) -> Outcome<T> + Send,
{
    fn run(&mut self, tables: &mut Tables<'_>) -> core::result::Result<(), redb::StorageError> {
        let Some(work) = self.work.take() else { return Ok(()) };
        self.result = Some(match work(tables) {
            Ok(value) => Ok(value),
            Err(Failure::Storage(error)) => return Err(error),
            Err(Failure::Damaged) => Err(damaged()),
            Err(Failure::Refused(error)) => Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, verdict: Result<()>) {
        let Self { result, reply, .. } = *self;
        let never_ran = || Err(StoreError::Unavailable("the write was not reached".into()));
        let answer = verdict.and_then(|()| result.unwrap_or_else(never_ran));
        // A caller that went away does not want to know.
        let _ = reply.send(answer);
    }
}

/// What a damaged row is to the caller.
pub(super) fn damaged() -> StoreError {
    StoreError::Unavailable("a row in the data directory is damaged".into())
}

/// A write with its share of the queue's bytes, held until it is answered.
pub(super) struct Queued {
    pub(super) work: Box<dyn Work>,
    pub(super) bytes: usize,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// How an attempt ended that did not succeed.
enum Failed {
    /// The journal does not have the batch, and the database is as it was.
    Refused(String),
    /// The journal does not have the batch; the database is of no more use until it is opened again.
    Before(String),
    /// The journal has the batch, and something else went wrong.
    Journaled(String),
}

/// When something that failed is tried again: after 250 ms, doubling to 15 s.
#[derive(Debug, Default)]
pub(super) struct Pace {
    at: Time,
    wait_ms: u64,
}

impl Pace {
    fn may(&self, now: Time) -> bool {
        now >= self.at
    }

    fn failed(&mut self, now: Time) {
        self.wait_ms = (self.wait_ms * 2).clamp(AGAIN_MS.0, AGAIN_MS.1);
        self.at = now + Millis(self.wait_ms);
    }
}

pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) opener: Opener,
    pub(super) pages: Pages,
    /// The last batch that the pages hold for good, and the last that they are to hold.
    pub(super) in_pages: u64,
    pub(super) wanted: u64,
    /// When that was asked for.
    pub(super) wanted_at: Time,
    pub(super) journal: Journal,
    pub(super) journal_bytes_max: u64,
    pub(super) queue: Receiver<Queued>,
    pub(super) batch_writes_max: usize,
    pub(super) batch_bytes_max: usize,
    /// Writes in the batch before.
    pub(super) last_writes: usize,
    /// The number of the last batch that is in the journal or in the pages.
    pub(super) batch: u64,
    /// When to look for what has ended.
    pub(super) expiry_at: Time,
    /// When to try to open the files again.
    pub(super) reopen: Pace,
    /// When to try to write the pages again.
    pub(super) checkpoint: Pace,
}

impl Committer {
    /// Runs until the last sender is gone and all that waited is answered; returns the number of the last batch.
    pub(super) fn run(mut self) -> u64 {
        loop {
            let patience = if self.pages.is_busy() { BUSY } else { IDLE };
            match self.queue.recv_timeout(patience) {
                Ok(first) => self.round(Some(first)),
                Err(RecvTimeoutError::Timeout) => {
                    self.round(None);
                    self.rest();
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if !self.shared.notes().is_empty() {
            self.round(None);
        }
        if self.shared.is_open() && self.in_pages < self.batch {
            self.write_pages(self.shared.world.now());
        }
        if let Err(error) = self.pages.settle() {
            tracing::error!(error, "the pages could not be written: the journal keeps what they lack");
        }
        self.shared.close();
        self.batch
    }

    /// Nobody writes: what was written goes into the pages, so that its memory is free again.
    fn rest(&mut self) {
        let now = self.shared.world.now();
        let worth_it = self.shared.memtables().fill() > Fill::Little && !self.pages.is_busy();
        if worth_it && self.shared.is_open() && self.checkpoint.may(now) {
            self.write_pages(now);
        }
    }

    /// One batch.
    fn round(&mut self, first: Option<Queued>) {
        let mut jobs = Vec::new();
        let mut bytes = 0;
        let mut next = first;
        while let Some(job) = next {
            bytes += job.bytes;
            jobs.push(job);
            let full = jobs.len() >= self.batch_writes_max || bytes >= self.batch_bytes_max;
            next = if full { None } else { self.next_write(jobs.len()) };
        }
        self.last_writes = jobs.len();
        let now = self.shared.world.now();
        if (!self.shared.is_open() && !self.open_again(now)) || !self.has_room(now) {
            answer(jobs, &Err(StoreError::Unavailable("the disk refuses writes".into())));
            return;
        }
        let notes = self.shared.notes().clone();
        let look = now >= self.expiry_at;
        if jobs.is_empty() && notes.is_empty() && !(look && self.is_anything_due()) {
            return;
        }
        let before = self.batch;
        // A panic of the database on damaged pages is a failed batch like any other: the file is opened again and checked.
        let attempt = catch_unwind(AssertUnwindSafe(|| self.attempt(&mut jobs, &notes, look)));
        let verdict = match attempt {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failed)) => self.after_failure(failed, now),
            Err(_) if self.batch == before => {
                self.after_failure(Failed::Before("the database panicked".into()), now)
            }
            Err(_) => self.after_failure(Failed::Journaled("the database panicked".into()), now),
        };
        if verdict.is_ok() {
            self.shared.forget_notes(&notes);
        }
        answer(jobs, &verdict);
        // Behind the answers: whoever waits for pages is not of this batch.
        self.has_room(now);
    }

    /// Whether there is room for another batch; has the pages written if it is time. Waits for them only if nothing else is left.
    fn has_room(&mut self, now: Time) -> bool {
        if self.pages.has_failed() {
            self.write_pages(now);
        }
        let fill = self.shared.memtables().fill();
        let full = fill >= Fill::Full || self.journal.len() >= self.journal_bytes_max / 2;
        let over = fill >= Fill::Over || self.journal.len() >= self.journal_bytes_max;
        if !full {
            return true;
        }
        if self.pages.is_busy() && !over {
            self.pages.hurry();
            return true;
        }
        let may = self.shared.is_open() && self.checkpoint.may(now);
        (may && self.write_pages(now)) || !over
    }

    /// A checkpoint: waits for the one before, has everything that came since taken into the pages, and goes on in the other file
    /// of the journal once that is free. `false`: the one before has failed, and everything was opened again.
    fn write_pages(&mut self, now: Time) -> bool {
        match self.pages.settle() {
            Ok(()) => {
                if self.in_pages < self.wanted {
                    (self.in_pages, self.checkpoint) = (self.wanted, Pace::default());
                }
                self.shared.memtables_mut().freeze();
                self.wanted = self.batch;
                self.wanted_at = now;
                self.pages.write(self.batch);
                self.journal.turn(self.in_pages);
                true
            }
            Err(error) => {
                tracing::error!(error, "the pages could not be written: the journal keeps what they lack");
                // It may have been found out late: what counts is when it was tried.
                self.checkpoint.failed(self.wanted_at);
                self.shared.close();
                self.open_again(now);
                false
            }
        }
    }

    /// The next write of this batch. Those who were answered together come back together: while fewer are here than last
    /// time, a short gap is waited out, so that one sync serves all of them. A lone writer never waits.
    fn next_write(&self, taken: usize) -> Option<Queued> {
        let waiting = self.queue.try_recv().ok();
        if waiting.is_some() || taken >= self.last_writes {
            waiting
        } else {
            self.queue.recv_timeout(GAP).ok()
        }
    }

    fn is_anything_due(&self) -> bool {
        let wall = self.shared.world.wall();
        self.shared.read(|rows| expiry::is_due(rows, wall)).unwrap_or(false)
    }

    /// Applies and commits. Nothing is visible before the commit returned.
    fn attempt(
        &mut self,
        jobs: &mut [Queued],
        notes: &super::database::Notes,
        look: bool,
    ) -> core::result::Result<(), Failed> {
        let before = |error: &dyn std::fmt::Display| Failed::Before(error.to_string());
        let mut more = false;
        let (record, written) = {
            let snapshot = self.shared.snapshot().map_err(|error| before(&error))?;
            let mut tables = Tables::new(snapshot, self.journal.begin(), self.shared.world.wall());
            for job in jobs.iter_mut() {
                job.work.run(&mut tables).map_err(|error| before(&error))?;
            }
            for (minute, mailbox) in notes {
                tables.put(keys::pending(*minute, *mailbox), Bytes::new());
            }
            if look {
                more = match expiry::step(&mut tables) {
                    Ok(more) => more,
                    Err(Failure::Damaged | Failure::Refused(_)) => false,
                    Err(Failure::Storage(error)) => return Err(before(&error)),
                };
            }
            tables.into_changes()
        };
        let journaled = self.journal.append(self.batch + 1, record);
        journaled.map_err(|error| Failed::Refused(error.to_string()))?;
        self.batch += 1;
        self.shared.memtables_mut().commit(written);
        count(&self.shared.counts.batches);
        if look && !more {
            self.expiry_at = self.shared.world.now() + EXPIRY_MS;
        }
        Ok(())
    }

    /// Opens the files again, since after a failed write the database does no more; the batch stands if the journal has it.
    fn after_failure(&mut self, failed: Failed, now: Time) -> Result<()> {
        let (text, journaled) = match failed {
            Failed::Refused(text) => {
                tracing::error!(error = text, "a batch could not be written");
                return Err(StoreError::Unavailable(text));
            }
            Failed::Before(text) => (text, false),
            Failed::Journaled(text) => (text, true),
        };
        tracing::error!(error = text, "a batch could not be written");
        let _ = self.pages.settle();
        self.shared.close();
        self.reopen = Pace::default();
        match (journaled, self.open_again(now)) {
            (true, true) => Ok(()),
            (true, false) => Err(StoreError::Unknown("the disk failed behind the journal".into())),
            (false, _) => Err(StoreError::Unavailable(text)),
        }
    }

    fn open_again(&mut self, now: Time) -> bool {
        if !self.reopen.may(now) {
            return false;
        }
        match catch_unwind(AssertUnwindSafe(|| (self.opener)())) {
            Ok(Ok(Opened { database, batch, in_pages, journal, .. })) if batch >= self.batch => {
                self.batch = batch;
                (self.in_pages, self.wanted) = (in_pages, in_pages);
                self.journal = journal;
                self.shared.set(database);
                self.reopen = Pace::default();
                tracing::warn!("the data file is open again");
                true
            }
            Ok(Ok(_)) => {
                tracing::error!("the data file has lost batches that were answered: ending the process");
                std::process::abort();
            }
            failed => {
                let error = failed.ok().and_then(core::result::Result::err);
                tracing::error!(
                    error = error.map(tracing::field::display),
                    "the data file cannot be opened again yet"
                );
                self.reopen.failed(now);
                false
            }
        }
    }
}

fn answer(jobs: Vec<Queued>, verdict: &Result<()>) {
    for job in jobs {
        job.work.answer(verdict.clone());
    }
}
