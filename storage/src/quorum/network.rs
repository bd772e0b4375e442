//! Messages between coordinators and replicas, and what becomes of them. **Invariant:** a message is handled at most once,
//! except a hint, which is one late copy of a write; the queue of what is under way is bounded.

use super::replica::{Answer, CommitLog, Message, Replica};
use super::{QUORUM, QuorumRows, QuorumStats, REPLICAS};
use crate::Entry;
use crate::error::{Result, StoreError};
use crate::rows::{Batch, Head, Partition};
use chappe_protocol::id::Seq;
use chappe_protocol::world::World;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Messages under way beyond their time; more are lost instead.
const LATE_MAX: usize = 64;
/// Appends that are begun late; more are lost instead.
const LATE_APPENDS_MAX: usize = 8;
/// Calls after which something late arrives at the latest.
const LATE_CALLS_MAX: u64 = 60;
/// Calls until coordinators know that a replica is away.
const KNOWN_AFTER_CALLS: u64 = 4;
/// Calls for which a replica stays away at most.
const DOWN_CALLS_MAX: u64 = 80;
/// Calls for which two do.
const MAJORITY_DOWN_CALLS_MAX: u64 = 15;
/// Messages between two syncs of a periodic log, on average.
const SYNC_EVERY: u64 = 1000;
/// Calls for which slices stay short, or do not.
const SHORT_CALLS: u64 = 64;
/// Of 1000 writes for a replica that is known to be away, so many reach it later.
const HINTED: u64 = 200;

#[derive(Debug, Clone, Copy, Default)]
struct Away {
    /// In calls.
    until: u64,
    /// From when coordinators know.
    known_from: u64,
}

struct Late {
    due: u64,
    replica: usize,
    message: Message,
}

/// An append that its caller has given up.
pub(super) struct LateAppend {
    due: u64,
    pub(super) partition: Partition,
    pub(super) expected: Option<Seq>,
    pub(super) to: Head,
    pub(super) slots: Vec<(Seq, Entry)>,
}

/// Everything that is shared: the replicas, and what is between them.
pub(super) struct Cluster {
    replicas: [Replica; REPLICAS],
    away: [Away; REPLICAS],
    calls: u64,
    numbers: u64,
    late: VecDeque<Late>,
    late_appends: VecDeque<LateAppend>,
    /// The present stretch of calls, and whose rows alone slices show in it.
    short: (u64, Option<usize>),
    /// The last ballot of each coordinator.
    pub(super) ballots: [u64; REPLICAS],
    pub(super) stats: QuorumStats,
}

impl Cluster {
    pub(super) fn new(log: CommitLog) -> Self {
        Self {
            replicas: [(); REPLICAS].map(|()| Replica::new(log)),
            away: [Away::default(); REPLICAS],
            calls: 0,
            numbers: 0,
            late: VecDeque::new(),
            late_appends: VecDeque::new(),
            short: (u64::MAX, None),
            ballots: [0; REPLICAS],
            stats: QuorumStats::default(),
        }
    }

    fn is_up(&self, replica: usize) -> bool {
        self.away[replica].until <= self.calls
    }

    fn seems_up(&self, replica: usize) -> bool {
        self.is_up(replica) || self.calls < self.away[replica].known_from
    }

    /// One that was not given before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// For good; `known`: to the coordinators, at once or never.
    pub(super) fn put_down(&mut self, replica: usize, known: bool) {
        let known_from = if known { 0 } else { u64::MAX };
        self.away[replica] = Away { until: u64::MAX, known_from };
    }

    fn lose(&mut self, replica: usize, calls: u64) {
        // One that a test has put down for good stays so.
        if self.is_up(replica) {
            let known_from = self.calls + KNOWN_AFTER_CALLS;
            self.away[replica] = Away { until: self.calls + calls, known_from };
        }
    }

    pub(super) fn put_up(&mut self, replica: usize) {
        self.away[replica] = Away::default();
    }

    pub(super) fn power_loss(&mut self, replica: usize) {
        self.stats.power_losses += 1;
        self.replicas[replica].power_loss();
    }

    /// What is due by then arrives.
    pub(super) fn deliver_late(&mut self, calls: u64, log: CommitLog) {
        while let Some(due) = self.late.iter().position(|late| late.due <= calls) {
            let Some(Late { replica, message, .. }) = self.late.remove(due) else { return };
            if self.is_up(replica) {
                self.stats.late += 1;
                self.replicas[replica].handle(&message, log);
            }
        }
    }

    fn delay(&mut self, replica: usize, message: Message, calls: u64) {
        if self.late.len() < LATE_MAX {
            self.late.push_back(Late { due: self.calls + calls, replica, message });
        }
    }
}

/// What came back from a phase.
#[derive(Debug, Default)]
pub(super) struct Replies {
    pub(super) answers: Vec<(usize, Answer)>,
    /// Replicas that were asked in vain.
    pub(super) silent: usize,
}

/// What becomes of a message.
enum Fate {
    Pass,
    Lost,
    LostReply,
    Late(u64),
}

impl QuorumRows {
    /// Before each call: what is late arrives, replicas come and go. Then a coordinator that answers.
    pub(super) async fn begin(&self) -> Result<usize> {
        let calls = {
            let mut cluster = self.cluster();
            cluster.calls += 1;
            let calls = cluster.calls;
            cluster.deliver_late(calls, self.log);
            calls
        };
        while let Some(append) = self.next_late_append(calls) {
            self.arrive(append).await;
        }
        self.trouble();
        self.pause().await;
        self.coordinator()
    }

    /// A coordinator that answers, if enough replicas seem to.
    pub(super) fn coordinator(&self) -> Result<usize> {
        let place = self.below(REPLICAS);
        let mut cluster = self.cluster();
        let seem_up = (0..REPLICAS).filter(|replica| cluster.seems_up(*replica)).count();
        let answers = (0..REPLICAS).map(|n| (n + place) % REPLICAS).find(|node| cluster.is_up(*node));
        match answers {
            Some(node) if seem_up >= QUORUM => Ok(node),
            Some(_) => {
                cluster.stats.unavailable += 1;
                Err(StoreError::Unavailable("not enough replicas, and nothing was sent".into()))
            }
            None => {
                cluster.stats.unavailable += 1;
                Err(StoreError::Unavailable("no connection".into()))
            }
        }
    }

    fn trouble(&self) {
        let (one, two) = (self.below(REPLICAS), self.below(REPLICAS));
        let calls = self.random.random_below(DOWN_CALLS_MAX);
        let down = self.happens(self.faults.down);
        let majority = self.happens(self.faults.majority_down);
        let power = self.happens(self.faults.power_loss);
        let mut cluster = self.cluster();
        if down || power {
            cluster.lose(one, calls);
        }
        if power {
            cluster.power_loss(one);
        }
        if majority {
            let calls = calls.min(MAJORITY_DOWN_CALLS_MAX);
            cluster.lose(one, calls);
            cluster.lose(if one == two { (one + 1) % REPLICAS } else { two }, calls);
        }
    }

    /// The replicas that seem to be there, in any order.
    pub(super) fn live(&self) -> Vec<usize> {
        let mut live: Vec<_> = {
            let cluster = self.cluster();
            (0..REPLICAS).filter(|replica| cluster.seems_up(*replica)).collect()
        };
        for place in (1..live.len()).rev() {
            live.swap(place, self.below(place + 1));
        }
        live
    }

    /// Sends to each of these in turn, and collects the answers.
    pub(super) async fn round(&self, to: &[usize], message: &Message) -> Replies {
        let mut replies = Replies::default();
        if self.happens(self.faults.silent) {
            replies.silent = to.len();
            return replies;
        }
        self.leave_hints(to, message);
        for &replica in to {
            self.pause().await;
            match self.send(replica, message) {
                Some(answer) => replies.answers.push((replica, answer)),
                None => replies.silent += 1,
            }
        }
        replies
    }

    fn send(&self, replica: usize, message: &Message) -> Option<Answer> {
        let fate = self.fate();
        let sync = self.random.random_below(SYNC_EVERY) == 0;
        let mut cluster = self.cluster();
        if !cluster.is_up(replica) {
            return None;
        }
        let done = match fate {
            Fate::Lost => None,
            Fate::Late(calls) => {
                cluster.delay(replica, message.clone(), calls);
                None
            }
            Fate::LostReply => {
                cluster.replicas[replica].handle(message, self.log);
                None
            }
            Fate::Pass => Some(cluster.replicas[replica].handle(message, self.log)),
        };
        if sync {
            cluster.replicas[replica].sync();
        }
        done
    }

    fn fate(&self) -> Fate {
        let calls = 1 + self.random.random_below(LATE_CALLS_MAX);
        if self.happens(self.faults.lost) {
            Fate::Lost
        } else if self.happens(self.faults.lost_reply) {
            Fate::LostReply
        } else if self.happens(self.faults.late) {
            Fate::Late(calls)
        } else {
            Fate::Pass
        }
    }

    /// For a replica that is known to be away the coordinator keeps a write, and often gets to deliver it.
    fn leave_hints(&self, to: &[usize], message: &Message) {
        let kept = match message {
            Message::Write(..) | Message::Commit(..) => true,
            Message::Prepare(..) | Message::Propose(..) | Message::Read(_) | Message::Repair(..) => false,
        };
        for replica in 0..REPLICAS {
            if kept && !to.contains(&replica) && self.happens(HINTED) {
                self.cluster().delay(replica, message.clone(), LATE_CALLS_MAX);
            }
        }
    }

    /// The replica whose rows alone a slice shows just now.
    pub(super) fn short_replica(&self) -> Option<usize> {
        let drawn = self.happens(self.faults.short_slice).then(|| self.below(REPLICAS));
        let on = self.on.load(Ordering::SeqCst);
        let mut cluster = self.cluster();
        let stretch = cluster.calls / SHORT_CALLS;
        if cluster.short.0 != stretch {
            cluster.short = (stretch, drawn);
        }
        cluster.short.1.filter(|_| on)
    }

    pub(super) fn next_late_append(&self, calls: u64) -> Option<LateAppend> {
        let mut cluster = self.cluster();
        let due = cluster.late_appends.iter().position(|late| late.due <= calls)?;
        cluster.stats.late_appends += 1;
        cluster.late_appends.remove(due)
    }

    /// Keeps a batch for later.
    pub(super) fn delay_append(&self, partition: Partition, batch: &Batch<'_>) {
        let calls = 1 + self.random.random_below(LATE_CALLS_MAX);
        let slots = batch.slots.iter().map(|(seq, entry)| (*seq, (*entry).clone())).collect();
        let mut cluster = self.cluster();
        let due = cluster.calls + calls;
        if cluster.late_appends.len() < LATE_APPENDS_MAX {
            let append = LateAppend { due, partition, expected: batch.expected, to: batch.to, slots };
            cluster.late_appends.push_back(append);
        }
    }

    pub(super) async fn pause(&self) {
        let max = self.faults.delay_ms_max;
        if max > 0 && self.random.random_below(3) == 0 {
            tokio::time::sleep(Duration::from_millis(self.random.random_below(max + 1))).await;
        }
    }
}
