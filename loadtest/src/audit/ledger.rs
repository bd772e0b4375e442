//! What happened in a run, as the clients saw it, judged while it happens. **Invariant:** a submit is noted before its first
//! byte leaves; every accepted entry is received exactly once by its addressee, in its sender's order, and nothing else is
//! received at all. Memory: what is open, and a window of what was closed, both bounded.

use super::Audit;
use super::generations::Generations;
use crate::measure::Phase;
use crate::pulse::Live;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};

/// One submit of one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SubmitKey {
    /// Index of the sending user.
    pub sender: u32,
    /// The sender's count, from 0, without gaps.
    pub counter: u64,
}

/// The fate of a submit for one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Invoked, not decided when the run ended: may or may not arrive.
    Unknown,
    /// Accepted: must arrive.
    Ok,
    /// Finally refused: must not arrive.
    Fail,
}

/// One envelope that an application got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Index of the user who got it.
    pub by: u32,
    /// What it says of itself; `None`: it is not of this run, or was changed.
    pub key: Option<SubmitKey>,
    /// Whether it names the receiver among its targets.
    pub addressed: bool,
}

/// A time in which something was down by our own doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultWindow {
    /// What was done.
    pub what: String,
    /// Where measurements that it touches belong.
    pub phase: Phase,
    /// When it was broken, µs of the run's clock.
    pub from_us: u64,
    /// When it served again, plus the grace for reconnects, µs; `u64::MAX` as long as it does not.
    pub to_us: u64,
    /// Submits that were in flight then.
    pub in_flight: u64,
}

/// What is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Submits that are undecided or have not arrived everywhere; at most this many (about 130 bytes each).
    pub open: usize,
    /// Submits that were closed and pairs of sender and receiver: their last so many at least (about 40 bytes each).
    pub closed: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { open: 1 << 21, closed: 1 << 20 }
    }
}

/// A submit that is not closed.
#[derive(Debug)]
struct Open {
    at_us: u64,
    decided: bool,
    targets: Vec<Target>,
}

#[derive(Debug, Clone, Copy)]
struct Target {
    user: u32,
    fate: Fate,
    received: bool,
}

impl Target {
    /// Nothing more can be learned of it.
    fn is_done(self) -> bool {
        match self.fate {
            // What is unknown may still come: kept open, a late arrival is told from a duplicate.
            Fate::Ok | Fate::Unknown => self.received,
            Fate::Fail => true,
        }
    }
}

/// Judges.
#[derive(Debug)]
pub struct Ledger {
    bounds: Bounds,
    open: HashMap<SubmitKey, Open>,
    /// Of those who were refused: whatever comes of them is a phantom, not a duplicate.
    refused: Generations<(SubmitKey, u32), ()>,
    /// Decided, and for somebody unknown: they may come or not, and are not waited for without end.
    doubtful: VecDeque<SubmitKey>,
    given_up: Generations<(SubmitKey, u32), ()>,
    /// The next counter of each sender.
    next: HashMap<u32, u64>,
    /// The highest counter that came from a sender to a receiver.
    order: Generations<(u32, u32), u64>,
    faults: Vec<FaultWindow>,
    found: Audit,
    undecided: u64,
    missing: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Ledger {
    /// Remembers so much.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            open: HashMap::new(),
            refused: Generations::new(bounds.closed),
            doubtful: VecDeque::new(),
            given_up: Generations::new(bounds.closed),
            next: HashMap::new(),
            order: Generations::new(bounds.closed),
            faults: Vec::new(),
            found: Audit::default(),
            undecided: 0,
            missing: 0,
        }
    }

    /// Whether another submit can be remembered; if not, it must not be sent.
    pub fn has_room(&self) -> bool {
        self.open.len() < self.bounds.open
    }

    /// Notes a submit before it leaves.
    pub fn invoke(&mut self, key: SubmitKey, at_us: u64, targets: &[u32]) {
        let target = |user: &u32| Target { user: *user, fate: Fate::Unknown, received: false };
        let open = Open { at_us, decided: false, targets: targets.iter().map(target).collect() };
        self.open.insert(key, open);
        let next = self.next.entry(key.sender).or_default();
        *next = (*next).max(key.counter + 1);
        self.undecided += 1;
        self.found.submits += 1;
    }

    /// Notes the fates, in the order of the targets.
    pub fn decide(&mut self, key: SubmitKey, at_us: u64, fates: &[Fate]) {
        let Some(open) = self.open.get_mut(&key).filter(|open| !open.decided) else { return };
        open.decided = true;
        self.undecided -= 1;
        let hurt = touches(&self.faults, open.at_us, at_us);
        for (target, fate) in open.targets.iter_mut().zip(fates) {
            target.fate = *fate;
            match fate {
                Fate::Ok => {
                    self.found.accepted += 1;
                    self.missing += u64::from(!target.received);
                }
                Fate::Fail => {
                    self.found.refused += 1;
                    self.refused.insert((key, target.user), ());
                    if target.received {
                        // It came before its sender heard that it was refused.
                        self.found.phantom.add(Some(key), target.user);
                    }
                }
                Fate::Unknown => {}
            }
            self.found.outside += u64::from(!hurt);
            self.found.accepted_outside += u64::from(!hurt && *fate == Fate::Ok);
        }
        self.close(key);
        if fates.contains(&Fate::Unknown) && self.open.contains_key(&key) {
            self.doubtful.push_back(key);
            if self.doubtful.len() > self.bounds.closed {
                self.give_up();
            }
        }
    }

    /// The oldest doubtful one is not waited for any longer.
    fn give_up(&mut self) {
        let Some(key) = self.doubtful.pop_front() else { return };
        let Some(open) = self.open.get_mut(&key) else { return };
        open.targets.retain(|target| {
            let doubtful = target.fate == Fate::Unknown && !target.received;
            if doubtful {
                self.found.unknown += 1;
                self.given_up.insert((key, target.user), ());
            }
            !doubtful
        });
        self.close(key);
    }

    /// Notes what an application got, in the order of each receiver.
    pub fn receive(&mut self, received: Received) {
        self.found.received += 1;
        let by = received.by;
        let Some(key) = received.key else { return self.found.phantom.add(None, by) };
        if self.next.get(&key.sender).is_none_or(|next| key.counter >= *next)
            || self.refused.get(&(key, by)).is_some()
        {
            return self.found.phantom.add(Some(key), by);
        }
        if !received.addressed {
            return self.found.misrouted.add(Some(key), by);
        }
        let open = self.open.get_mut(&key);
        let is_open = open.is_some();
        let target = open.and_then(|open| open.targets.iter_mut().find(|target| target.user == by));
        match target {
            Some(target) if !target.received => {
                target.received = true;
                self.missing -= u64::from(target.fate == Fate::Ok);
            }
            None if self.given_up.take(&(key, by)) => {}
            None if is_open => return self.found.misrouted.add(Some(key), by),
            // Closed: it was received everywhere.
            Some(_) | None => return self.found.duplicate.add(Some(key), by),
        }
        let highest = self.order.entry((key.sender, by), key.counter);
        if key.counter < *highest {
            self.found.reordered.add(Some(key), by);
        }
        *highest = key.counter.max(*highest);
        self.close(key);
    }

    fn close(&mut self, key: SubmitKey) {
        let done = |open: &Open| open.decided && open.targets.iter().all(|target| target.is_done());
        if self.open.get(&key).is_some_and(done) {
            self.open.remove(&key);
        }
    }

    /// Something is broken now; what it touches is judged less strictly. Returns its number.
    pub fn fault_begins(&mut self, what: &str, phase: Phase, from_us: u64, in_flight: u64) -> usize {
        let what = what.to_owned();
        self.faults.push(FaultWindow { what, phase, from_us, to_us: u64::MAX, in_flight });
        self.faults.len() - 1
    }

    /// It serves again.
    pub fn fault_ends(&mut self, number: usize, to_us: u64) {
        if let Some(fault) = self.faults.get_mut(number) {
            fault.to_us = to_us;
        }
    }

    /// What was broken.
    pub fn faults(&self) -> &[FaultWindow] {
        &self.faults
    }

    /// What was wrong at any time from `from_us` to `to_us`; the latest, if there was more.
    pub fn trouble(&self, from_us: u64, to_us: u64) -> Option<Phase> {
        touching(&self.faults, from_us, to_us).map(|fault| fault.phase)
    }

    /// Submits that are remembered since something of them is open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Submits that are not decided.
    pub fn undecided(&self) -> u64 {
        self.undecided
    }

    /// Entries that were accepted and have not arrived.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Where it stands; sessions and errors are not the ledger's.
    pub fn live(&self) -> Live {
        let found = &self.found;
        let broken = [&found.phantom, &found.misrouted, &found.reordered, &found.duplicate];
        Live {
            submits: found.submits,
            accepted: found.accepted,
            received: found.received,
            undecided: self.undecided,
            missing: self.missing,
            broken: broken.iter().map(|offenders| offenders.count).sum(),
            ..Live::default()
        }
    }

    /// What was found until now; what has not arrived counts as lost. Whether it proves anything, [`Audit::prove`] says.
    pub fn audit(&self) -> Audit {
        let mut audit = self.found.clone();
        let mut lost = Vec::new();
        #[expect(clippy::iter_over_hash_type, reason = "what has an order is sorted below")]
        for (key, open) in &self.open {
            for target in &open.targets {
                match target.fate {
                    Fate::Ok if !target.received => lost.push((*key, target.user)),
                    Fate::Unknown => audit.unknown += 1,
                    Fate::Ok | Fate::Fail => {}
                }
            }
            if !open.decided && !touches(&self.faults, open.at_us, open.at_us) {
                audit.outside += open.targets.len() as u64;
            }
        }
        // Whoever reads the list begins with the oldest.
        lost.sort_unstable_by_key(|(key, user)| (key.counter, key.sender, *user));
        for (key, user) in lost {
            audit.lost.add(Some(key), user);
        }
        audit
    }
}

fn touches(faults: &[FaultWindow], from_us: u64, to_us: u64) -> bool {
    touching(faults, from_us, to_us).is_some()
}

fn touching(faults: &[FaultWindow], from_us: u64, to_us: u64) -> Option<&FaultWindow> {
    // The latest first: it is the one that is asked for, mostly.
    faults.iter().rev().find(|fault| from_us <= fault.to_us && to_us >= fault.from_us)
}
