//! The checker is checked: a good history passes, and each single mutation of it is caught as what it is.

use super::*;
use crate::history::{FaultWindow, Received};

/// Three users, each sends ten envelopes to the next two; all accepted, all received in order.
fn good() -> History {
    let mut history = History::default();
    for counter in 0..10 {
        for sender in 0..3 {
            let key = SubmitKey { sender, counter };
            let targets = [(sender + 1) % 3, (sender + 2) % 3];
            history.invoke(key, counter * 10, &targets);
            history.decide(key, counter * 10 + 5, &[Fate::Ok, Fate::Ok]);
            for by in targets {
                history.received.push(Received { by, key: Some(key), addressed: true });
            }
        }
    }
    history
}

fn counts(audit: &Audit) -> [u64; 5] {
    [&audit.lost, &audit.phantom, &audit.misrouted, &audit.reordered, &audit.duplicate].map(|kind| kind.count)
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
        let dropped = history.received.remove(index);
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
        let again = history.received[index];
        history.received.push(again);
        assert_eq!(counts(&audit(&history)), [0, 0, 0, 0, 1], "delivery {index}");
    }
}

#[test]
fn each_swapped_pair_of_one_sender_is_reordered() {
    let pairs = |history: &History| {
        let same = |a: Received, b: Received| {
            a.by == b.by && a.key.map(|key| key.sender) == b.key.map(|key| key.sender)
        };
        let all = &history.received;
        let next = |i: usize| (i + 1..all.len()).find(|j| same(all[i], all[*j]));
        (0..all.len()).filter_map(|i| Some((i, next(i)?))).collect::<Vec<_>>()
    };
    let swaps = pairs(&good());
    assert_eq!(swaps.len(), 54);
    for (a, b) in swaps {
        let mut history = good();
        history.received.swap(a, b);
        assert_eq!(counts(&audit(&history)), [0, 0, 0, 1, 0], "swap {a} {b}");
    }
}

#[test]
fn each_misrouted_delivery_is_misrouted_and_lost() {
    for index in 0..60 {
        let mut history = good();
        let sender = history.received[index].key.unwrap().sender;
        history.received[index].by = sender;
        history.received[index].addressed = false;
        assert_eq!(counts(&audit(&history)), [1, 0, 1, 0, 0], "delivery {index}");
    }
}

#[test]
fn what_was_never_sent_or_was_refused_or_changed_is_a_phantom() {
    let mut history = good();
    history.received.push(Received { by: 0, key: None, addressed: false });
    let never = SubmitKey { sender: 1, counter: 99 };
    history.received.push(Received { by: 0, key: Some(never), addressed: true });
    let refused = SubmitKey { sender: 2, counter: 100 };
    history.invoke(refused, 0, &[0]);
    history.decide(refused, 1, &[Fate::Fail]);
    history.received.push(Received { by: 0, key: Some(refused), addressed: true });
    assert_eq!(counts(&audit(&history)), [0, 3, 0, 0, 0]);
}

#[test]
fn an_unknown_may_arrive_or_not() {
    for arrives in [false, true] {
        let mut history = good();
        let key = SubmitKey { sender: 0, counter: 10 };
        history.invoke(key, 100, &[1]);
        if arrives {
            history.received.push(Received { by: 1, key: Some(key), addressed: true });
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
    for invoked in refused.submits.values_mut().skip(20) {
        invoked.targets.iter_mut().for_each(|(_, fate)| *fate = Fate::Unknown);
    }
    assert_eq!(audit(&refused).verdict(), Verdict::Void);

    let mut idle_kill = good();
    idle_kill.faults.push(FaultWindow { what: "kill".into(), from_us: 21, to_us: 24, in_flight: 0 });
    assert_eq!(audit(&idle_kill).verdict(), Verdict::Void);
    idle_kill.faults[0].in_flight = 1;
    assert_eq!(audit(&idle_kill).verdict(), Verdict::Passed);

    let mut all_hurt = good();
    all_hurt.faults.push(FaultWindow { what: "kill".into(), from_us: 0, to_us: 1000, in_flight: 5 });
    assert_eq!(audit(&all_hurt).verdict(), Verdict::Void);
}

#[test]
fn a_void_run_with_a_lost_envelope_has_failed() {
    let mut history = good();
    history.faults.push(FaultWindow { what: "kill".into(), from_us: 21, to_us: 24, in_flight: 0 });
    history.received.remove(3);
    assert_eq!(audit(&history).verdict(), Verdict::Failed);
}

#[test]
fn undecided_submits_outside_of_fault_windows_count_against_acceptance_but_hurt_ones_do_not() {
    let mut history = good();
    for counter in 10..20 {
        history.invoke(SubmitKey { sender: 0, counter }, 1000 + counter, &[1]);
    }
    assert_eq!(audit(&history).verdict(), Verdict::Void);
    history.faults.push(FaultWindow { what: "kill".into(), from_us: 1000, to_us: 2000, in_flight: 3 });
    assert_eq!(audit(&history).verdict(), Verdict::Passed);
}
