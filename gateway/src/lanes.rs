//! The order of pipelined submits, as a value. **Invariant:** per recipient at most one list is under way; what waits goes
//! next as one ordered list; nothing overtakes an entry whose fate is open.
//!
//! An entry that came back undecided is *owed*: its lane answers `not_attempted` to everything else until that entry comes
//! again, so that a frame which was already on its way cannot slip in before the retry. An owed entry that does not come
//! again within [`OWED_MAX`] is forgotten: its sender gave it up.

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
/// Recipients with owed entries; beyond it order is no longer guarded against frames that were already on their way.
const RECIPIENTS_MAX: usize = 4096;
/// Owed entries that a lane remembers.
const OWED_ENTRIES_MAX: usize = 1024;

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
    fn owe(&mut self, now: Time, key: (SubmitId, u32)) {
        if self.owed.is_empty() {
            self.owed_since = now;
        }
        if self.owed.len() < OWED_ENTRIES_MAX && !self.owed.contains(&key) {
            self.owed.push_back(key);
        }
    }

    /// Entries come back undecided that went before everything owed: they are owed first, in this order.
    fn owe_first(&mut self, now: Time, keys: &[(SubmitId, u32)]) {
        self.owed.retain(|key| !keys.contains(key));
        for key in keys.iter().rev() {
            self.owed.push_front(*key);
        }
        self.owed.truncate(OWED_ENTRIES_MAX);
        self.owed_since = now;
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
            if lane.admits(now, &entry) {
                lane.waiting.push_back(entry);
            } else {
                lane.owe(now, entry.key());
                self.settle(&entry, Outcome::NotAttempted, None);
            }
        }
        if count == 0 {
            self.finish(number);
        }
    }

    /// Notes a submit that was refused for now: nothing behind it goes before it came again.
    pub(crate) fn owe(&mut self, now: Time, submit: &Submit) {
        for target in &submit.targets {
            if self.recipients.len() >= RECIPIENTS_MAX {
                self.sweep(now);
            }
            if self.recipients.len() >= RECIPIENTS_MAX && !self.recipients.contains_key(&target.user) {
                return;
            }
            let lane = self.recipients.entry(target.user.clone()).or_default();
            lane.owe(now, (submit.submit_id, target.number));
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
                lane.owe_first(now, &undecided);
            }
            if !lane.is_idle() {
                self.recipients.insert(list.user, lane);
            }
        }
        if self.recipients.len() >= RECIPIENTS_MAX {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Time) {
        self.recipients.retain(|_, lane| {
            lane.expire(now);
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
mod tests {
    use super::*;
    use chappe_protocol::frame::Target;

    fn submit(id: u8, attempt: u32, users: &[&str]) -> Submit {
        let targets = users.iter().zip(0..).map(|(user, number)| Target {
            number,
            user: UserId::new(user).unwrap(),
            devices: DeviceFilter::All,
            device_set_version: None,
            payload: 0,
        });
        Submit {
            submit_id: SubmitId([id; 16]),
            attempt,
            payloads: vec![Bytes::from_static(b"x")],
            targets: targets.collect(),
            ttl: Millis(0),
            urgency: Urgency::Message,
            ephemeral: false,
        }
    }

    fn ids(batch: &Batch) -> Vec<Vec<u8>> {
        batch.lists.iter().map(|list| list.entries.iter().map(|e| e.submit_id.0[0]).collect()).collect()
    }

    fn fates(outcomes: &[Outcome]) -> Vec<EntryResult> {
        let id = EnvelopeId([9; 16]);
        outcomes.iter().map(|o| EntryResult { envelope_id: id, outcome: o.clone() }).collect()
    }

    fn finished(lanes: &mut Lanes) -> Vec<(u8, Vec<Outcome>)> {
        std::iter::from_fn(|| lanes.poll_finished())
            .map(|f| (f.result.submit_id.0[0], f.result.results.into_iter().map(|r| r.outcome).collect()))
            .collect()
    }

    #[test]
    fn what_waits_goes_as_one_ordered_list() {
        let mut lanes = Lanes::default();
        lanes.admit(Time(0), submit(1, 1, &["ben"]));
        let first = lanes.poll_batch().unwrap();
        for id in 2..=4 {
            lanes.admit(Time(0), submit(id, 1, &["ben"]));
        }
        assert!(lanes.poll_batch().is_none(), "one list at a time");
        lanes.on_results(Time(1), first, vec![fates(&[Outcome::Accepted])]);
        let second = lanes.poll_batch().unwrap();
        assert_eq!(ids(&second), vec![vec![2, 3, 4]]);
        lanes.on_results(
            Time(2),
            second,
            vec![fates(&[Outcome::Accepted, Outcome::Quota, Outcome::Accepted])],
        );
        let done = finished(&mut lanes);
        assert_eq!(done.iter().map(|(id, _)| *id).collect::<Vec<_>>(), vec![1, 2, 3, 4]);
        assert!(lanes.is_idle());
        assert_eq!((lanes.entries(), lanes.bytes()), (0, 0));
    }

    #[test]
    fn nothing_overtakes_an_undecided_entry() {
        let mut lanes = Lanes::default();
        lanes.admit(Time(0), submit(1, 1, &["ben"]));
        let batch = lanes.poll_batch().unwrap();
        lanes.admit(Time(0), submit(2, 1, &["ben"]));
        lanes.on_results(Time(1), batch, vec![fates(&[Outcome::Unknown])]);
        let done = finished(&mut lanes);
        assert_eq!(done, vec![(1, vec![Outcome::Unknown]), (2, vec![Outcome::NotAttempted])]);
        // On its way while the answer was: still behind the undecided one.
        lanes.admit(Time(2), submit(3, 1, &["ben"]));
        assert_eq!(finished(&mut lanes), vec![(3, vec![Outcome::NotAttempted])]);
        // Resent in order: 1 goes, a new 4 must wait for 2 and 3.
        lanes.admit(Time(3), submit(1, 2, &["ben"]));
        lanes.admit(Time(3), submit(4, 1, &["ben"]));
        assert_eq!(finished(&mut lanes), vec![(4, vec![Outcome::NotAttempted])]);
        lanes.admit(Time(3), submit(2, 2, &["ben"]));
        lanes.admit(Time(3), submit(3, 2, &["ben"]));
        lanes.admit(Time(3), submit(4, 2, &["ben"]));
        assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![1, 2, 3, 4]]);
    }

    #[test]
    fn an_entry_that_comes_back_again_is_still_first() {
        let mut lanes = Lanes::default();
        for id in 1..=3 {
            lanes.admit(Time(0), submit(id, 1, &["ben"]));
        }
        for attempt in 2..5 {
            let batch = lanes.poll_batch().unwrap();
            let undecided: Vec<_> = ids(&batch)[0].iter().map(|_| Outcome::Unknown).collect();
            lanes.on_results(Time(1), batch, vec![fates(&undecided)]);
            finished(&mut lanes);
            // Whatever of the rest is already on its way again, or comes before it.
            lanes.admit(Time(2), submit(2, attempt, &["ben"]));
            assert_eq!(finished(&mut lanes), vec![(2, vec![Outcome::NotAttempted])]);
            lanes.admit(Time(2), submit(1, attempt, &["ben"]));
        }
        lanes.admit(Time(3), submit(2, 5, &["ben"]));
        lanes.admit(Time(3), submit(3, 5, &["ben"]));
        assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![1, 2, 3]]);
    }

    #[test]
    fn a_refused_submit_is_not_overtaken() {
        let mut lanes = Lanes::default();
        lanes.owe(Time(0), &submit(1, 1, &["ben"]));
        lanes.admit(Time(0), submit(2, 1, &["ben"]));
        lanes.admit(Time(0), submit(3, 1, &["cara"]));
        assert_eq!(finished(&mut lanes), vec![(2, vec![Outcome::NotAttempted])]);
        lanes.admit(Time(1), submit(1, 2, &["ben"]));
        lanes.admit(Time(1), submit(2, 2, &["ben"]));
        assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![1, 2], vec![3]]);
    }

    #[test]
    fn an_owed_entry_that_never_returns_is_forgotten() {
        let mut lanes = Lanes::default();
        lanes.admit(Time(0), submit(1, 1, &["ben"]));
        let batch = lanes.poll_batch().unwrap();
        lanes.on_results(Time(0), batch, Vec::new());
        lanes.admit(Time(OWED_MAX.0 - 1), submit(2, 1, &["ben"]));
        lanes.admit(Time(OWED_MAX.0), submit(2, 2, &["ben"]));
        let done = finished(&mut lanes);
        assert_eq!(done, vec![(1, vec![Outcome::Unknown]), (2, vec![Outcome::NotAttempted])]);
        assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![2]]);
    }

    #[test]
    fn recipients_do_not_wait_for_each_other_and_one_result_holds_all_targets() {
        let mut lanes = Lanes::default();
        lanes.admit(Time(0), submit(1, 1, &["ben"]));
        let slow = lanes.poll_batch().unwrap();
        lanes.admit(Time(0), submit(2, 1, &["ben", "cara"]));
        let other = lanes.poll_batch().unwrap();
        assert_eq!(other.lists.len(), 1);
        assert_eq!(other.lists[0].user, UserId::new("cara").unwrap());
        lanes.on_results(Time(1), other, vec![fates(&[Outcome::NoDevice])]);
        assert!(lanes.poll_finished().is_none(), "ben is still open");
        lanes.on_results(Time(1), slow, vec![fates(&[Outcome::Accepted])]);
        let last = lanes.poll_batch().unwrap();
        lanes.on_results(Time(2), last, vec![fates(&[Outcome::Accepted])]);
        let done = finished(&mut lanes);
        assert_eq!(done[1], (2, vec![Outcome::Accepted, Outcome::NoDevice]));
    }

    #[test]
    fn lists_are_bounded_in_entries_and_bytes() {
        let mut lanes = Lanes::default();
        for id in 0..200 {
            lanes.admit(Time(0), submit(id, 1, &["ben"]));
        }
        assert_eq!(lanes.poll_batch().unwrap().lists[0].entries.len(), LIST_ENTRIES_MAX);
        for id in 0..3 {
            let mut big = submit(id, 1, &["cara"]);
            big.payloads = vec![Bytes::from(vec![0; LIST_BYTES_MAX / 2 + 1])];
            lanes.admit(Time(0), big);
        }
        assert_eq!(lanes.poll_batch().unwrap().lists[0].entries.len(), 1);
    }
}
