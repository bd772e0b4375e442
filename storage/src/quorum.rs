//! A quorum database in miniature: three replicas, each with a copy of every partition, in the shape of the CQL schema.
//! **Invariant:** everything follows from the seed, and `Unavailable` for a write means that nothing was sent.
//!
//! What it does is what Cassandra and ScyllaDB do (Lamport, "Paxos Made Simple", 2001; CASSANDRA-5062 for the phases and the
//! finishing of others' proposals; CASSANDRA-12126 for the empty proposal behind a SERIAL read or a refusal):
//!
//! - A lightweight transaction prepares at a quorum, finishes what it finds unfinished, reads at a quorum, proposes, commits,
//!   and waits for two replicas each time. Its cells take the ballot as their timestamp.
//! - A plain write brings its own timestamps and waits for two replicas; a plain read merges two.
//! - What it does wrong, messages that are lost, answered in vain or late, replicas that are away, lose power or have another
//!   clock, stands in [`QuorumFaults`].
//!
//! Simplified: all partitions have the same three replicas; a partition is read whole; TTLs end to the millisecond.

mod cell;
mod network;
mod operations;
mod paxos;
mod replica;
mod wakes;
mod writes;

use crate::planted::Planted;
use crate::rows::Rows;
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_protocol::world::World;
use network::Cluster;
pub use replica::CommitLog;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Replicas of every partition.
pub const REPLICAS: usize = 3;
/// How many of them decide.
const QUORUM: usize = 2;
/// TTLs are longer by this, so that clocks that differ by an hour each way end no payload and forget no id too early.
const TTL_SLACK: Millis = Millis::from_secs(2 * 3600);

/// How often what goes wrong, in thousandths: of the messages to one replica, or of the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuorumFaults {
    /// Now and then a message waits up to this long, in milliseconds of tokio's clock, also when faults are off.
    pub delay_ms_max: u64,
    /// Each coordinator's clock is off by up to this, for good, also when faults are off.
    pub skew_ms_max: u64,
    /// Clocks are fast only.
    pub fast_only: bool,
    /// Messages: lost on the way.
    pub lost: u64,
    /// Messages: done, but the answer is lost.
    pub lost_reply: u64,
    /// Messages: done some calls later, unanswered.
    pub late: u64,
    /// Phases: nothing of this phase leaves the coordinator, nor anything after it.
    pub silent: u64,
    /// Calls: a replica goes away for a while, with what it had.
    pub down: u64,
    /// Calls: two go away for a while.
    pub majority_down: u64,
    /// Calls: a replica loses its power, hence what its log had not synced, and comes back after a while.
    pub power_loss: u64,
    /// Calls: an append is begun only some calls later, by a coordinator that its caller has given up.
    pub late_append: u64,
    /// Stretches of calls: plain slices of slots lack the rows that some one replica has not got. A correct quorum read never
    /// does: this stands for defects in the merging of slices. The slot log reads such holes again, at SERIAL.
    pub short_slice: u64,
    /// A plain read that finds replicas to differ brings them level before it answers (both databases' default), so that no
    /// later read shows less.
    pub read_repair: bool,
}

impl QuorumFaults {
    /// Nothing but a little delay, so that calls interleave.
    pub const NONE: Self = Self {
        delay_ms_max: 3,
        skew_ms_max: 0,
        fast_only: false,
        lost: 0,
        lost_reply: 0,
        late: 0,
        silent: 0,
        down: 0,
        majority_down: 0,
        power_loss: 0,
        late_append: 0,
        short_slice: 0,
        read_repair: true,
    };

    /// Everything now and then, clocks that differ by up to an hour each way.
    pub const MANY: Self = Self {
        delay_ms_max: 3,
        skew_ms_max: 3_600_000,
        fast_only: false,
        lost: 25,
        lost_reply: 25,
        late: 25,
        silent: 3,
        down: 3,
        majority_down: 1,
        power_loss: 3,
        late_append: 15,
        short_slice: 200,
        read_repair: false,
    };
}

/// What the simulation has met, for tests that must not pass vacuously.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuorumStats {
    /// Proposals of others that were found accepted and finished.
    pub finished: u64,
    /// Commits that were sent after to a replica that had missed them.
    pub caught_up: u64,
    /// Ballots that were too low.
    pub contended: u64,
    /// Proposals that some replicas accepted, too few to know.
    pub partial: u64,
    /// Messages that arrived late.
    pub late: u64,
    /// Appends that were begun late.
    pub late_appends: u64,
    /// Power losses.
    pub power_losses: u64,
    /// Calls refused for want of replicas.
    pub unavailable: u64,
    /// Calls without a quorum of answers.
    pub unanswered: u64,
    /// Plain reads that found replicas to differ.
    pub differed: u64,
    /// Slices that were cut down to what one replica has.
    pub short_slices: u64,
}

impl QuorumStats {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            finished: self.finished + other.finished,
            caught_up: self.caught_up + other.caught_up,
            contended: self.contended + other.contended,
            partial: self.partial + other.partial,
            late: self.late + other.late,
            late_appends: self.late_appends + other.late_appends,
            power_losses: self.power_losses + other.power_losses,
            unavailable: self.unavailable + other.unavailable,
            unanswered: self.unanswered + other.unanswered,
            differed: self.differed + other.differed,
            short_slices: self.short_slices + other.short_slices,
        }
    }

    /// Every count with its name.
    pub fn counts(&self) -> [(&'static str, u64); 11] {
        [
            ("finished", self.finished),
            ("caught up", self.caught_up),
            ("contended", self.contended),
            ("partial", self.partial),
            ("late", self.late),
            ("late appends", self.late_appends),
            ("power losses", self.power_losses),
            ("unavailable", self.unavailable),
            ("unanswered", self.unanswered),
            ("differed", self.differed),
            ("short slices", self.short_slices),
        ]
    }
}

/// The rows of the simulated database.
pub struct QuorumRows {
    world: Arc<dyn World>,
    random: TestWorld,
    incarnation: [u8; 16],
    faults: QuorumFaults,
    on: AtomicBool,
    planted: Option<Planted>,
    log: CommitLog,
    /// Milliseconds by which each coordinator's clock is off.
    skews: [i64; REPLICAS],
    cluster: Mutex<Cluster>,
}

impl QuorumRows {
    /// Three empty replicas; faults and skews from a seed, switched on. Of the planted defects it takes those of a database.
    pub fn new(world: Arc<dyn World>, seed: u64, faults: QuorumFaults, planted: Option<Planted>) -> Self {
        let log = match planted {
            Some(Planted::CommitLogPeriodic) => CommitLog::Periodic,
            Some(_) | None => CommitLog::Batch,
        };
        Self::with_log(world, seed, faults, planted, log)
    }

    /// The same with a commit log of another kind.
    pub fn with_log(
        world: Arc<dyn World>,
        seed: u64,
        faults: QuorumFaults,
        planted: Option<Planted>,
        log: CommitLog,
    ) -> Self {
        let mut incarnation = [0; 16];
        world.fill_random(&mut incarnation);
        let random = TestWorld::new(seed);
        let skews = [(); REPLICAS].map(|()| {
            let skew = i64::try_from(random.random_below(faults.skew_ms_max + 1)).unwrap_or(0);
            if faults.fast_only || random.random_below(2) == 0 { skew } else { -skew }
        });
        let cluster = Mutex::new(Cluster::new(log));
        Self { world, random, incarnation, faults, on: AtomicBool::new(true), planted, log, skews, cluster }
    }

    /// Switches faults on or off. What is away or under way stays so.
    pub fn switch(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    /// Every replica is back, and everything arrives that is under way.
    pub async fn settle(&self) {
        for replica in 0..REPLICAS {
            self.put_up(replica);
        }
        while let Some(append) = self.next_late_append(u64::MAX) {
            self.arrive(append).await;
        }
        self.cluster().deliver_late(u64::MAX, self.log);
    }

    /// Takes a replica away until [`QuorumRows::put_up`]; `known`: to the coordinators too, which send it nothing then.
    pub fn put_down(&self, replica: usize, known: bool) {
        self.cluster().put_down(replica, known);
    }

    /// Brings a replica back, as it was.
    pub fn put_up(&self, replica: usize) {
        self.cluster().put_up(replica);
    }

    /// A replica loses its power and is back at once: what its log has not synced is gone.
    pub fn power_loss(&self, replica: usize) {
        self.cluster().power_loss(replica);
    }

    /// What goes wrong here.
    pub fn faults(&self) -> QuorumFaults {
        self.faults
    }

    /// What was met so far.
    pub fn stats(&self) -> QuorumStats {
        self.cluster().stats
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    fn happens(&self, per_mille: u64) -> bool {
        self.on.load(Ordering::SeqCst) && self.random.random_below(1000) < per_mille
    }

    fn below(&self, bound: usize) -> usize {
        usize::try_from(self.random.random_below(bound as u64)).unwrap_or(0)
    }

    /// The clock of a coordinator.
    fn clock(&self, node: usize) -> UnixMillis {
        UnixMillis(self.now().0.saturating_add_signed(self.skews[node]))
    }

    /// The store's clock in microseconds, as timestamps count.
    fn now_stamp(&self) -> cell::Stamp {
        self.now().0 * 1000
    }
}
