//! The end of a walk: the faults stop, everything comes to rest, and what was promised is counted.

use crate::walk::Walk;
use crate::wire::Up;
use chappe_protocol::envelope::SlotBody;
use chappe_protocol::id::Seq;
use chappe_protocol::time::Millis;

impl Walk {
    /// The faults end, but no doorbell ever arrives again: probes alone must bring everything to rest.
    pub(crate) fn heal(&mut self) {
        self.bells.clear();
        for at in 0..self.devices.len() {
            // Half of the sockets that stand go on as they are; what the app let go of needs a new one.
            let device = &mut self.devices[at];
            let stands = device.current.is_some_and(|at| device.wires[at].session.closing().is_none());
            if stands && !device.let_go && self.rng.percent(50) {
                let current = device.wires.swap_remove(device.current.unwrap());
                device.wires = vec![current];
                device.current = Some(0);
                self.counters.healed_standing += 1;
            } else {
                device.cut(true);
                device.wires.clear();
                self.connect(at);
            }
        }
        for round in 0.. {
            assert!(round < 4000, "it does not come to rest");
            self.now = self.now + Millis(500);
            let mut rest = true;
            for at in 0..self.devices.len() {
                let head = self.model.head();
                let device = &mut self.devices[at];
                let wire = device.wires.last_mut().unwrap();
                wire.session.on_head(self.now, head);
                wire.arrive(self.now, Up::Ping(9), false);
                while wire.poll_frame(self.now, &self.model, &mut self.counters) {}
                while device.take_frame(&self.model, &mut self.counters) {}
                // What the app let go of needs one more connect.
                while !device.held.is_empty() {
                    device.app_ack(0, &self.model);
                }
                device.send_ack(&mut self.rng);
                let wire = device.wires.last_mut().unwrap();
                while let Some(frame) = wire.up.pop_front() {
                    wire.arrive(self.now, frame, false);
                }
                wire.tick(self.now, &mut self.counters);
                while wire.poll_action(self.now, &mut self.counters) {}
                wire.check(&self.model, &mut self.counters);
                assert!(wire.closed.is_none(), "closed when all was well");
                rest &= wire.session.is_idle() && wire.session.cursor() == head && wire.backlog_end;
            }
            if rest {
                break;
            }
            self.answer_read(true);
            self.answer_advance(true);
        }
        self.assert_delivered();
    }

    /// I1, P2: what targets a device and can still be delivered has reached its app, and was acked once; the cursor says so.
    fn assert_delivered(&self) {
        for device in &self.devices {
            assert_eq!(device.model.cursor, self.model.head(), "the stored cursor is at the head");
            assert_eq!(device.receiver.open(), 0, "nothing is open");
            for seq in (device.model.since.0 + 1..=self.model.head().0).map(Seq) {
                if !self.model.targets(&device.model, seq) {
                    continue;
                }
                let slot = self.model.slot(seq).unwrap();
                let kept = matches!(slot.body, SlotBody::Present(_)) && seq > self.model.floor();
                let acked = device.acked.contains(&slot.envelope_id);
                assert!(acked || (!kept && device.was_told_gone(seq)), "slot {seq} did not reach the app");
            }
        }
    }
}
