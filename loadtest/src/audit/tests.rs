//! The ledger is checked: a good history passes, and each single mutation of it is caught as what it is.

use super::*;
use crate::measure::Phase;
use crate::pulse::Live;

/// What clients saw, one after the other.
#[derive(Debug, Clone)]
enum Seen {
    Invoked(SubmitKey, u64, Vec<u32>),
    Decided(SubmitKey, u64, Vec<Fate>),
    Got(Received),
    Broken(u64, u64, u64),
}

#[derive(Debug, Clone, Default)]
struct History(Vec<Seen>);

impl History {
    fn invoke(&mut self, key: SubmitKey, at_us: u64, targets: &[u32]) {
        self.0.push(Seen::Invoked(key, at_us, targets.to_vec()));
    }

    fn decide(&mut self, key: SubmitKey, at_us: u64, fates: &[Fate]) {
        self.0.push(Seen::Decided(key, at_us, fates.to_vec()));
    }

    fn got(&mut self, received: Received) {
        self.0.push(Seen::Got(received));
    }

    /// Something was broken all the time that follows, until its end.
    fn broken(&mut self, from_us: u64, to_us: u64, in_flight: u64) {
        self.0.insert(0, Seen::Broken(from_us, to_us, in_flight));
    }

    fn deliveries(&mut self) -> Vec<&mut Received> {
        let all = self.0.iter_mut();
        all.filter_map(|seen| if let Seen::Got(received) = seen { Some(received) } else { None }).collect()
    }

    fn drop_delivery(&mut self, index: usize) -> Received {
        let places = (0..self.0.len()).filter(|at| matches!(self.0[*at], Seen::Got(_))).collect::<Vec<_>>();
        let Seen::Got(dropped) = self.0.remove(places[index]) else { unreachable!() };
        dropped
    }
}

fn ledger(history: &History, bounds: Bounds) -> Ledger {
    let mut ledger = Ledger::new(bounds);
    for seen in &history.0 {
        match seen {
            Seen::Invoked(key, at_us, targets) => ledger.invoke(*key, *at_us, targets),
            Seen::Decided(key, at_us, fates) => ledger.decide(*key, *at_us, fates),
            Seen::Got(received) => ledger.receive(*received),
            Seen::Broken(from_us, to_us, in_flight) => {
                let number = ledger.fault_begins("kill", Phase::Fault, *from_us, *in_flight);
                ledger.fault_ends(number, *to_us);
            }
        }
    }
    ledger
}

fn counts(audit: &Audit) -> [u64; 5] {
    [&audit.lost, &audit.phantom, &audit.misrouted, &audit.reordered, &audit.duplicate].map(|kind| kind.count)
}

fn audit(history: &History) -> Audit {
    let ledger = ledger(history, Bounds::default());
    let mut audit = ledger.audit();
    audit.prove(ledger.faults());
    audit
}

/// Three users, each sends ten envelopes to the next two; all accepted, all received in order. Some arrive before their sender
/// hears that they are accepted.
fn good() -> History {
    let mut history = History::default();
    for counter in 0..10 {
        for sender in 0..3 {
            let key = SubmitKey { sender, counter };
            let targets = [(sender + 1) % 3, (sender + 2) % 3];
            history.invoke(key, counter * 10, &targets);
            history.got(Received { by: targets[0], key: Some(key), addressed: true });
            history.decide(key, counter * 10 + 5, &[Fate::Ok, Fate::Ok]);
            history.got(Received { by: targets[1], key: Some(key), addressed: true });
        }
    }
    history
}

#[test]
fn a_good_history_passes() {
    let audit = audit(&good());
    assert_eq!(counts(&audit), [0; 5]);
    assert_eq!((audit.accepted, audit.received), (60, 60));
    assert_eq!(audit.verdict(), Verdict::Passed);
}

#[test]
fn each_dropped_delivery_is_lost() {
    for index in 0..60 {
        let mut history = good();
        let dropped = history.drop_delivery(index);
        let audit = audit(&history);
        assert_eq!(counts(&audit), [1, 0, 0, 0, 0], "delivery {index}");
        assert_eq!(audit.lost.first, vec![Offender { submit: dropped.key, user: dropped.by }]);
        assert_eq!(audit.verdict(), Verdict::Failed);
    }
}

#[test]
fn each_repeated_delivery_is_a_duplicate() {
    for index in 0..60 {
        let mut history = good();
        let again = *history.deliveries()[index];
        history.got(again);
        assert_eq!(counts(&audit(&history)), [0, 0, 0, 0, 1], "delivery {index}");
    }
}

#[test]
fn each_swapped_pair_of_one_sender_is_reordered() {
    let pairs = |mut history: History| {
        let same = |a: Received, b: Received| {
            a.by == b.by && a.key.map(|key| key.sender) == b.key.map(|key| key.sender)
        };
        let all: Vec<Received> = history.deliveries().into_iter().map(|received| *received).collect();
        let next = |i: usize| (i + 1..all.len()).find(|j| same(all[i], all[*j]));
        (0..all.len()).filter_map(|i| Some((i, next(i)?))).collect::<Vec<_>>()
    };
    let swaps = pairs(good());
    assert_eq!(swaps.len(), 54);
    for (a, b) in swaps {
        let mut history = good();
        // Both were sent before either came: what is received before it was sent is a phantom.
        history.0.sort_by_key(|seen| matches!(seen, Seen::Got(_)));
        let mut all = history.deliveries();
        let (first, second) = (*all[a], *all[b]);
        (*all[a], *all[b]) = (second, first);
        assert_eq!(counts(&audit(&history)), [0, 0, 0, 1, 0], "swap {a} {b}");
    }
}

#[test]
fn each_misrouted_delivery_is_misrouted_and_lost() {
    for index in 0..60 {
        let mut history = good();
        let mut all = history.deliveries();
        all[index].by = all[index].key.unwrap().sender;
        all[index].addressed = false;
        assert_eq!(counts(&audit(&history)), [1, 0, 1, 0, 0], "delivery {index}");
    }
}

#[test]
fn what_was_never_sent_or_was_refused_or_changed_is_a_phantom() {
    let mut history = good();
    history.got(Received { by: 0, key: None, addressed: false });
    let never = SubmitKey { sender: 1, counter: 99 };
    history.got(Received { by: 0, key: Some(never), addressed: true });
    let refused = SubmitKey { sender: 2, counter: 100 };
    history.invoke(refused, 0, &[0]);
    history.decide(refused, 1, &[Fate::Fail]);
    history.got(Received { by: 0, key: Some(refused), addressed: true });
    let early = SubmitKey { sender: 2, counter: 101 };
    history.invoke(early, 0, &[0]);
    history.got(Received { by: 0, key: Some(early), addressed: true });
    history.decide(early, 1, &[Fate::Fail]);
    assert_eq!(counts(&audit(&history)), [0, 4, 0, 0, 0]);
}

#[test]
fn an_unknown_may_arrive_or_not() {
    for arrives in [false, true] {
        let mut history = good();
        let key = SubmitKey { sender: 0, counter: 10 };
        history.invoke(key, 100, &[1]);
        if arrives {
            history.got(Received { by: 1, key: Some(key), addressed: true });
        }
        let audit = audit(&history);
        assert_eq!((counts(&audit), audit.unknown), ([0; 5], 1));
        assert_eq!(audit.verdict(), Verdict::Passed);
    }
}

#[test]
fn a_run_that_proves_nothing_is_void() {
    assert_eq!(audit(&History::default()).verdict(), Verdict::Void);

    let mut refused = good();
    for seen in refused.0.iter_mut().skip(20) {
        if let Seen::Decided(_, _, fates) = seen {
            fates.fill(Fate::Unknown);
        }
    }
    assert_eq!(audit(&refused).verdict(), Verdict::Void);

    for (in_flight, verdict) in [(0, Verdict::Void), (1, Verdict::Passed)] {
        let mut killed = good();
        killed.broken(21, 24, in_flight);
        assert_eq!(audit(&killed).verdict(), verdict);
    }

    let mut all_hurt = good();
    all_hurt.broken(0, 1000, 5);
    assert_eq!(audit(&all_hurt).verdict(), Verdict::Void);
}

#[test]
fn a_void_run_with_a_lost_envelope_has_failed() {
    let mut history = good();
    history.broken(21, 24, 0);
    history.drop_delivery(3);
    assert_eq!(audit(&history).verdict(), Verdict::Failed);
}

#[test]
fn undecided_submits_outside_of_fault_windows_count_against_acceptance_but_hurt_ones_do_not() {
    let mut history = good();
    for counter in 10..20 {
        history.invoke(SubmitKey { sender: 0, counter }, 1000 + counter, &[1]);
    }
    assert_eq!(audit(&history).verdict(), Verdict::Void);
    history.broken(1000, 2000, 3);
    assert_eq!(audit(&history).verdict(), Verdict::Passed);
}

#[test]
fn a_fault_that_lasts_is_one_until_it_ends() {
    let mut ledger = Ledger::default();
    let number = ledger.fault_begins("pause", Phase::Drain, 100, 1);
    assert_eq!((ledger.trouble(500, 600), ledger.trouble(0, 99)), (Some(Phase::Drain), None));
    ledger.fault_ends(number, 300);
    assert_eq!((ledger.trouble(500, 600), ledger.trouble(250, 600)), (None, Some(Phase::Drain)));
}

#[test]
fn what_is_closed_is_forgotten_and_still_known_for_what_it_was() {
    let small = Bounds { open: 8, closed: 16 };
    let mut ledger = Ledger::new(small);
    let key = |counter| SubmitKey { sender: 1, counter };
    let got = |counter| Received { by: 2, key: Some(key(counter)), addressed: true };
    for counter in 0..10_000 {
        assert!(ledger.has_room());
        ledger.invoke(key(counter), counter, &[2, 3]);
        ledger.decide(key(counter), counter, &[Fate::Ok, Fate::Fail]);
        ledger.receive(got(counter));
    }
    assert!(ledger.open() == 0);
    assert_eq!(counts(&ledger.audit()), [0; 5]);
    ledger.receive(got(17));
    assert_eq!(counts(&ledger.audit()), [0, 0, 0, 0, 1], "long closed: it was received");
    ledger.receive(Received { by: 3, ..got(9_999) });
    assert_eq!(counts(&ledger.audit()), [0, 1, 0, 0, 1], "it was refused");
    ledger.receive(Received { by: 4, addressed: false, ..got(17) });
    assert_eq!(counts(&ledger.audit()), [0, 1, 1, 0, 1]);
}

#[test]
fn what_nobody_knows_is_not_waited_for_without_end_and_may_come_late() {
    let mut ledger = Ledger::new(Bounds { open: 100, closed: 16 });
    let key = |counter| SubmitKey { sender: 1, counter };
    for counter in 0..40 {
        ledger.invoke(key(counter), counter, &[2]);
        ledger.decide(key(counter), counter, &[Fate::Unknown]);
    }
    assert_eq!(ledger.open(), 16);
    let late = Received { by: 2, key: Some(key(20)), addressed: true };
    ledger.receive(late);
    assert_eq!((counts(&ledger.audit()), ledger.audit().unknown), ([0; 5], 40));
    ledger.receive(late);
    assert_eq!(counts(&ledger.audit()), [0, 0, 0, 0, 1]);
}

#[test]
fn it_says_when_it_is_full() {
    let mut ledger = Ledger::new(Bounds { open: 2, closed: 2 });
    for counter in 0..2 {
        assert!(ledger.has_room());
        ledger.invoke(SubmitKey { sender: 0, counter }, 0, &[1]);
    }
    assert!(!ledger.has_room());
    assert_eq!((ledger.undecided(), ledger.missing()), (2, 0));
    ledger.decide(SubmitKey { sender: 0, counter: 0 }, 1, &[Fate::Ok]);
    assert_eq!((ledger.undecided(), ledger.missing()), (1, 1));
}

#[test]
fn two_workers_are_one_run_and_their_users_keep_their_numbers() {
    let mut lost = good();
    lost.drop_delivery(7);
    let again = *lost.deliveries()[0];
    lost.got(again);
    let (mut one, two) = (audit(&good()), audit(&lost));
    one.void.clear();
    one.add(&two, 100);
    assert_eq!((one.accepted, one.received), (120, 120));
    assert_eq!(counts(&one), [1, 0, 0, 0, 1]);
    let (a, b) = (&one.lost.first[0], &two.lost.first[0]);
    assert_eq!((a.user, a.submit.unwrap().sender), (b.user + 100, b.submit.unwrap().sender + 100));
    one.prove(&[]);
    assert!(one.void.is_empty());
}

#[test]
fn what_overtakes_several_is_told_for_each_of_them() {
    let mut ledger = Ledger::default();
    let key = |counter| SubmitKey { sender: 0, counter };
    (0..4).for_each(|counter| ledger.invoke(key(counter), counter, &[1]));
    for counter in [0, 3, 1, 2] {
        ledger.receive(Received { by: 1, key: Some(key(counter)), addressed: true });
    }
    assert_eq!(counts(&ledger.audit()), [0, 0, 0, 2, 0]);
}

#[test]
fn somebody_whom_it_was_not_sent_to_is_told_whatever_its_bytes_say() {
    let mut ledger = Ledger::default();
    let key = SubmitKey { sender: 0, counter: 0 };
    ledger.invoke(key, 0, &[1]);
    ledger.receive(Received { by: 2, key: Some(key), addressed: true });
    assert_eq!(counts(&ledger.audit()), [0, 0, 1, 0, 0]);
}

#[test]
fn what_was_decided_in_a_fault_counts_neither_way() {
    let mut history = good();
    for counter in 10..40 {
        let key = SubmitKey { sender: 0, counter };
        history.invoke(key, 1000 + counter, &[1]);
        history.decide(key, 1500, &[Fate::Unknown]);
    }
    assert_eq!(audit(&history).verdict(), Verdict::Void, "a third was not accepted");
    history.broken(1000, 2000, 3);
    assert_eq!(audit(&history).verdict(), Verdict::Passed, "for a reason");
}

#[test]
fn what_is_missing_is_known_at_any_time() {
    let mut ledger = Ledger::default();
    let key = |counter| SubmitKey { sender: 0, counter };
    let mut seen = Vec::new();
    for counter in 0..2 {
        ledger.invoke(key(counter), 0, &[1]);
        let receive = Received { by: 1, key: Some(key(counter)), addressed: true };
        // The first arrives before its sender hears of it, the second behind.
        if counter == 0 {
            ledger.receive(receive);
        }
        ledger.decide(key(counter), 1, &[Fate::Ok]);
        seen.push(ledger.missing());
        if counter == 1 {
            ledger.receive(receive);
        }
    }
    seen.push(ledger.missing());
    assert_eq!(seen, [0, 1, 0]);
    assert_eq!(ledger.live(), Live { submits: 2, accepted: 2, received: 2, ..Live::default() });
}

#[test]
fn of_two_faults_at_once_the_later_gives_the_phase() {
    let mut ledger = Ledger::default();
    ledger.fault_begins("kill", Phase::Fault, 100, 1);
    ledger.fault_begins("storm", Phase::Storm, 200, 1);
    assert_eq!(
        (ledger.trouble(150, 160), ledger.trouble(150, 300)),
        (Some(Phase::Fault), Some(Phase::Storm))
    );
}
