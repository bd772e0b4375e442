//! Who waits for which mailbox. **Invariant:** one round per mailbox at a time; a list's entries leave in their order;
//! a mailbox without a round takes no memory.

use crate::Shared;
use crate::append;
use crate::permits::Permit;
use crate::planted::PlantedBug;
use crate::submit::filter_bytes;
use bytes::Bytes;
use chappe_protocol::id::{Bucket, MailboxId};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Time;
use chappe_storage::{Entry, EntryPayload};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

const SHARDS: usize = 16;

/// The waiting lists of all mailboxes.
#[derive(Default)]
pub(crate) struct Rounds {
    shards: [Mutex<HashMap<MailboxId, Queue>>; SHARDS],
}

/// What waits for one mailbox; it exists exactly while its round runs.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    entries: usize,
    bytes: usize,
}

/// An entry on its way into a batch.
pub(crate) struct Planned {
    /// Its index in the list.
    pub(crate) index: usize,
    /// What the store gets.
    pub(crate) entry: Entry,
    /// The payload, also where the entry only refers to it.
    pub(crate) payload: Bytes,
}

/// The entries of one list that passed the checks.
pub(crate) struct Job {
    /// Those that are in no batch yet.
    pub(crate) rest: VecDeque<Planned>,
    /// The list's base.
    pub(crate) base: Option<Bucket>,
    /// No append begins after this.
    pub(crate) deadline: Time,
    /// What is known so far.
    pub(crate) known: JobAnswer,
    /// Who waits for it.
    pub(crate) answer: oneshot::Sender<JobAnswer>,
    /// Its place in the router's queue.
    pub(crate) _permit: Arc<Permit>,
}

/// What became of the entries of a job, by index; a missing one is undecided.
#[derive(Debug, Default)]
pub(crate) struct JobAnswer {
    pub(crate) outcomes: Vec<(usize, Outcome)>,
    pub(crate) head_bucket: Option<Bucket>,
}

/// Entries of several jobs that share one append.
pub(crate) struct Batch {
    /// All entries, part by part.
    pub(crate) entries: Vec<Entry>,
    /// Whose they are.
    pub(crate) parts: Vec<Part>,
}

/// The share of one job in a batch.
pub(crate) struct Part {
    pub(crate) job: Job,
    /// Index and payload of its entries in this batch, in order.
    pub(crate) members: Vec<(usize, Bytes)>,
}

impl Planned {
    /// What waits with it: the payload in its slot, and the names in its filter.
    fn held_bytes(&self) -> usize {
        batch_bytes(&self.entry) + filter_bytes(&self.entry.devices)
    }
}

impl Job {
    /// Answers with what is known; nobody may be listening any more.
    pub(crate) fn finish(self) {
        let _ = self.answer.send(self.known);
    }

    fn bytes(&self) -> usize {
        self.rest.iter().map(Planned::held_bytes).sum()
    }
}

impl Batch {
    /// A head bucket that is old enough for every entry: the smallest base, or none if one has none.
    pub(crate) fn base(&self) -> Option<Bucket> {
        self.parts.iter().map(|part| part.job.base).min().flatten()
    }

    /// When nobody waits for any of it any more.
    pub(crate) fn deadline(&self) -> Time {
        self.parts.iter().map(|part| part.job.deadline).max().unwrap_or_default()
    }

    /// Takes the entries out whose places are not kept, under this outcome; returns the jobs of which nothing is left in
    /// the batch, but something behind it.
    pub(crate) fn leave_out(&mut self, keep: &[bool], outcome: &Outcome) -> Vec<Job> {
        let mut keeps = keep.iter();
        self.entries.retain(|_| keeps.next().is_none_or(|keep| *keep));
        let mut keeps = keep.iter();
        let mut emptied = Vec::new();
        for mut part in std::mem::take(&mut self.parts) {
            let (kept, left): (Vec<_>, Vec<_>) = std::mem::take(&mut part.members)
                .into_iter()
                .partition(|_| keeps.next().is_none_or(|keep| *keep));
            part.job.known.outcomes.extend(left.into_iter().map(|(index, _)| (index, outcome.clone())));
            part.members = kept;
            match (part.members.is_empty(), part.job.rest.is_empty()) {
                (false, _) => self.parts.push(part),
                (true, false) => emptied.push(part.job),
                (true, true) => part.job.finish(),
            }
        }
        emptied
    }

    /// Answers the parts whose time is up and takes their entries out.
    pub(crate) fn drop_expired(&mut self, now: Time) {
        let (mut entries, mut parts) = (Vec::new(), Vec::new());
        let mut all = std::mem::take(&mut self.entries).into_iter();
        for part in std::mem::take(&mut self.parts) {
            let own = all.by_ref().take(part.members.len());
            if part.job.deadline > now {
                entries.extend(own);
                parts.push(part);
            } else {
                own.for_each(drop);
                part.job.finish();
            }
        }
        (self.entries, self.parts) = (entries, parts);
    }
}

/// Payload bytes of an entry within a batch.
fn batch_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Inline(payload) => payload.len(),
        EntryPayload::Ref { .. } => 0,
    }
}

/// Lets a job wait for its mailbox; begins a round if none runs. Gives the job back if too much waits already.
pub(crate) fn enqueue(shared: &Arc<Shared>, mailbox: MailboxId, job: Job) -> Result<(), Job> {
    let config = &shared.config;
    let (entries, bytes) = (job.rest.len(), job.bytes());
    {
        let mut shard = shared.rounds.shard(mailbox);
        if let Some(queue) = shard.get_mut(&mailbox) {
            let fits = |queue: &Queue| {
                queue.entries + entries <= config.mailbox_entries_max
                    && queue.bytes + bytes <= config.mailbox_bytes_max
            };
            if !fits(queue) {
                queue.drop_expired(shared.world.now());
            }
            if !fits(queue) {
                return Err(job);
            }
            queue.push_back(job);
            return Ok(());
        }
        let mut queue = Queue::default();
        queue.push_back(job);
        shard.insert(mailbox, queue);
        shared.metrics.mailboxes.inc();
    }
    let round = Round { shared: Arc::clone(shared), mailbox, ended: false };
    let killed = shared.killed.clone();
    shared.tasks.spawn(async move { killed.run_until_cancelled(round.run()).await });
    Ok(())
}

/// The task that works for one mailbox. Dropped for whatever reason, it takes its queue with it.
struct Round {
    shared: Arc<Shared>,
    mailbox: MailboxId,
    /// The queue went already; if there is one again, it is another round's.
    ended: bool,
}

impl Round {
    async fn run(mut self) {
        let mut unfinished = Vec::new();
        while let Some(batch) = self.next_batch(unfinished) {
            unfinished = append::run(&self.shared, self.mailbox, batch).await;
        }
    }

    /// Puts unfinished jobs back to the front and forms the next batch; `None`: nothing waits and the queue is gone.
    fn next_batch(&mut self, unfinished: Vec<Job>) -> Option<Batch> {
        let mut shard = self.shared.rounds.shard(self.mailbox);
        let queue = shard.get_mut(&self.mailbox)?;
        for job in unfinished.into_iter().rev() {
            queue.push_front(job);
        }
        queue.drop_expired(self.shared.world.now());
        if queue.jobs.is_empty() {
            self.ended = true;
            shard.remove(&self.mailbox);
            self.shared.metrics.mailboxes.dec();
            return None;
        }
        Some(queue.take_batch(&self.shared))
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if !self.ended && self.shared.rounds.shard(self.mailbox).remove(&self.mailbox).is_some() {
            self.shared.metrics.mailboxes.dec();
        }
    }
}

impl Rounds {
    fn shard(&self, mailbox: MailboxId) -> MutexGuard<'_, HashMap<MailboxId, Queue>> {
        let shard = &self.shards[usize::from(mailbox.as_bytes()[15]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push_back(&mut self, job: Job) {
        self.entries += job.rest.len();
        self.bytes += job.bytes();
        self.jobs.push_back(job);
    }

    fn push_front(&mut self, job: Job) {
        self.entries += job.rest.len();
        self.bytes += job.bytes();
        self.jobs.push_front(job);
    }

    fn drop_expired(&mut self, now: Time) {
        if self.jobs.iter().all(|job| job.deadline > now) {
            return;
        }
        for job in std::mem::take(&mut self.jobs) {
            if job.deadline > now {
                self.jobs.push_back(job);
            } else {
                self.entries -= job.rest.len();
                self.bytes -= job.bytes();
                job.finish();
            }
        }
    }

    /// Takes entries from the front, job by job, until the batch is full; what is left of a job stays in front.
    fn take_batch(&mut self, shared: &Shared) -> Batch {
        let config = &shared.config;
        let mut batch = Batch { entries: Vec::new(), parts: Vec::new() };
        let mut bytes = 0;
        while let Some(mut job) = self.jobs.pop_front() {
            let mut members = Vec::new();
            while let Some(planned) = job.rest.front() {
                let own = batch_bytes(&planned.entry);
                let first = batch.entries.is_empty();
                let full =
                    batch.entries.len() >= config.batch_entries_max || bytes + own > config.batch_bytes_max;
                if full && !first {
                    break;
                }
                let Some(planned) = job.rest.pop_front() else { break };
                bytes += own;
                self.entries -= 1;
                self.bytes -= planned.held_bytes();
                members.push((planned.index, planned.payload));
                batch.entries.push(planned.entry);
            }
            if members.is_empty() {
                self.jobs.push_front(job);
                break;
            }
            if config.has_bug(PlantedBug::SwapPair) && members.len() > 1 {
                let start = batch.entries.len() - members.len();
                batch.entries.swap(start, start + 1);
                members.swap(0, 1);
            }
            let full = !job.rest.is_empty();
            if full {
                self.entries -= job.rest.len();
                self.bytes -= job.bytes();
            }
            batch.parts.push(Part { job, members });
            if full {
                break;
            }
        }
        batch
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::{Directory, LocalLinks, Router, RouterConfig, RouterMetrics};
    use chappe_protocol::testing::TestWorld;
    use chappe_protocol::time::Millis;
    use chappe_protocol::world::World;
    use chappe_storage::memory::MemoryRows;
    use chappe_storage::slotlog::{LogConfig, SlotLog};

    fn router() -> Router {
        let world: Arc<dyn World> = Arc::new(TestWorld::new(1));
        let rows = Arc::new(MemoryRows::new(Arc::clone(&world)));
        let store = Arc::new(SlotLog::new(rows, Arc::clone(&world), LogConfig::default()));
        let metrics = Arc::new(RouterMetrics::new(&prometheus::Registry::new()).unwrap());
        let links = Arc::new(LocalLinks::new(Arc::clone(&metrics)));
        let directory = Arc::new(Directory::new(Arc::clone(&world), 10, Arc::clone(&metrics)));
        Router::new(RouterConfig::default(), world, store, links, directory, metrics)
    }

    #[tokio::test]
    async fn a_round_that_ends_leaves_the_queue_of_the_next_one_alone() {
        let router = router();
        let (shared, mailbox) = (&router.shared, MailboxId([1; 16]));
        let mut ending = Round { shared: Arc::clone(shared), mailbox, ended: false };
        shared.rounds.shard(mailbox).insert(mailbox, Queue::default());
        assert!(ending.next_batch(Vec::new()).is_none());
        // On another thread, a job comes before the task of the old round has ended.
        let (answer, _answered) = oneshot::channel();
        let permit = Arc::new(shared.queue.try_take(0, 0).unwrap());
        let deadline = shared.world.now() + Millis(1000);
        let job = Job {
            rest: VecDeque::new(),
            base: None,
            deadline,
            known: JobAnswer::default(),
            answer,
            _permit: permit,
        };
        assert!(enqueue(shared, mailbox, job).is_ok());
        drop(ending);
        assert!(shared.rounds.shard(mailbox).contains_key(&mailbox), "the waiting job is gone");
    }
}
