//! Stories of one sender's lanes.

use super::*;
use chappe_protocol::frame::Target;

fn submit(id: u8, attempt: u32, users: &[&str]) -> Submit {
    let targets = users.iter().zip(0..).map(|(user, number)| Target {
        number,
        user: UserId::new(user).unwrap(),
        devices: DeviceFilter::All,
        device_set_version: None,
        payload: 0,
    });
    Submit {
        submit_id: SubmitId([id; 16]),
        attempt,
        payloads: vec![Bytes::from_static(b"x")],
        targets: targets.collect(),
        ttl: Millis(0),
        urgency: Urgency::Message,
        ephemeral: false,
    }
}

fn ids(batch: &Batch) -> Vec<Vec<u8>> {
    batch.lists.iter().map(|list| list.entries.iter().map(|e| e.submit_id.0[0]).collect()).collect()
}

fn fates(outcomes: &[Outcome]) -> Vec<EntryResult> {
    let id = EnvelopeId([9; 16]);
    outcomes.iter().map(|o| EntryResult { envelope_id: id, outcome: o.clone() }).collect()
}

fn finished(lanes: &mut Lanes) -> Vec<(u8, Vec<Outcome>)> {
    std::iter::from_fn(|| lanes.poll_finished())
        .map(|f| (f.result.submit_id.0[0], f.result.results.into_iter().map(|r| r.outcome).collect()))
        .collect()
}

#[test]
fn what_waits_goes_as_one_ordered_list() {
    let mut lanes = Lanes::default();
    lanes.admit(Time(0), submit(1, 1, &["ben"]));
    let first = lanes.poll_batch().unwrap();
    for id in 2..=4 {
        lanes.admit(Time(0), submit(id, 1, &["ben"]));
    }
    assert!(lanes.poll_batch().is_none(), "one list at a time");
    lanes.on_results(Time(1), first, vec![fates(&[Outcome::Accepted])]);
    let second = lanes.poll_batch().unwrap();
    assert_eq!(ids(&second), vec![vec![2, 3, 4]]);
    lanes.on_results(Time(2), second, vec![fates(&[Outcome::Accepted, Outcome::Quota, Outcome::Accepted])]);
    let done = finished(&mut lanes);
    assert_eq!(done.iter().map(|(id, _)| *id).collect::<Vec<_>>(), vec![1, 2, 3, 4]);
    assert!(lanes.is_idle());
    assert_eq!((lanes.entries(), lanes.bytes()), (0, 0));
}

#[test]
fn nothing_overtakes_an_undecided_entry() {
    let mut lanes = Lanes::default();
    lanes.admit(Time(0), submit(1, 1, &["ben"]));
    let batch = lanes.poll_batch().unwrap();
    lanes.admit(Time(0), submit(2, 1, &["ben"]));
    lanes.on_results(Time(1), batch, vec![fates(&[Outcome::Unknown])]);
    let done = finished(&mut lanes);
    assert_eq!(done, vec![(1, vec![Outcome::Unknown]), (2, vec![Outcome::NotAttempted])]);
    // On its way while the answer was: still behind the undecided one.
    lanes.admit(Time(2), submit(3, 1, &["ben"]));
    assert_eq!(finished(&mut lanes), vec![(3, vec![Outcome::NotAttempted])]);
    // Resent in order: 1 goes, a new 4 must wait for 2 and 3.
    lanes.admit(Time(3), submit(1, 2, &["ben"]));
    lanes.admit(Time(3), submit(4, 1, &["ben"]));
    assert_eq!(finished(&mut lanes), vec![(4, vec![Outcome::NotAttempted])]);
    lanes.admit(Time(3), submit(2, 2, &["ben"]));
    lanes.admit(Time(3), submit(3, 2, &["ben"]));
    lanes.admit(Time(3), submit(4, 2, &["ben"]));
    assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![1, 2, 3, 4]]);
}

#[test]
fn an_arrival_that_was_not_attempted_is_not_overtaken_either() {
    let mut lanes = Lanes::default();
    lanes.admit(Time(0), submit(1, 1, &["ben"]));
    let batch = lanes.poll_batch().unwrap();
    lanes.on_results(Time(1), batch, vec![fates(&[Outcome::Unknown])]);
    lanes.admit(Time(1), submit(2, 1, &["ben"]));
    finished(&mut lanes);
    lanes.admit(Time(2), submit(1, 2, &["ben"]));
    lanes.admit(Time(2), submit(3, 1, &["ben"]));
    assert_eq!(finished(&mut lanes), vec![(3, vec![Outcome::NotAttempted])], "2 has not come again");
}

#[test]
fn a_request_is_bounded_in_entries_over_all_its_lists() {
    let mut lanes = Lanes::default();
    for round in 0..2_u8 {
        let users: Vec<String> = (0..1000).map(|n| format!("user{n}")).collect();
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        lanes.admit(Time(0), submit(round, 1, &users));
    }
    let count = |batch: &Batch| batch.lists.iter().map(|list| list.entries.len()).sum::<usize>();
    let (first, second) = (lanes.poll_batch().unwrap(), lanes.poll_batch().unwrap());
    assert_eq!((count(&first), count(&second)), (REQUEST_ENTRIES_MAX, 2000 - REQUEST_ENTRIES_MAX));
    assert!(lanes.poll_batch().is_none());
}

#[test]
fn an_entry_that_comes_back_again_is_still_first() {
    let mut lanes = Lanes::default();
    for id in 1..=3 {
        lanes.admit(Time(0), submit(id, 1, &["ben"]));
    }
    for attempt in 2..5 {
        let batch = lanes.poll_batch().unwrap();
        let undecided: Vec<_> = ids(&batch)[0].iter().map(|_| Outcome::Unknown).collect();
        lanes.on_results(Time(1), batch, vec![fates(&undecided)]);
        finished(&mut lanes);
        // Whatever of the rest is already on its way again, or comes before it.
        lanes.admit(Time(2), submit(2, attempt, &["ben"]));
        assert_eq!(finished(&mut lanes), vec![(2, vec![Outcome::NotAttempted])]);
        lanes.admit(Time(2), submit(1, attempt, &["ben"]));
    }
    lanes.admit(Time(3), submit(2, 5, &["ben"]));
    lanes.admit(Time(3), submit(3, 5, &["ben"]));
    assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![1, 2, 3]]);
}

#[test]
fn a_refused_submit_is_not_overtaken() {
    let mut lanes = Lanes::default();
    lanes.owe(Time(0), &submit(1, 1, &["ben"]));
    lanes.admit(Time(0), submit(2, 1, &["ben"]));
    lanes.admit(Time(0), submit(3, 1, &["cara"]));
    assert_eq!(finished(&mut lanes), vec![(2, vec![Outcome::NotAttempted])]);
    lanes.admit(Time(1), submit(1, 2, &["ben"]));
    lanes.admit(Time(1), submit(2, 2, &["ben"]));
    assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![1, 2], vec![3]]);
}

/// What is owed, counted.
fn owed(lanes: &Lanes) -> usize {
    lanes.recipients.values().map(|lane| lane.owed.len()).sum()
}

#[test]
fn what_is_owed_is_bounded_over_all_recipients() {
    let mut lanes = Lanes::default();
    for round in 0..5_u32 {
        let users: Vec<String> = (0..1000).map(|n| format!("user{round}x{n}")).collect();
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        lanes.admit(Time(0), submit(1, 1, &users));
        let batch = lanes.poll_batch().unwrap();
        lanes.on_results(Time(0), batch, Vec::new());
        assert_eq!(finished(&mut lanes).len(), 1);
        lanes.owe(Time(0), &submit(1, 1, &users));
        let all = usize::try_from(round + 1).unwrap() * 1000;
        assert_eq!((owed(&lanes), lanes.owed), (all.min(OWED_ENTRIES_MAX), all.min(OWED_ENTRIES_MAX)));
        assert_eq!(lanes.owes_too_much(), all > OWED_ENTRIES_MAX, "{all} owed");
    }
    let mut lanes = Lanes::default();
    let users: Vec<String> = (0..OWED_ENTRIES_MAX).map(|n| format!("user{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    lanes.owe(Time(0), &submit(1, 1, &users));
    lanes.admit(Time(1), submit(3, 1, &["ben"]));
    let batch = lanes.poll_batch().unwrap();
    // What never came again is forgotten for what is owed now.
    lanes.on_results(Time(OWED_MAX.0), batch, vec![fates(&[Outcome::Unknown])]);
    assert_eq!((owed(&lanes), lanes.owed, lanes.owes_too_much()), (1, 1, false));
    lanes.admit(Time(OWED_MAX.0), submit(4, 1, &["ben"]));
    let done = finished(&mut lanes);
    assert_eq!(done, vec![(3, vec![Outcome::Unknown]), (4, vec![Outcome::NotAttempted])]);
}

#[test]
fn what_one_recipient_is_owed_is_bounded_and_its_first_entries_stay() {
    let mut lanes = Lanes::default();
    let numbered = |n: u32, attempt| {
        let mut submit = submit(0, attempt, &["ben"]);
        submit.submit_id.0[..4].copy_from_slice(&n.to_be_bytes());
        submit
    };
    lanes.admit(Time(0), numbered(0, 1));
    let first = lanes.poll_batch().unwrap();
    let most = u32::try_from(OWED_ENTRIES_MAX).unwrap();
    (1..most).for_each(|n| lanes.admit(Time(0), numbered(n, 1)));
    lanes.on_results(Time(0), first, vec![fates(&[Outcome::Unknown])]);
    assert_eq!((owed(&lanes), lanes.owed), (OWED_ENTRIES_MAX, OWED_ENTRIES_MAX));
    assert!(!lanes.owes_too_much());
    // All of them come again in order, as they do.
    (0..most).for_each(|n| lanes.admit(Time(2), numbered(n, 2)));
    assert_eq!(finished(&mut lanes).len(), OWED_ENTRIES_MAX, "nothing is kept back");
    assert_eq!((owed(&lanes), lanes.owed), (0, 0));
    lanes.on_results(Time(3), Batch { lists: Vec::new() }, Vec::new());
    (0..=most).for_each(|n| lanes.owe(Time(3), &numbered(n, 2)));
    assert!(lanes.owes_too_much(), "one more cannot be kept in order");
    assert_eq!(owed(&lanes), OWED_ENTRIES_MAX);
}

#[test]
fn an_owed_entry_that_never_returns_is_forgotten() {
    let mut lanes = Lanes::default();
    lanes.admit(Time(0), submit(1, 1, &["ben"]));
    let batch = lanes.poll_batch().unwrap();
    lanes.on_results(Time(0), batch, Vec::new());
    lanes.admit(Time(OWED_MAX.0 - 1), submit(2, 1, &["ben"]));
    lanes.admit(Time(OWED_MAX.0), submit(2, 2, &["ben"]));
    let done = finished(&mut lanes);
    assert_eq!(done, vec![(1, vec![Outcome::Unknown]), (2, vec![Outcome::NotAttempted])]);
    assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![2]]);
}

#[test]
fn each_owed_entry_has_its_own_time_to_come_again() {
    let mut lanes = Lanes::default();
    lanes.admit(Time(0), submit(1, 1, &["ben"]));
    let batch = lanes.poll_batch().unwrap();
    lanes.admit(Time(0), submit(2, 1, &["ben"]));
    lanes.on_results(Time(0), batch, Vec::new());
    finished(&mut lanes);
    lanes.admit(Time(OWED_MAX.0 - 1), submit(1, 2, &["ben"]));
    lanes.admit(Time(OWED_MAX.0 + 1), submit(3, 1, &["ben"]));
    assert_eq!(finished(&mut lanes), vec![(3, vec![Outcome::NotAttempted])], "2 is right behind 1");
}

#[test]
fn recipients_do_not_wait_for_each_other_and_one_result_holds_all_targets() {
    let mut lanes = Lanes::default();
    lanes.admit(Time(0), submit(1, 1, &["ben"]));
    let slow = lanes.poll_batch().unwrap();
    lanes.admit(Time(0), submit(2, 1, &["ben", "cara"]));
    let other = lanes.poll_batch().unwrap();
    assert_eq!(other.lists.len(), 1);
    assert_eq!(other.lists[0].user, UserId::new("cara").unwrap());
    lanes.on_results(Time(1), other, vec![fates(&[Outcome::NoDevice])]);
    assert!(lanes.poll_finished().is_none(), "ben is still open");
    lanes.on_results(Time(1), slow, vec![fates(&[Outcome::Accepted])]);
    let last = lanes.poll_batch().unwrap();
    lanes.on_results(Time(2), last, vec![fates(&[Outcome::Accepted])]);
    let done = finished(&mut lanes);
    assert_eq!(done[1], (2, vec![Outcome::Accepted, Outcome::NoDevice]));
}

#[test]
fn lists_are_bounded_in_entries_and_bytes() {
    let mut lanes = Lanes::default();
    for id in 0..200 {
        lanes.admit(Time(0), submit(id, 1, &["ben"]));
    }
    assert_eq!(lanes.poll_batch().unwrap().lists[0].entries.len(), LIST_ENTRIES_MAX);
    for id in 0..3 {
        let mut big = submit(id, 1, &["cara"]);
        big.payloads = vec![Bytes::from(vec![0; LIST_BYTES_MAX / 2 + 1])];
        lanes.admit(Time(0), big);
    }
    assert_eq!(lanes.poll_batch().unwrap().lists[0].entries.len(), 1);
}
