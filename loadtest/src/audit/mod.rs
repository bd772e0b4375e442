//! What an audit finds, and the last word on a run. **Invariant:** a run that proves nothing is void, not passed.

mod generations;
mod ledger;

pub use ledger::{Bounds, Fate, FaultWindow, Ledger, Received, SubmitKey};

use serde::{Deserialize, Serialize};

/// Outside of fault windows at least so many of 100 submits must have been accepted.
pub const ACCEPTED_PERCENT_MIN: u64 = 90;
/// Offenders that are listed of each kind.
const LISTED_MAX: usize = 20;

/// What an audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Submits that were made, refused and undecided ones too.
    pub submits: u64,
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
    /// Entries of submits that no fault touched.
    pub outside: u64,
    /// Those of them that were accepted.
    pub accepted_outside: u64,
    /// Why the run proves nothing; empty if it does prove something.
    pub void: Vec<String>,
}

/// How many, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offenders {
    /// How many.
    pub count: u64,
    /// The first 20.
    pub first: Vec<Offender>,
}

/// One entry that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offender {
    /// Which submit; `None` if its bytes do not say.
    pub submit: Option<SubmitKey>,
    /// The user who did or should have received it.
    pub user: u32,
}

impl Offenders {
    pub(crate) fn add(&mut self, submit: Option<SubmitKey>, user: u32) {
        self.count += 1;
        if self.first.len() < LISTED_MAX {
            self.first.push(Offender { submit, user });
        }
    }
}

impl Offenders {
    fn join(&mut self, other: &Self, first: u32) {
        self.count += other.count;
        for offender in &other.first {
            if self.first.len() < LISTED_MAX {
                let submit =
                    offender.submit.map(|key| SubmitKey { sender: key.sender + first, counter: key.counter });
                self.first.push(Offender { submit, user: offender.user + first });
            }
        }
    }
}

/// The last word on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

    /// Says why the run proves nothing, if so: the last thing that is done to an audit.
    pub fn prove(&mut self, faults: &[FaultWindow]) {
        let (outside, accepted) = (self.outside, self.accepted_outside);
        if self.submits == 0 {
            self.void.push("nothing was submitted".to_owned());
        } else if outside == 0 {
            self.void.push("every submit fell into a fault window: run longer or kill less often".to_owned());
        } else if accepted * 100 < outside * ACCEPTED_PERCENT_MIN {
            self.void.push(format!(
                "only {accepted} of {outside} entries outside of fault windows were accepted, {ACCEPTED_PERCENT_MIN} % are needed"
            ));
        }
        for (number, fault) in faults.iter().enumerate().filter(|(_, fault)| fault.in_flight == 0) {
            self.void.push(format!("no submit was in flight at fault {} ({})", number + 1, fault.what));
        }
    }

    /// Adds what another worker has found, whose first user has this number.
    pub(crate) fn add(&mut self, other: &Self, first: u32) {
        self.submits += other.submits;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.received += other.received;
        self.outside += other.outside;
        self.accepted_outside += other.accepted_outside;
        self.lost.join(&other.lost, first);
        self.phantom.join(&other.phantom, first);
        self.misrouted.join(&other.misrouted, first);
        self.reordered.join(&other.reordered, first);
        self.duplicate.join(&other.duplicate, first);
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

#[cfg(test)]
mod tests;
