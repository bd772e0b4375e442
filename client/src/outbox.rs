//! What was submitted and is not decided, in order. **Invariant:** an envelope is on its way to a recipient only while
//! every earlier one of this device to the same recipient is decided or on its way before it.

use crate::error::ClientError;
use crate::outgoing::{Receipt, TargetReceipt};
use crate::reconnect::submit_backoff;
use chappe_protocol::close::ErrorFrame;
use chappe_protocol::frame::{Submit, SubmitResult, Target, TargetResult};
use chappe_protocol::id::{SubmitId, UserId};
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Submits of one device. Bounded by whoever inserts.
pub struct Outbox {
    lane_depth: usize,
    entries: BTreeMap<u64, Entry>,
    by_id: BTreeMap<SubmitId, u64>,
    /// Per recipient the undecided targets in order: (entry, number).
    lanes: BTreeMap<UserId, VecDeque<(u64, u32)>>,
    /// Entries that may have something to send.
    ready: BTreeSet<u64>,
    /// Entries that wait out a backoff.
    waiting: BTreeSet<(Time, u64)>,
    /// When entries are given up.
    deadlines: BTreeSet<(Time, u64)>,
    /// Frames sent and not answered on this connection.
    frames: BTreeMap<(SubmitId, u32), Flight>,
    /// Decided, to be told.
    finished: Vec<(u64, Result<Receipt, ClientError>)>,
}

struct Flight {
    sent_at: Time,
    numbers: Vec<u32>,
}

struct Entry {
    submit: Submit,
    /// Transmissions so far.
    attempts: u32,
    not_before: Time,
    deadline: Time,
    targets: BTreeMap<u32, TargetState>,
}

enum TargetState {
    Waiting,
    InFlight,
    Decided(TargetResult),
}

impl Outbox {
    /// At most `lane_depth` submits to one recipient are on their way at a time; at least 1.
    pub fn new(lane_depth: usize) -> Self {
        Self {
            lane_depth,
            entries: BTreeMap::new(),
            by_id: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            frames: BTreeMap::new(),
            finished: Vec::new(),
        }
    }

    /// Takes a submit; `order` grows. `attempts` > 0: it may have been transmitted before.
    pub fn insert(&mut self, order: u64, submit: Submit, attempts: u32, deadline: Time) {
        let mut targets = BTreeMap::new();
        for target in &submit.targets {
            self.lanes.entry(target.user.clone()).or_default().push_back((order, target.number));
            targets.insert(target.number, TargetState::Waiting);
        }
        self.by_id.insert(submit.submit_id, order);
        self.deadlines.insert((deadline, order));
        self.entries.insert(order, Entry { submit, attempts, not_before: Time(0), deadline, targets });
        self.ready.insert(order);
    }

    /// Whether everything is decided.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Submits that are not decided.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The next frame to transmit, if fewer than `in_flight_max` are unanswered.
    pub fn poll_send(&mut self, now: Time, in_flight_max: usize) -> Option<Submit> {
        if self.frames.len() >= in_flight_max.max(1) {
            return None;
        }
        self.end_waits(now);
        while let Some(order) = self.ready.pop_first() {
            let numbers = self.sendable(order, now);
            if !numbers.is_empty() {
                return self.transmit(order, numbers, now);
            }
        }
        None
    }

    /// Whether `poll_send` may have something, and when to ask again.
    pub fn wants(&self, now: Time, in_flight_max: usize) -> bool {
        let due = self.waiting.first().is_some_and(|(at, _)| *at <= now);
        self.frames.len() < in_flight_max.max(1) && (due || !self.ready.is_empty())
    }

    /// The next time at which something happens by itself.
    pub fn next_time(&self) -> Option<Time> {
        let waiting = self.waiting.first().map(|(at, _)| *at);
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        [waiting, deadline].into_iter().flatten().min()
    }

    /// When the oldest unanswered frame was sent.
    pub fn oldest_flight(&self) -> Option<Time> {
        self.frames.values().map(|flight| flight.sent_at).min()
    }

    /// The answer to a frame.
    pub fn on_result(&mut self, now: Time, result: SubmitResult, world: &dyn World) {
        let Some(flight) = self.frames.remove(&(result.submit_id, result.attempt)) else { return };
        let Some(order) = self.by_id.get(&result.submit_id).copied() else { return };
        let Some(entry) = self.entries.get_mut(&order) else { return };
        let mut retry = false;
        for number in &flight.numbers {
            entry.targets.insert(*number, TargetState::Waiting);
        }
        for result in result.results {
            if !flight.numbers.contains(&result.number) {
                continue;
            }
            if result.outcome.is_decided() {
                entry.targets.insert(result.number, TargetState::Decided(result));
            } else if result.outcome != chappe_protocol::internode::Outcome::NotAttempted {
                retry = true;
            }
        }
        // What is kept back though nothing of ours goes before it would be sent again at once, and again.
        let waits = |number: &u32| matches!(entry.targets.get(number), Some(TargetState::Waiting));
        retry |=
            flight.numbers.iter().any(|number| waits(number) && leads(&self.lanes, entry, order, *number));
        if retry {
            entry.not_before = now + submit_backoff(entry.attempts, world);
        }
        self.settle(order, &flight.numbers);
    }

    /// The server refused a submit as a whole.
    pub fn on_refused(&mut self, now: Time, submit_id: SubmitId, error: &ErrorFrame, world: &dyn World) {
        let Some(order) = self.by_id.get(&submit_id).copied() else { return };
        let Some(entry) = self.entries.get_mut(&order) else { return };
        if !error.retryable {
            let refused = ClientError::Refused {
                code: error.code.clone(),
                message: error.message.clone(),
                retryable: false,
            };
            self.finish(order, Err(refused));
            return;
        }
        entry.not_before =
            now + Millis(u64::from(error.retry_after_ms)) + submit_backoff(entry.attempts, world);
        let range = (submit_id, 0)..=(submit_id, u32::MAX);
        let attempts: Vec<u32> = self.frames.range(range).map(|((_, attempt), _)| *attempt).collect();
        for attempt in attempts {
            if let Some(flight) = self.frames.remove(&(submit_id, attempt)) {
                self.land(order, &flight.numbers);
            }
        }
    }

    /// The connection is gone: what was on its way is undecided.
    pub fn on_disconnect(&mut self) {
        for ((submit_id, _), flight) in std::mem::take(&mut self.frames) {
            if let Some(order) = self.by_id.get(&submit_id).copied() {
                self.land(order, &flight.numbers);
            }
        }
        self.ready = self.entries.keys().copied().collect();
        self.waiting.clear();
    }

    /// Ends backoffs, and gives up what is too old. Afterwards [`Outbox::next_time`] lies ahead, even when nothing may be
    /// sent for now because too much is unanswered.
    pub fn on_time(&mut self, now: Time) {
        self.end_waits(now);
        while let Some((_, order)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.finish(order, Err(ClientError::GaveUp));
        }
    }

    fn end_waits(&mut self, now: Time) {
        while let Some((at, order)) = self.waiting.first().copied().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, order));
            self.ready.insert(order);
        }
    }

    /// Takes what was decided since the last call.
    pub fn take_finished(&mut self) -> Vec<(u64, Result<Receipt, ClientError>)> {
        std::mem::take(&mut self.finished)
    }

    /// The numbers of an entry that may go now. An entry that has none is looked at again when its lanes move.
    fn sendable(&mut self, order: u64, now: Time) -> Vec<u32> {
        let Some(entry) = self.entries.get(&order) else { return Vec::new() };
        if entry.not_before > now {
            self.waiting.insert((entry.not_before, order));
            return Vec::new();
        }
        let waiting =
            |target: &&Target| matches!(entry.targets.get(&target.number), Some(TargetState::Waiting));
        let free = |target: &&Target| self.lane_is_free(&target.user, order);
        entry.submit.targets.iter().filter(waiting).filter(free).map(|target| target.number).collect()
    }

    /// Whether everything before `order` in the recipient's lane is on its way, and the lane has room for one more.
    fn lane_is_free(&self, user: &UserId, order: u64) -> bool {
        let Some(lane) = self.lanes.get(user) else { return false };
        let mut ahead = 0;
        let mut last = None;
        for (earlier, number) in lane {
            if *earlier == order {
                return true;
            }
            let state = self.entries.get(earlier).and_then(|entry| entry.targets.get(number));
            if !matches!(state, Some(TargetState::InFlight)) {
                return false;
            }
            if last.replace(*earlier) != Some(*earlier) {
                ahead += 1;
            }
            if ahead >= self.lane_depth {
                return false;
            }
        }
        false
    }

    fn transmit(&mut self, order: u64, numbers: Vec<u32>, now: Time) -> Option<Submit> {
        let entry = self.entries.get_mut(&order)?;
        entry.attempts = entry.attempts.saturating_add(1);
        for number in &numbers {
            entry.targets.insert(*number, TargetState::InFlight);
        }
        let mut frame = Submit { attempt: entry.attempts, ..entry.submit.clone() };
        frame.targets.retain(|target| numbers.contains(&target.number));
        compact_payloads(&mut frame);
        let followers: Vec<u64> = frame
            .targets
            .iter()
            .flat_map(|target| self.lane_front(&target.user))
            .filter(|next| *next != order)
            .collect();
        self.ready.extend(followers);
        self.frames.insert((frame.submit_id, frame.attempt), Flight { sent_at: now, numbers });
        Some(frame)
    }

    /// The entries at the front of a lane, as deep as it may be filled.
    fn lane_front(&self, user: &UserId) -> Vec<u64> {
        let lane = self.lanes.get(user);
        let mut front: Vec<u64> = Vec::new();
        for (order, _) in lane.into_iter().flatten() {
            if front.last() != Some(order) {
                if front.len() >= self.lane_depth {
                    break;
                }
                front.push(*order);
            }
        }
        front
    }

    /// What was in flight waits again.
    fn land(&mut self, order: u64, numbers: &[u32]) {
        if let Some(entry) = self.entries.get_mut(&order) {
            for number in numbers {
                if let Some(state @ TargetState::InFlight) = entry.targets.get_mut(number) {
                    *state = TargetState::Waiting;
                }
            }
            self.ready.insert(order);
        }
    }

    /// After an answer: decided targets leave their lanes; a decided entry is finished; lanes move on.
    fn settle(&mut self, order: u64, numbers: &[u32]) {
        let Some(entry) = self.entries.get(&order) else { return };
        let is_decided = |number: u32| matches!(entry.targets.get(&number), Some(TargetState::Decided(_)));
        let touched = entry.submit.targets.iter().filter(|target| numbers.contains(&target.number));
        let touched: Vec<(UserId, u32, bool)> =
            touched.map(|target| (target.user.clone(), target.number, is_decided(target.number))).collect();
        let receipt = receipt(entry);
        for (user, number, decided) in touched {
            if decided {
                self.leave_lane(&user, order, number);
            }
            let front = self.lane_front(&user);
            self.ready.extend(front);
        }
        match receipt {
            Some(receipt) => self.finish(order, Ok(receipt)),
            None => {
                self.ready.insert(order);
            }
        }
    }

    fn leave_lane(&mut self, user: &UserId, order: u64, number: u32) {
        if let Some(lane) = self.lanes.get_mut(user) {
            if let Some(at) = lane.iter().position(|place| *place == (order, number)) {
                lane.remove(at);
            }
            if lane.is_empty() {
                self.lanes.remove(user);
            }
        }
    }

    fn finish(&mut self, order: u64, result: Result<Receipt, ClientError>) {
        let Some(entry) = self.entries.remove(&order) else { return };
        self.by_id.remove(&entry.submit.submit_id);
        self.deadlines.remove(&(entry.deadline, order));
        self.waiting.remove(&(entry.not_before, order));
        self.ready.remove(&order);
        for target in &entry.submit.targets {
            self.leave_lane(&target.user, order, target.number);
            let front = self.lane_front(&target.user);
            self.ready.extend(front);
        }
        let id = entry.submit.submit_id;
        self.frames.retain(|(submit_id, _), _| *submit_id != id);
        self.finished.push((order, result));
    }
}

/// Whether nothing undecided goes before this target of the entry.
fn leads(lanes: &BTreeMap<UserId, VecDeque<(u64, u32)>>, entry: &Entry, order: u64, number: u32) -> bool {
    let target = entry.submit.targets.iter().find(|target| target.number == number);
    let first = target.and_then(|target| lanes.get(&target.user)?.front());
    first.is_some_and(|(first, _)| *first == order)
}

/// `None` while a target is undecided.
fn receipt(entry: &Entry) -> Option<Receipt> {
    let mut targets = Vec::with_capacity(entry.submit.targets.len());
    for target in &entry.submit.targets {
        let Some(TargetState::Decided(result)) = entry.targets.get(&target.number) else { return None };
        targets.push(TargetReceipt {
            user: target.user.clone(),
            outcome: result.outcome.clone(),
            envelope_id: result.envelope_id,
        });
    }
    Some(Receipt { submit_id: entry.submit.submit_id, targets })
}

/// Leaves out the payloads that no target of the frame names.
fn compact_payloads(frame: &mut Submit) {
    let used: BTreeSet<usize> = frame.targets.iter().map(|target| target.payload).collect();
    if used.len() == frame.payloads.len() {
        return;
    }
    let place: BTreeMap<usize, usize> = used.iter().enumerate().map(|(new, old)| (*old, new)).collect();
    frame.payloads = used.iter().filter_map(|old| frame.payloads.get(*old).cloned()).collect();
    for target in &mut frame.targets {
        target.payload = place.get(&target.payload).copied().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Seeded;
    use chappe_protocol::envelope::{DeviceFilter, Urgency};
    use chappe_protocol::internode::Outcome;

    const SPAN: Time = Time(600_000);
    const IN_FLIGHT_MAX: usize = 64;

    fn submit(id: u8) -> Submit {
        let user = UserId::new("ben").unwrap();
        let target =
            Target { number: 0, user, devices: DeviceFilter::All, device_set_version: None, payload: 0 };
        Submit {
            submit_id: SubmitId([id; 16]),
            attempt: 0,
            payloads: vec![bytes::Bytes::from_static(b"x")],
            targets: vec![target],
            ttl: Millis(0),
            urgency: Urgency::Message,
            ephemeral: false,
        }
    }

    fn result(frame: &Submit, outcome: &Outcome) -> SubmitResult {
        let result = TargetResult { number: 0, outcome: outcome.clone(), envelope_id: None };
        SubmitResult { submit_id: frame.submit_id, attempt: frame.attempt, results: vec![result] }
    }

    /// Ten minutes of three submits to one recipient, all answered at once by `answer`; the frames that were sent.
    fn frames_sent(mut answer: impl FnMut(&mut Outbox, Time, &Submit)) -> u32 {
        let mut outbox = Outbox::new(16);
        for id in 1..=3 {
            outbox.insert(u64::from(id), submit(id), 0, Time(SPAN.0 * 2));
        }
        let (mut now, mut sent) = (Time(0), 0);
        while now < SPAN {
            outbox.on_time(now);
            while outbox.wants(now, IN_FLIGHT_MAX) {
                let Some(frame) = outbox.poll_send(now, IN_FLIGHT_MAX) else { break };
                sent += 1;
                assert!(sent < 10_000, "a busy loop at {now:?}");
                answer(&mut outbox, now, &frame);
            }
            assert!(!outbox.wants(now, IN_FLIGHT_MAX), "it says at {now:?} that there is more, and has none");
            let next = outbox.next_time().expect("a deadline at least");
            assert!(next > now, "it would be looked at again at once");
            now = next;
        }
        assert!(outbox.take_finished().is_empty());
        sent
    }

    #[test]
    fn what_is_never_decided_is_sent_ever_more_rarely() {
        let world = Seeded::new(1);
        for outcome in [Outcome::Unavailable, Outcome::Unknown, Outcome::NotAttempted] {
            let sent = frames_sent(|outbox, now, frame| {
                outbox.on_result(now, result(frame, &outcome), &world);
            });
            // 200 ms, doubled up to 25.6 s, at least half of it: at most 54 attempts of each.
            assert!((30..=3 * 54).contains(&sent), "{outcome:?}: {sent} frames in ten minutes");
        }
    }

    #[test]
    fn what_is_refused_for_now_waits_as_long_as_it_was_told() {
        let world = Seeded::new(2);
        let refusal = |frame: &Submit| ErrorFrame::limit("a limit", 60_000, Some(frame.submit_id), "later");
        let sent = frames_sent(|outbox, now, frame| {
            outbox.on_refused(now, frame.submit_id, &refusal(frame), &world);
        });
        assert!((5..=3 * 10).contains(&sent), "{sent} frames in ten minutes");
    }

    #[test]
    fn behind_an_undecided_one_the_others_go_with_it_and_in_order() {
        let world = Seeded::new(3);
        let mut order = Vec::new();
        let sent = frames_sent(|outbox, now, frame| {
            order.push(frame.submit_id.0[0]);
            let first = frame.submit_id.0[0] == 1;
            let outcome = if first { Outcome::Unavailable } else { Outcome::NotAttempted };
            outbox.on_result(now, result(frame, &outcome), &world);
        });
        assert!((30..=54).contains(&sent), "{sent} frames in ten minutes");
        assert!(order.iter().all(|id| *id == 1), "behind the first nothing was to be sent: {order:?}");
    }
}
