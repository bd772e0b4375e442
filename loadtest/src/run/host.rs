//! What lean sessions tell the run. **Invariant:** whatever came or was decided with one read is written down under one lock, before
//! any of it is acked.

use super::Run;
use super::clients::LEAN_CARRIER;
use crate::audit::SubmitKey;
use crate::lean::{Decided, Host};
use chappe_protocol::frame::Deliver;
use chappe_protocol::time::Millis;
use std::sync::atomic::Ordering;

impl Host for Run {
    fn now_us(&self) -> u64 {
        self.elapsed_us()
    }

    fn took(&self, user: u32, envelopes: &[Deliver], decided: &[Decided]) {
        let at_us = self.elapsed_us();
        // What an HMAC takes is no time to hold the lock.
        let read = |deliver: &Deliver| self.read(user, deliver.sender.as_ref(), &deliver.payload);
        let got: Vec<_> = envelopes.iter().map(read).collect();
        self.in_flight.fetch_sub(decided.len() as u64, Ordering::Relaxed);
        let mut record = self.lock();
        for got in got {
            self.note_received(&mut record, got, Some(LEAN_CARRIER), at_us);
        }
        for Decided { order, intended_us, receipt } in decided {
            let key = SubmitKey { sender: user, counter: *order };
            self.note_decided(&mut record, key, *intended_us, receipt, Some(LEAN_CARRIER), at_us);
        }
    }

    fn resumed(&self, lost_us: u64) {
        Self::resumed(self, lost_us, Some(LEAN_CARRIER));
    }

    fn pause(&self, user: u32) -> Millis {
        if !self.is_slow(user) || self.hurry.load(Ordering::Relaxed) {
            return Millis(0);
        }
        Millis(u64::try_from(self.scenario.sessions.slow_pause.as_millis()).unwrap_or(u64::MAX))
    }
}
