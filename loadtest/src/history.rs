//! What happened in a run, as the clients saw it. **Invariant:** a submit is noted before its first byte leaves.

use serde::Serialize;
use std::collections::BTreeMap;

/// One submit of one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SubmitKey {
    /// Index of the sending user.
    pub sender: u32,
    /// The sender's count.
    pub counter: u64,
}

/// The fate of a submit for one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Invoked, not decided when the run ended: may or may not arrive.
    Unknown,
    /// Accepted: must arrive.
    Ok,
    /// Finally refused: must not arrive.
    Fail,
}

/// One submit with the fate of each target.
#[derive(Debug, Clone)]
pub struct Invoked {
    /// When it was invoked, µs of the run's clock.
    pub at_us: u64,
    /// When it was decided.
    pub decided_us: Option<u64>,
    /// Target and fate.
    pub targets: Vec<(u32, Fate)>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultWindow {
    /// What was done.
    pub what: String,
    /// When it was broken, µs.
    pub from_us: u64,
    /// When it served again, plus the grace for reconnects, µs.
    pub to_us: u64,
    /// Submits that were in flight at the kill.
    pub in_flight: u64,
}

/// Everything.
#[derive(Debug, Default)]
pub struct History {
    /// All submits.
    pub submits: BTreeMap<SubmitKey, Invoked>,
    /// All deliveries to applications, in the order of each receiver.
    pub received: Vec<Received>,
    /// What we did to the server.
    pub faults: Vec<FaultWindow>,
}

impl History {
    /// Notes a submit before it leaves.
    pub fn invoke(&mut self, key: SubmitKey, at_us: u64, targets: &[u32]) {
        let targets = targets.iter().map(|target| (*target, Fate::Unknown)).collect();
        self.submits.insert(key, Invoked { at_us, decided_us: None, targets });
    }

    /// Notes the fates, in the order of the targets.
    pub fn decide(&mut self, key: SubmitKey, at_us: u64, fates: &[Fate]) {
        if let Some(invoked) = self.submits.get_mut(&key) {
            invoked.decided_us = Some(at_us);
            for ((_, fate), decided) in invoked.targets.iter_mut().zip(fates) {
                *fate = *decided;
            }
        }
    }

    /// Submits that are not decided.
    pub fn in_flight(&self) -> u64 {
        self.submits.values().filter(|invoked| invoked.decided_us.is_none()).count() as u64
    }
}
