//! The outbox: order, bounds, and what waits for what.

use super::*;
use crate::provider::ProviderKind;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{AppName, Quiet};

type Guarded = Outbox<u8>;

fn app(name: &str) -> AppKey {
    AppKey { provider: ProviderKind::Fcm, app: AppName::new(name).unwrap() }
}

fn sleeper(device: u64, upto: u64, urgency: Urgency) -> Sleeper {
    let target = PushTarget {
        app: AppName::new("a").unwrap(),
        address: PushAddress::Fcm { token: "t".repeat(100) },
        registered_at: UnixMillis(0),
    };
    Sleeper {
        device: DeviceId::new(&format!("d{device}")).unwrap(),
        upto: Seq(upto),
        attempt: 0,
        urgency,
        since: UnixMillis(0),
        expires_at: UnixMillis(1_000_000),
        due: UnixMillis(0),
        settings: PushSettings { targets: vec![target], quiet: Quiet::default() },
    }
}

fn offer(outbox: &mut Guarded, name: &str, device: u64, upto: u64, at: u64) -> Offered {
    let mailbox = MailboxId([u8::try_from(device).unwrap(); 16]);
    let sleeper = sleeper(device, upto, Urgency::Message);
    outbox.offer(mailbox, sleeper, app(name), Time(at), vec![1], Time(at))
}

fn sent(outbox: &mut Guarded, now: u64) -> WakeId {
    match outbox.next(Time(now)) {
        Next::Send(id) => id,
        Next::Wait(wait) => panic!("waits until {wait:?}"),
    }
}

#[test]
fn apps_take_turns_and_one_that_pauses_holds_no_other_back() {
    let mut outbox = Guarded::new(OutboxConfig::default());
    for device in 0..3 {
        offer(&mut outbox, "a", device, 1, 0);
    }
    offer(&mut outbox, "b", 9, 1, 0);
    let first = sent(&mut outbox, 0);
    let second = sent(&mut outbox, 0);
    let apps = [first, second].map(|id| outbox.job(id).unwrap().app.clone());
    assert_eq!(apps, [app("a"), app("b")]);
    let (guards, _) = outbox.answered(first, After::Pause(Time(5000)), Time(10));
    assert_eq!(guards, [1], "the first answer lets the hint go");
    outbox.answered(second, After::Over { given: true }, Time(10));
    offer(&mut outbox, "b", 8, 1, 10);
    let next = sent(&mut outbox, 10);
    assert_eq!(outbox.job(next).unwrap().app, app("b"));
    assert_eq!(outbox.next(Time(10)), Next::Wait(Some(Time(5000))));
    let sizes = outbox.sizes(Time(10));
    assert_eq!((sizes.due, sizes.in_flight, sizes.paused), (3, 1, 1));
    assert_eq!(outbox.sizes(Time(2_000)).oldest, Millis(2_000), "since the first was offered");
    let last = sent(&mut outbox, 5000);
    assert_eq!(outbox.job(last).unwrap().app, app("a"));
}

#[test]
fn a_device_has_one_wake_and_what_comes_in_its_flight_is_looked_at_afterwards() {
    let mut outbox = Guarded::new(OutboxConfig::default());
    assert_eq!(offer(&mut outbox, "a", 1, 5, 0), Offered::Queued);
    assert_eq!(offer(&mut outbox, "a", 1, 7, 0), Offered::Merged);
    let id = sent(&mut outbox, 0);
    assert_eq!(outbox.job(id).unwrap().upto, Seq(7));
    assert_eq!(offer(&mut outbox, "a", 1, 7, 0), Offered::InFlight);
    assert!(!outbox.answered(id, After::Again(Time(100)), Time(0)).1, "nothing new came");
    let id = sent(&mut outbox, 100);
    assert_eq!(offer(&mut outbox, "a", 1, 8, 100), Offered::InFlight);
    assert!(outbox.answered(id, After::Over { given: true }, Time(100)).1);
    assert_eq!(offer(&mut outbox, "a", 1, 7, 200), Offered::Known);
    assert_eq!(offer(&mut outbox, "a", 1, 8, 200), Offered::Queued);
    let id = sent(&mut outbox, 200);
    outbox.answered(id, After::Over { given: true }, Time(200));
    assert_eq!(offer(&mut outbox, "a", 1, 8, 30_200), Offered::Queued, "it is not remembered for ever");
}

#[test]
fn what_a_provider_put_off_is_not_hastened_but_by_what_is_more_urgent() {
    let mut outbox = Guarded::new(OutboxConfig::default());
    offer(&mut outbox, "a", 1, 5, 0);
    let id = sent(&mut outbox, 0);
    outbox.answered(id, After::Again(Time(60_000)), Time(0));
    offer(&mut outbox, "a", 1, 6, 10);
    assert_eq!(outbox.next(Time(10)), Next::Wait(Some(Time(60_000))));
    let call = sleeper(1, 7, Urgency::Call);
    outbox.offer(MailboxId([1; 16]), call, app("a"), Time(20), Vec::new(), Time(20));
    sent(&mut outbox, 20);
}

#[test]
fn it_is_bounded_in_wakes_in_bytes_and_in_what_is_in_flight() {
    let bytes = cost(&sleeper(0, 1, Urgency::Message).settings);
    let config =
        OutboxConfig { total_max: 3, per_app_max: 2, in_flight_per_app_max: 1, ..OutboxConfig::default() };
    let mut outbox = Guarded::new(config);
    let offered = [("a", 0), ("a", 1), ("a", 2), ("b", 3), ("b", 4)];
    let offered = offered.map(|(name, device)| offer(&mut outbox, name, device, 1, 0));
    assert_eq!(offered, [Offered::Queued, Offered::Queued, Offered::Full, Offered::Queued, Offered::Full]);
    let (one, _two) = (sent(&mut outbox, 0), sent(&mut outbox, 0));
    assert_eq!(outbox.next(Time(0)), Next::Wait(None), "each app has as many in flight as it may");
    outbox.answered(one, After::Over { given: true }, Time(0));
    sent(&mut outbox, 0);

    let mut outbox = Guarded::new(OutboxConfig { bytes_max: 2 * bytes, ..OutboxConfig::default() });
    let offered = [0, 1, 2].map(|device| offer(&mut outbox, "a", device, 1, 0));
    assert_eq!(offered, [Offered::Queued, Offered::Queued, Offered::Full]);
    let id = sent(&mut outbox, 0);
    outbox.answered(id, After::Over { given: true }, Time(0));
    assert_eq!(offer(&mut outbox, "a", 2, 1, 0), Offered::Queued, "its bytes are free again");
    assert_eq!(outbox.sizes(Time(0)).bytes, 2 * bytes);
}

#[test]
fn after_a_change_of_the_configuration_everything_goes_on() {
    let mut outbox = Guarded::new(OutboxConfig::default());
    offer(&mut outbox, "a", 1, 5, 0);
    let id = sent(&mut outbox, 0);
    outbox.answered(id, After::Pause(Time(300_000)), Time(0));
    outbox.resume(Time(10));
    sent(&mut outbox, 10);
}

#[test]
fn notes_are_renewed_for_as_long_as_a_wake_waits() {
    let mut outbox = Guarded::new(OutboxConfig::default());
    offer(&mut outbox, "a", 1, 5, 0);
    offer(&mut outbox, "a", 2, 5, 50_000);
    let old = outbox.unnoted(Time(20_000));
    assert_eq!(old, BTreeSet::from([MailboxId([1; 16])]));
    outbox.noted(&old, Time(80_000));
    assert_eq!(outbox.unnoted(Time(60_000)), BTreeSet::from([MailboxId([2; 16])]));
}

#[test]
fn what_is_parked_is_seen_and_bounded() {
    let mut outbox = Guarded::new(OutboxConfig { parked_max: 2, ..OutboxConfig::default() });
    for at in 1..=3 {
        let device = DeviceId::new("d").unwrap();
        outbox.park(Parked {
            at: UnixMillis(at),
            key: (MailboxId([1; 16]), device),
            app: app("a"),
            reason: "bad",
        });
    }
    assert_eq!(outbox.parked().map(|parked| parked.at.0).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn what_was_not_sent_waits_with_its_app_and_counts_as_no_failure() {
    let mut outbox = Guarded::new(OutboxConfig::default());
    offer(&mut outbox, "a", 1, 1, 0);
    let id = sent(&mut outbox, 0);
    outbox.answered(id, After::Held { at: Time(2000), app: true }, Time(0));
    assert_eq!(outbox.job(id).unwrap().failures, 0);
    offer(&mut outbox, "a", 2, 1, 0);
    assert_eq!(outbox.next(Time(1999)), Next::Wait(Some(Time(2000))));
    let both = [sent(&mut outbox, 2000), sent(&mut outbox, 2000)];
    assert!(both.contains(&id));
    outbox.answered(id, After::Held { at: Time(9000), app: false }, Time(2000));
    assert_eq!(outbox.next(Time(2000)), Next::Wait(Some(Time(9000))));
    offer(&mut outbox, "a", 3, 1, 2000);
    sent(&mut outbox, 2000); // the others of its app do not wait
}
