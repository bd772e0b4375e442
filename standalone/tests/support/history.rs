//! What happened in a simulation, kept whole, since what was told as gone is excused at the end. **Invariant:** a submit is noted
//! before its first byte leaves.

use chappe_loadtest::audit::{Audit, Fate, Ledger, Received, SubmitKey};
use std::collections::BTreeMap;

/// One submit with the fate of each target.
#[derive(Debug, Clone)]
pub(crate) struct Invoked {
    at_us: u64,
    /// When it was decided.
    pub(crate) decided_us: Option<u64>,
    /// Target and fate.
    pub(crate) targets: Vec<(u32, Fate)>,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// All submits.
    pub(crate) submits: BTreeMap<SubmitKey, Invoked>,
    /// All deliveries to applications, in the order of each receiver.
    pub(crate) received: Vec<Received>,
}

impl History {
    /// Notes a submit before it leaves.
    pub(crate) fn invoke(&mut self, key: SubmitKey, at_us: u64, targets: &[u32]) {
        let targets = targets.iter().map(|target| (*target, Fate::Unknown)).collect();
        self.submits.insert(key, Invoked { at_us, decided_us: None, targets });
    }

    /// Notes the fates, in the order of the targets.
    pub(crate) fn decide(&mut self, key: SubmitKey, at_us: u64, fates: &[Fate]) {
        if let Some(invoked) = self.submits.get_mut(&key) {
            invoked.decided_us = Some(at_us);
            for ((_, fate), decided) in invoked.targets.iter_mut().zip(fates) {
                *fate = *decided;
            }
        }
    }

    /// Submits that are not decided.
    pub(crate) fn in_flight(&self) -> u64 {
        self.submits.values().filter(|invoked| invoked.decided_us.is_none()).count() as u64
    }

    /// Judged by the ledger of the load harness.
    pub(crate) fn audit(&self) -> Audit {
        let mut ledger = Ledger::default();
        for (key, invoked) in &self.submits {
            let targets: Vec<u32> = invoked.targets.iter().map(|(target, _)| *target).collect();
            ledger.invoke(*key, invoked.at_us, &targets);
            if let Some(decided_us) = invoked.decided_us {
                let fates: Vec<Fate> = invoked.targets.iter().map(|(_, fate)| *fate).collect();
                ledger.decide(*key, decided_us, &fates);
            }
        }
        self.received.iter().for_each(|received| ledger.receive(*received));
        ledger.audit()
    }
}
