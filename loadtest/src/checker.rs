//! Audits a history. **Invariant:** every accepted entry was received exactly once by its addressee, in its sender's
//! order, and nothing else was received at all; a run that proves nothing is void, not passed.

use crate::history::{Fate, History, SubmitKey};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Outside of fault windows at least so many of 100 submits must have been accepted.
pub const ACCEPTED_PERCENT_MIN: u64 = 90;
/// Offenders that are listed of each kind.
const LISTED_MAX: usize = 20;

/// What an audit found.
#[derive(Debug, Default, Serialize)]
pub struct Audit {
    /// Entries accepted.
    pub accepted: u64,
    /// Entries finally refused.
    pub refused: u64,
    /// Entries undecided at the end.
    pub unknown: u64,
    /// Envelopes that applications got.
    pub received: u64,
    /// Accepted and not received.
    pub lost: Offenders,
    /// Received and never sent, refused, or changed on the way.
    pub phantom: Offenders,
    /// Received by somebody whom it was not addressed to.
    pub misrouted: Offenders,
    /// Received behind a later one of the same sender.
    pub reordered: Offenders,
    /// Received twice by the application.
    pub duplicate: Offenders,
    /// Why the run proves nothing; empty if it does prove something.
    pub void: Vec<String>,
}

/// How many, and the first of them.
#[derive(Debug, Default, Serialize)]
pub struct Offenders {
    /// How many.
    pub count: u64,
    /// The first 20.
    pub first: Vec<Offender>,
}

/// One entry that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offender {
    /// Which submit; `None` if its bytes do not say.
    pub submit: Option<SubmitKey>,
    /// The user who did or should have received it.
    pub user: u32,
}

impl Offenders {
    fn add(&mut self, submit: Option<SubmitKey>, user: u32) {
        self.count += 1;
        if self.first.len() < LISTED_MAX {
            self.first.push(Offender { submit, user });
        }
    }
}

/// The last word on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing was lost, invented, misrouted, reordered or repeated.
    Passed,
    /// A promise was broken: exit code 1.
    Failed,
    /// The run proves nothing: exit code 2.
    Void,
}

impl Verdict {
    /// In capitals, for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "PASSED",
            Self::Failed => "FAILED",
            Self::Void => "VOID",
        }
    }

    /// 0 passed, 1 a promise was broken, 2 the run proves nothing.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Void => 2,
        }
    }
}

impl Audit {
    /// The kinds of findings, by name.
    pub fn kinds(&self) -> [(&'static str, &Offenders); 5] {
        [
            ("lost", &self.lost),
            ("phantom", &self.phantom),
            ("misrouted", &self.misrouted),
            ("reordered", &self.reordered),
            ("duplicate", &self.duplicate),
        ]
    }

    /// Broken promises come before emptiness: a void run with a lost envelope has failed.
    pub fn verdict(&self) -> Verdict {
        if self.kinds().iter().any(|(_, offenders)| offenders.count > 0) {
            Verdict::Failed
        } else if self.void.is_empty() {
            Verdict::Passed
        } else {
            Verdict::Void
        }
    }
}

/// Audits.
pub fn audit(history: &History) -> Audit {
    let mut audit = Audit { received: history.received.len() as u64, ..Audit::default() };
    let got = check_received(history, &mut audit);
    for (key, invoked) in &history.submits {
        for (target, fate) in &invoked.targets {
            match fate {
                Fate::Ok => {
                    audit.accepted += 1;
                    if !got.contains(&(*key, *target)) {
                        audit.lost.add(Some(*key), *target);
                    }
                }
                Fate::Fail => audit.refused += 1,
                Fate::Unknown => audit.unknown += 1,
            }
        }
    }
    audit.void = emptiness(history);
    audit
}

/// Walks the deliveries; returns who got what.
fn check_received(history: &History, audit: &mut Audit) -> BTreeSet<(SubmitKey, u32)> {
    let mut got = BTreeSet::new();
    let mut last: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    for received in &history.received {
        let Some(key) = received.key else {
            audit.phantom.add(None, received.by);
            continue;
        };
        let fate = history.submits.get(&key).map(|invoked| {
            invoked.targets.iter().find(|(target, _)| *target == received.by).map(|(_, fate)| *fate)
        });
        match fate {
            None | Some(Some(Fate::Fail)) => audit.phantom.add(Some(key), received.by),
            Some(None) => audit.misrouted.add(Some(key), received.by),
            Some(Some(Fate::Ok | Fate::Unknown)) if !received.addressed => {
                audit.misrouted.add(Some(key), received.by);
            }
            Some(Some(Fate::Ok | Fate::Unknown)) => {
                if !got.insert((key, received.by)) {
                    audit.duplicate.add(Some(key), received.by);
                    continue;
                }
                let highest = last.entry((key.sender, received.by)).or_insert(key.counter);
                if key.counter < *highest {
                    audit.reordered.add(Some(key), received.by);
                }
                *highest = key.counter.max(*highest);
            }
        }
    }
    got
}

/// Why a run proves nothing.
fn emptiness(history: &History) -> Vec<String> {
    let mut void = Vec::new();
    let hurt =
        |from: u64, to: u64| history.faults.iter().any(|fault| from <= fault.to_us && to >= fault.from_us);
    let (mut outside, mut accepted) = (0, 0);
    for invoked in history.submits.values() {
        if hurt(invoked.at_us, invoked.decided_us.unwrap_or(invoked.at_us)) {
            continue;
        }
        outside += invoked.targets.len() as u64;
        accepted += invoked.targets.iter().filter(|(_, fate)| *fate == Fate::Ok).count() as u64;
    }
    if history.submits.is_empty() {
        void.push("nothing was submitted".to_owned());
    } else if outside == 0 {
        void.push("every submit fell into a fault window: run longer or kill less often".to_owned());
    } else if accepted * 100 < outside * ACCEPTED_PERCENT_MIN {
        void.push(format!(
            "only {accepted} of {outside} entries outside of fault windows were accepted, {ACCEPTED_PERCENT_MIN} % are needed"
        ));
    }
    for (number, fault) in history.faults.iter().enumerate() {
        if fault.in_flight == 0 {
            void.push(format!("no submit was in flight at kill {}", number + 1));
        }
    }
    void
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
