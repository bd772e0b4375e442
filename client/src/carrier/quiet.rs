//! Whether a path swallows what is sent. **Invariant:** pure; only what the other end must acknowledge (RFC 9000 §13.2)
//! counts as sent, and any packet from it as an answer.

/// Time between two looks, milliseconds.
pub(crate) const LOOK_MS: u64 = 250;
/// So many looks in a row without an answer, and the path is a black hole: 5 s.
const SILENT_LOOKS_MAX: u32 = 20;
/// After a write it is looked so many times, 3 s: a packet that was lost is sent again within that.
const LOOKS: u32 = 12;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    /// Packets that had come at the last look that found a new one.
    heard: u64,
    /// What had been sent then.
    sent: u64,
    silent_looks: u32,
    looks_left: u32,
}

impl Quiet {
    /// Something is being written.
    pub(crate) fn on_write(&mut self) {
        self.looks_left = LOOKS;
    }

    /// Nothing is unanswered and nothing was written lately: no look is needed.
    pub(crate) fn is_resting(&self) -> bool {
        self.looks_left == 0 && self.silent_looks == 0
    }

    /// Looks: so many packets have come, so many frames that are to be acknowledged were sent. Returns whether the path is dead.
    pub(crate) fn look(&mut self, heard: u64, sent: u64) -> bool {
        self.looks_left = self.looks_left.saturating_sub(1);
        if heard != self.heard {
            (self.heard, self.sent, self.silent_looks) = (heard, sent, 0);
        } else if sent > self.sent {
            self.silent_looks += 1;
        }
        self.silent_looks >= SILENT_LOOKS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_seconds_after_something_was_sent_and_nothing_came_the_path_is_dead() {
        let mut quiet = Quiet::default();
        assert!(quiet.is_resting());
        quiet.on_write();
        assert!(!quiet.look(3, 2), "the first packets");
        for look in 1..20 {
            assert!(!quiet.look(3, 3), "look {look}");
        }
        assert!(quiet.look(3, 3));
    }

    #[test]
    fn any_packet_saves_it_and_silence_without_a_question_is_none() {
        let mut quiet = Quiet::default();
        quiet.on_write();
        quiet.look(1, 1);
        for look in 0..100 {
            let answered: u64 = look / 19;
            assert!(!quiet.look(1 + answered, 2 + answered), "look {look}");
        }
        let mut quiet = Quiet::default();
        quiet.on_write();
        for _ in 0..100 {
            assert!(!quiet.look(7, 7), "everything was answered");
        }
        assert!(quiet.is_resting(), "and nobody looks any more");
    }

    #[test]
    fn a_packet_that_was_on_its_way_hides_the_silence_only_until_the_question_is_repeated() {
        let mut quiet = Quiet::default();
        quiet.on_write();
        quiet.look(5, 10);
        for _ in 0..8 {
            assert!(!quiet.look(5, 10));
        }
        assert!(!quiet.is_resting());
        let dead = (0..20).find(|_| quiet.look(5, 11));
        assert_eq!(dead, Some(19));
    }
}
