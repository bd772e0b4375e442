//! The order of pipelined submits, as a value. **Invariant:** per recipient at most one list is under way; what waits goes
//! next as one ordered list; nothing overtakes an entry whose fate is open.
//!
//! An entry that came back undecided is *owed*: its lane answers `not_attempted` to everything else until that entry comes
//! again, so that a frame which was already on its way cannot slip in before the retry. An owed entry that does not come
//! again within [`OWED_MAX`] is forgotten: its sender gave it up. A connection that would
//! owe more than [`OWED_ENTRIES_MAX`] entries is to be closed: then nothing that is on its way arrives at all.

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::frame::{Submit, SubmitResult, TargetResult};
use chappe_protocol::id::{EnvelopeId, SubmitId, UserId};
use chappe_protocol::internode::{EntryResult, Outcome};
use chappe_protocol::time::{Millis, Time};
use std::collections::{BTreeMap, VecDeque};

/// Entries of one list.
pub(crate) const LIST_ENTRIES_MAX: usize = 64;
/// Payload bytes of one list, except that one entry always goes.
pub(crate) const LIST_BYTES_MAX: usize = 512 * 1024;
/// Entries of one request, over all its lists.
const REQUEST_ENTRIES_MAX: usize = 1024;
/// An owed entry holds its lane for so long.
pub(crate) const OWED_MAX: Millis = Millis::from_secs(60);
/// Owed entries that are remembered, over all lanes: those of a few submits to as many targets as there may be.
const OWED_ENTRIES_MAX: usize = 4096;

/// One envelope on its way.
#[derive(Debug, Clone)]
pub(crate) struct LaneEntry {
    job: u64,
    place: usize,
    pub(crate) submit_id: SubmitId,
    pub(crate) attempt: u32,
    pub(crate) number: u32,
    pub(crate) devices: DeviceFilter,
    pub(crate) device_set_version: Option<u64>,
    pub(crate) payload: Bytes,
    pub(crate) ttl: Millis,
    pub(crate) urgency: Urgency,
}

impl LaneEntry {
    fn key(&self) -> (SubmitId, u32) {
        (self.submit_id, self.number)
    }
}

/// The ordered entries for one recipient.
#[derive(Debug, Clone)]
pub(crate) struct LaneList {
    pub(crate) user: UserId,
    pub(crate) entries: Vec<LaneEntry>,
}

/// Lists that go to a router together; hand it back with their results.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) lists: Vec<LaneList>,
}

/// A submit is answered: its result, its age and what it held.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) result: SubmitResult,
    pub(crate) started: Time,
}

#[derive(Debug)]
struct Job {
    submit_id: SubmitId,
    attempt: u32,
    started: Time,
    results: Vec<Option<TargetResult>>,
    open: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Lane {
    under_way: bool,
    waiting: VecDeque<LaneEntry>,
    /// Undecided entries that were given back, in order.
    owed: VecDeque<(SubmitId, u32)>,
    /// Since when the first of them is.
    owed_since: Time,
}

impl Lane {
    /// Owes one entry more, behind the others; `false`: there is no `room`.
    fn owe(&mut self, now: Time, key: (SubmitId, u32), room: usize) -> bool {
        if self.owed.is_empty() {
            self.owed_since = now;
        }
        let known = self.owed.contains(&key);
        if room > 0 && !known {
            self.owed.push_back(key);
        }
        room > 0 || known
    }

    /// Entries come back undecided that went before everything owed: they are owed first, in this order. With what it owes
    /// already the lane may owe `room` more; `false`: the last ones were forgotten.
    fn owe_first(&mut self, now: Time, keys: &[(SubmitId, u32)], room: usize) -> bool {
        let most = self.owed.len() + room;
        self.owed.retain(|key| !keys.contains(key));
        for key in keys.iter().rev() {
            self.owed.push_front(*key);
        }
        let fits = self.owed.len() <= most;
        self.owed.truncate(most);
        self.owed_since = now;
        fits
    }

    /// Whether the entry may go: nothing is owed, or it is what is owed first.
    fn admits(&mut self, now: Time, entry: &LaneEntry) -> bool {
        self.expire(now);
        match self.owed.front() {
            None => true,
            Some(first) if *first == entry.key() => {
                self.owed.pop_front();
                self.owed_since = now;
                true
            }
            Some(_) => false,
        }
    }

    /// Forgets owed entries that did not come again.
    fn expire(&mut self, now: Time) {
        while !self.owed.is_empty() && now - self.owed_since >= OWED_MAX {
            self.owed.pop_front();
            self.owed_since = self.owed_since + OWED_MAX;
        }
    }

    fn is_idle(&self) -> bool {
        !self.under_way && self.waiting.is_empty() && self.owed.is_empty()
    }
}

/// All submits of one connection that are not answered.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    jobs: BTreeMap<u64, Job>,
    recipients: BTreeMap<UserId, Lane>,
    next_job: u64,
    entries: usize,
    bytes: usize,
    /// Owed entries of all lanes.
    owed: usize,
    /// An entry could not be remembered as owed.
    overflowed: bool,
    finished: VecDeque<Finished>,
}

impl Lanes {
    /// Takes a submit in; its limits were checked.
    pub(crate) fn admit(&mut self, now: Time, submit: Submit) {
        self.next_job += 1;
        let number = self.next_job;
        let bytes = submit.payloads.iter().map(Bytes::len).sum();
        let count = submit.targets.len();
        self.jobs.insert(
            number,
            Job {
                submit_id: submit.submit_id,
                attempt: submit.attempt,
                started: now,
                results: vec![None; count],
                open: count,
                bytes,
            },
        );
        self.entries += count;
        self.bytes += bytes;
        self.make_room(now);
        for (place, target) in submit.targets.into_iter().enumerate() {
            let entry = LaneEntry {
                job: number,
                place,
                submit_id: submit.submit_id,
                attempt: submit.attempt,
                number: target.number,
                devices: target.devices,
                device_set_version: target.device_set_version,
                payload: submit.payloads.get(target.payload).cloned().unwrap_or_default(),
                ttl: submit.ttl,
                urgency: submit.urgency,
            };
            let lane = self.recipients.entry(target.user).or_default();
            let before = lane.owed.len();
            let admitted = lane.admits(now, &entry);
            self.owed = self.owed + lane.owed.len() - before;
            if admitted {
                lane.waiting.push_back(entry);
            } else {
                let before = lane.owed.len();
                self.overflowed |= !lane.owe(now, entry.key(), OWED_ENTRIES_MAX - self.owed);
                self.owed += lane.owed.len() - before;
                self.settle(&entry, Outcome::NotAttempted, None);
            }
        }
        if count == 0 {
            self.finish(number);
        }
    }

    /// Notes a submit that was refused for now: nothing behind it goes before it came again.
    pub(crate) fn owe(&mut self, now: Time, submit: &Submit) {
        self.make_room(now);
        for target in &submit.targets {
            let room = OWED_ENTRIES_MAX - self.owed;
            let lane = self.recipients.entry(target.user.clone()).or_default();
            let before = lane.owed.len();
            self.overflowed |= !lane.owe(now, (submit.submit_id, target.number), room);
            self.owed += lane.owed.len() - before;
        }
    }

    /// The lists that may go now, in one request.
    pub(crate) fn poll_batch(&mut self) -> Option<Batch> {
        let mut lists = Vec::new();
        let mut room = REQUEST_ENTRIES_MAX;
        for (user, lane) in &mut self.recipients {
            if lane.under_way || lane.waiting.is_empty() || room == 0 {
                continue;
            }
            let (mut count, mut bytes) = (0, 0);
            for entry in lane.waiting.iter().take(LIST_ENTRIES_MAX.min(room)) {
                bytes += entry.payload.len();
                if count > 0 && bytes > LIST_BYTES_MAX {
                    break;
                }
                count += 1;
            }
            room -= count;
            lane.under_way = true;
            lists.push(LaneList { user: user.clone(), entries: lane.waiting.drain(..count).collect() });
        }
        (!lists.is_empty()).then_some(Batch { lists })
    }

    /// The fate of a batch: per list one result per entry. What is missing counts as unknown.
    pub(crate) fn on_results(&mut self, now: Time, batch: Batch, results: Vec<Vec<EntryResult>>) {
        self.make_room(now);
        let mut results = results.into_iter();
        for list in batch.lists {
            let mut fates = results.next().unwrap_or_default().into_iter();
            let mut undecided = Vec::new();
            let mut lane = self.recipients.remove(&list.user).unwrap_or_default();
            lane.under_way = false;
            for entry in &list.entries {
                let (outcome, id) = match fates.next() {
                    Some(fate) => (fate.outcome, Some(fate.envelope_id)),
                    None => (Outcome::Unknown, None),
                };
                if !outcome.is_decided() {
                    undecided.push(entry.key());
                }
                self.settle(entry, outcome, id);
            }
            if !undecided.is_empty() {
                for entry in std::mem::take(&mut lane.waiting) {
                    undecided.push(entry.key());
                    self.settle(&entry, Outcome::NotAttempted, None);
                }
                let before = lane.owed.len();
                self.overflowed |= !lane.owe_first(now, &undecided, OWED_ENTRIES_MAX - self.owed);
                self.owed = self.owed + lane.owed.len() - before;
            }
            if !lane.is_idle() {
                self.recipients.insert(list.user, lane);
            }
        }
    }

    /// More is owed than can be remembered: the connection cannot go on without the danger of a wrong order.
    pub(crate) fn owes_too_much(&self) -> bool {
        self.overflowed
    }

    /// Forgets what did not come again in time, if as much is owed as may be.
    fn make_room(&mut self, now: Time) {
        if self.owed < OWED_ENTRIES_MAX {
            return;
        }
        self.owed = 0;
        self.recipients.retain(|_, lane| {
            lane.expire(now);
            self.owed += lane.owed.len();
            !lane.is_idle()
        });
    }

    /// The next submit that is answered in full.
    pub(crate) fn poll_finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Submits that are not answered.
    pub(crate) fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// Their entries.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// Their payload bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing is under way, waits or is owed.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.recipients.is_empty() && self.finished.is_empty()
    }

    fn settle(&mut self, entry: &LaneEntry, outcome: Outcome, id: Option<EnvelopeId>) {
        let Some(job) = self.jobs.get_mut(&entry.job) else { return };
        let Some(place) = job.results.get_mut(entry.place) else { return };
        let envelope_id = id.filter(|_| outcome == Outcome::Accepted);
        *place = Some(TargetResult { number: entry.number, outcome, envelope_id });
        job.open = job.open.saturating_sub(1);
        if job.open == 0 {
            self.finish(entry.job);
        }
    }

    fn finish(&mut self, number: u64) {
        let Some(job) = self.jobs.remove(&number) else { return };
        self.entries -= job.results.len();
        self.bytes -= job.bytes;
        let results = job.results.into_iter().flatten().collect();
        let result = SubmitResult { submit_id: job.submit_id, attempt: job.attempt, results };
        self.finished.push_back(Finished { result, started: job.started });
    }
}

#[cfg(test)]
mod tests;
