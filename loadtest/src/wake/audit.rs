//! Judges who was woken, when and how often. **Invariant:** pure; what it finds follows from what was noted, and a device
//! of which nothing can be said is not judged.
//!
//! P6 and I10: from the acceptance of an envelope its device has 30 s to take it, or the provider is asked to wake it. And no
//! wake without need: none after the ack, none twice for the same but by the schedule of repeats.

use crate::audit::{SubmitKey, Verdict};
use crate::measure::Latency;
use serde::{Deserialize, Serialize};

/// How long nobody counts against a device or a server what crossed on the way.
const CROSSING_MS: u64 = 5_000;
/// A wake may be for an envelope that its pusher did not see yet when it gave the one before.
const UNSEEN_MS: u64 = 2_000;
/// The first repeat of a wake comes after 30 s; earlier than this is none.
const REPEAT_MS: u64 = 28_500;
/// Faults hurt a while longer than they last.
const GRACE_MS: u64 = 5_000;
/// Offenders that are listed of each kind.
const LISTED_MAX: usize = 20;

/// An accepted envelope for a device. Times are milliseconds since 1970, of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Which.
    pub key: SubmitKey,
    /// When it left its sender.
    pub sent_ms: u64,
    /// When its sender heard that it is accepted.
    pub accepted_ms: u64,
    /// When the device had it.
    pub received_ms: Option<u64>,
}

/// A request of the pusher at the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// When it came.
    pub at_ms: u64,
    /// The provider took it.
    pub taken: bool,
}

/// What one device lived through, each list in the order of time.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// What was for it.
    pub sent: Vec<Sent>,
    /// How it was woken.
    pub attempts: Vec<Attempt>,
    /// When it was there: from its first knock to its goodbye, or to its silence.
    pub sessions: Vec<(u64, u64)>,
}

/// By what is judged.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// From the acceptance to the attempt, milliseconds.
    pub bound_ms: u64,
    /// When the audit was made: what was due later is not judged.
    pub end_ms: u64,
    /// When something was broken on purpose.
    pub faults: Vec<(u64, u64)>,
}

/// A device and a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offender {
    /// Which device.
    pub device: u32,
    /// Of the envelope's acceptance, or of the wake; milliseconds since 1970.
    pub at_ms: u64,
    /// How long after the acceptance an attempt came, milliseconds.
    pub after_ms: Option<u64>,
}

impl Offender {
    /// For people.
    pub fn told(&self) -> String {
        let after = self.after_ms.map_or_else(String::new, |ms| format!(", woken {ms} ms after it"));
        format!("device {}, at {} (ms since 1970){after}", self.device, self.at_ms)
    }
}

/// How many, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offenders {
    /// How many.
    pub count: u64,
    /// The first 20.
    pub first: Vec<Offender>,
}

impl Offenders {
    fn add(&mut self, device: u32, at_ms: u64, after_ms: Option<u64>) {
        self.count += 1;
        if self.first.len() < LISTED_MAX {
            self.first.push(Offender { device, at_ms, after_ms });
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct WakeAudit {
    /// Envelopes for devices that slept or were silent when they were accepted.
    pub asleep: u64,
    /// Requests at the provider.
    pub attempts: u64,
    /// Taken by it.
    pub taken: u64,
    /// Taken, and the device had everything a moment before: it crossed on the way.
    pub noise: u64,
    /// Second wakes that a fault explains.
    pub excused: u64,
    /// Neither taken by the device nor any attempt, within the bound; an attempt came later.
    pub late: Offenders,
    /// The same, and no attempt came at all.
    pub never: Offenders,
    /// Woken though it had everything.
    pub after_ack: Offenders,
    /// Woken again for the same, before the first repeat is due.
    pub extra: Offenders,
    /// Requests for a token that no device here has.
    pub strangers: u64,
    /// Envelopes that came again, since their ack went down with what was killed.
    pub again: u64,
    /// From the acceptance to the first attempt, of those asleep.
    pub latency: Latency,
    /// The same, each, µs.
    #[serde(skip)]
    pub(super) latencies_us: Vec<u64>,
}

impl WakeAudit {
    /// The kinds of findings, by name.
    pub fn kinds(&self) -> [(&'static str, &Offenders); 4] {
        [
            ("late", &self.late),
            ("never", &self.never),
            ("after the ack", &self.after_ack),
            ("extra", &self.extra),
        ]
    }

    /// Whether every promise was kept; a run in which nobody slept proves nothing.
    pub fn verdict(&self) -> Verdict {
        if self.strangers > 0 || self.kinds().iter().any(|(_, offenders)| offenders.count > 0) {
            Verdict::Failed
        } else if self.asleep == 0 {
            Verdict::Void
        } else {
            Verdict::Passed
        }
    }

    /// Judges one device.
    pub fn judge(&mut self, device: u32, life: &Life, rules: &Rules) {
        for sent in &life.sent {
            self.judge_sent(device, sent, life, rules);
        }
        let mut before: Option<u64> = None;
        let mut excuses = rules.faults.clone();
        for attempt in &life.attempts {
            self.attempts += 1;
            self.judge_need(device, attempt.at_ms, life, rules);
            if !attempt.taken {
                continue;
            }
            self.taken += 1;
            if before.is_some_and(|before| is_again(life, before, attempt.at_ms)) {
                let from = before.unwrap_or(attempt.at_ms);
                // Of each fault, one wake too many.
                match excuses.iter().position(|fault| meets(*fault, from, attempt.at_ms)) {
                    Some(fault) => {
                        excuses.remove(fault);
                        self.excused += 1;
                    }
                    None => self.extra.add(device, attempt.at_ms, None),
                }
            }
            before = Some(attempt.at_ms);
        }
    }

    fn judge_sent(&mut self, device: u32, sent: &Sent, life: &Life, rules: &Rules) {
        let slept = !life.sessions.iter().any(|(from, to)| *from <= sent.accepted_ms && sent.sent_ms <= *to);
        self.asleep += u64::from(slept);
        let deadline = sent.accepted_ms + rules.bound_ms;
        let attempt = life.attempts.iter().map(|attempt| attempt.at_ms).find(|at| *at >= sent.sent_ms);
        if slept && let Some(at) = attempt.filter(|at| *at <= deadline) {
            self.latencies_us.push(at.saturating_sub(sent.accepted_ms) * 1000);
        }
        let served = sent.received_ms.is_some_and(|at| at <= deadline);
        if served || attempt.is_some_and(|at| at <= deadline) || deadline >= rules.end_ms {
            return;
        }
        match attempt {
            Some(at) => self.late.add(device, sent.accepted_ms, Some(at.saturating_sub(sent.accepted_ms))),
            None => self.never.add(device, sent.accepted_ms, None),
        }
    }

    fn judge_need(&mut self, device: u32, at_ms: u64, life: &Life, rules: &Rules) {
        let known = || life.sent.iter().filter(move |sent| sent.sent_ms <= at_ms);
        let open = |since: u64| known().any(|sent| sent.received_ms.is_none_or(|got| got >= since));
        if open(at_ms) {
            return;
        }
        if open(at_ms.saturating_sub(CROSSING_MS)) {
            self.noise += 1;
        } else if rules.faults.iter().any(|fault| meets(*fault, at_ms.saturating_sub(rules.bound_ms), at_ms))
        {
            // The ack, or the trace of the wake before, went down with what was killed.
            self.excused += 1;
        } else {
            self.after_ack.add(device, at_ms, None);
        }
    }
}

/// Whether a wake is for nothing that the one before was not for.
fn is_again(life: &Life, before: u64, at_ms: u64) -> bool {
    let came = |(from, to): &(u64, u64)| *from <= at_ms && *to >= before;
    let apart = at_ms - before;
    // Who comes at once is not seen to have come: two wakes of one moment are two, however quick the device.
    if apart >= REPEAT_MS || (apart >= CROSSING_MS && life.sessions.iter().any(came)) {
        return false;
    }
    let open = life.sent.iter().filter(|sent| sent.received_ms.is_none_or(|got| got >= before));
    let (mut seen, mut unseen) = (0, 0);
    for sent in open.filter(|sent| sent.sent_ms <= at_ms) {
        if sent.sent_ms > before {
            return false;
        }
        *(if sent.accepted_ms + UNSEEN_MS < before { &mut seen } else { &mut unseen }) += 1;
    }
    // The wake before was for one of them at least; what came just before it may not have been among them.
    unseen == 0 || seen + unseen < 2
}

fn meets((from, to): (u64, u64), begin: u64, end: u64) -> bool {
    from <= end && to + GRACE_MS >= begin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules { bound_ms: 30_000, end_ms: 1_000_000, faults: Vec::new() }
    }

    fn sent(at_ms: u64, received_ms: Option<u64>) -> Sent {
        let key = SubmitKey { sender: 1, counter: at_ms };
        Sent { key, sent_ms: at_ms, accepted_ms: at_ms + 5, received_ms }
    }

    fn taken(at_ms: u64) -> Attempt {
        Attempt { at_ms, taken: true }
    }

    fn judged(life: &Life, rules: &Rules) -> WakeAudit {
        let mut audit = WakeAudit::default();
        audit.judge(7, life, rules);
        audit
    }

    /// Asleep, woken 100 ms after the acceptance, there, and asleep again.
    fn good() -> Life {
        Life {
            sent: vec![sent(100_000, Some(100_400))],
            attempts: vec![taken(100_105)],
            sessions: vec![(1_000, 2_000), (100_200, 101_000)],
        }
    }

    #[test]
    fn one_who_is_woken_comes_and_sleeps_again_is_as_it_should_be() {
        let audit = judged(&good(), &rules());
        assert_eq!(audit.verdict(), Verdict::Passed);
        assert_eq!((audit.asleep, audit.attempts, audit.taken, audit.noise), (1, 1, 1, 0));
        assert_eq!(audit.latencies_us, [100_000]);
    }

    #[test]
    fn one_who_is_woken_too_late_or_never_is_found() {
        let mut life = good();
        life.sent[0].received_ms = Some(140_000);
        life.attempts[0].at_ms = 130_006;
        assert_eq!(
            judged(&life, &rules()).late.first,
            [Offender { device: 7, at_ms: 100_005, after_ms: Some(30_001) }]
        );
        life.attempts[0].at_ms = 130_005;
        assert_eq!(judged(&life, &rules()).verdict(), Verdict::Passed, "on the bound");
        life.attempts.clear();
        assert_eq!(judged(&life, &rules()).never.count, 1);
        life.sent[0].received_ms = None;
        assert_eq!(judged(&life, &rules()).never.count, 1);
        // An attempt that the provider did not take is one all the same.
        life.attempts = vec![Attempt { at_ms: 101_000, taken: false }];
        assert_eq!(judged(&life, &rules()).never.count, 0);
        life.attempts.clear();
        let early = Rules { end_ms: 130_005, ..rules() };
        assert_eq!(judged(&life, &early).verdict(), Verdict::Passed, "nobody knows yet");
        // A wake that was before the envelope is not for it.
        life.attempts = vec![taken(99_000)];
        assert_eq!(judged(&life, &rules()).never.count, 1);
    }

    #[test]
    fn one_who_is_there_needs_no_wake_and_nobody_asleep_proves_nothing() {
        let mut life = good();
        life.attempts.clear();
        life.sessions = vec![(90_000, 110_000)];
        let audit = judged(&life, &rules());
        assert_eq!((audit.never.count, audit.asleep, audit.verdict()), (0, 0, Verdict::Void));
        life.sent[0].received_ms = Some(130_006);
        assert_eq!(judged(&life, &rules()).never.count, 1, "attached, and not served");
    }

    #[test]
    fn a_wake_for_nothing_is_found_unless_it_crossed_or_a_fault_explains_it() {
        let mut life = good();
        life.attempts.push(taken(104_000));
        let audit = judged(&life, &rules());
        assert_eq!((audit.noise, audit.after_ack.count), (1, 0));
        life.attempts[1].at_ms = 106_000;
        let audit = judged(&life, &rules());
        assert_eq!((audit.noise, audit.after_ack.count), (0, 1));
        let broken = Rules { faults: vec![(100_500, 101_000)], ..rules() };
        let audit = judged(&life, &broken);
        assert_eq!((audit.excused, audit.after_ack.count), (1, 0));
        let long_ago = Rules { faults: vec![(10_000, 20_000)], ..rules() };
        assert_eq!(judged(&life, &long_ago).after_ack.count, 1);
    }

    #[test]
    fn a_second_wake_for_the_same_is_found_and_one_of_each_fault_is_excused() {
        let mut life = good();
        life.sessions.pop();
        life.sent[0].received_ms = Some(180_000);
        life.attempts.push(taken(110_000));
        assert_eq!(
            judged(&life, &rules()).extra.first,
            [Offender { device: 7, at_ms: 110_000, after_ms: None }]
        );
        let broken = Rules { faults: vec![(105_000, 106_000)], ..rules() };
        assert_eq!(judged(&life, &broken).extra.count, 0);
        life.attempts.push(taken(111_000));
        let audit = judged(&life, &broken);
        assert_eq!((audit.extra.count, audit.excused), (1, 1), "at most one");
        // The first repeat, something new, and a device that came are reasons.
        life.attempts = vec![taken(100_105), taken(130_200)];
        assert_eq!(judged(&life, &rules()).extra.count, 0);
        life.attempts = vec![taken(100_105), taken(110_200)];
        life.sent.push(sent(109_000, Some(180_000)));
        assert_eq!(judged(&life, &rules()).extra.count, 0);
        life.sent.pop();
        life.sessions.push((105_000, 106_000));
        assert_eq!(judged(&life, &rules()).extra.count, 0);
    }

    #[test]
    fn two_wakes_of_one_moment_are_found_however_quickly_the_device_comes() {
        let mut life = good();
        life.sessions[1].0 = 100_106;
        life.attempts.push(taken(100_108));
        assert_eq!(judged(&life, &rules()).extra.count, 1, "it was on its way");
        life.sent[0].received_ms = Some(100_107);
        let audit = judged(&life, &rules());
        assert_eq!((audit.extra.count, audit.noise), (1, 1), "it had everything");
        life.sent.push(sent(100_106, Some(100_400)));
        assert_eq!(judged(&life, &rules()).extra.count, 0, "there was more");
    }

    #[test]
    fn a_stranger_is_a_finding() {
        let mut audit = judged(&good(), &rules());
        audit.strangers = 1;
        assert_eq!(audit.verdict(), Verdict::Failed);
    }
}
