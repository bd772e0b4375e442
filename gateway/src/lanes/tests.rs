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

#[test]
fn what_is_owed_is_bounded_in_recipients() {
    let mut lanes = Lanes::default();
    for round in 0..6_u32 {
        let users: Vec<String> = (0..1000).map(|n| format!("user{round}x{n}")).collect();
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        lanes.admit(Time(0), submit(1, 1, &users));
        let batch = lanes.poll_batch().unwrap();
        lanes.on_results(Time(0), batch, Vec::new());
        assert_eq!(finished(&mut lanes).len(), 1);
    }
    assert_eq!(lanes.recipients.len(), RECIPIENTS_MAX);
    // Whoever comes then is served all the same.
    lanes.admit(Time(1), submit(2, 1, &["ben"]));
    let batch = lanes.poll_batch().unwrap();
    lanes.admit(Time(1), submit(3, 1, &["ben"]));
    lanes.on_results(Time(1), batch, vec![fates(&[Outcome::Accepted])]);
    assert_eq!(ids(&lanes.poll_batch().unwrap()), vec![vec![3]]);
    let later = Time(OWED_MAX.0 * 2);
    lanes.sweep(later);
    assert_eq!(lanes.recipients.len(), 1, "what never came again is forgotten");
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
