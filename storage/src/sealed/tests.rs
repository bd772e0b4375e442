//! Tests of sealed push targets.

use super::*;
use chappe_protocol::testing::{Rng, TestWorld};

const BEN: MailboxId = MailboxId([7; 16]);

fn phone() -> DeviceId {
    DeviceId::new("phone").unwrap()
}

fn key(n: u8) -> [u8; PUSH_KEY_BYTES] {
    [n; PUSH_KEY_BYTES]
}

fn keys(current: u8, older: &[u8]) -> PushKeys {
    let older: Vec<_> = older.iter().map(|n| key(*n)).collect();
    PushKeys::new(&key(current), &older).unwrap()
}

fn target(app: &str, address: PushAddress, at: u64) -> PushTarget {
    PushTarget { app: AppName::new(app).unwrap(), address, registered_at: UnixMillis(at) }
}

/// A night over midnight, an hour at noon, and a mute.
fn quiet() -> Quiet {
    let hours = [(1320, 390), (720, 780)].map(|(from, to)| QuietHours::new(from, to).unwrap());
    Quiet::new(hours.to_vec(), Some(UnixMillis(1_800_000_000_000)), true).unwrap()
}

/// With the first targets of [`targets`].
fn settings(count: usize) -> PushSettings {
    PushSettings { targets: targets()[..count].to_vec(), quiet: quiet() }
}

/// One of each kind.
fn targets() -> Vec<PushTarget> {
    let mut p256dh = [9; 65];
    p256dh[0] = 4;
    let endpoint = "https://push.example/send/abc?x=1".into();
    vec![
        target("org.example.chat", PushAddress::Apns { token: vec![0xA5; 32], kind: ApnsKind::Alert }, 1),
        target("org.example.chat", PushAddress::Apns { token: vec![1], kind: ApnsKind::Voip }, u64::MAX),
        target("project-7", PushAddress::Fcm { token: "cX:APA91b_kvqzkvqz".into() }, 1_700_000_000_000),
        target("w", PushAddress::WebPush { endpoint, p256dh, auth: [3; 16] }, 0),
    ]
}

#[test]
fn what_was_sealed_opens_for_the_same_device_only() {
    let (keys, world) = (keys(1, &[]), TestWorld::new(1));
    for count in 0..=targets().len() {
        let sealed = keys.seal(&settings(count), BEN, &phone(), &world).unwrap();
        assert_eq!(keys.open(&sealed, BEN, &phone()), Ok(settings(count)));
        let web = DeviceId::new("web").unwrap();
        assert_eq!(keys.open(&sealed, BEN, &web), Err(SealedError::Damaged), "another device");
        let other = MailboxId([8; 16]);
        assert_eq!(keys.open(&sealed, other, &phone()), Err(SealedError::Damaged), "another mailbox");
        assert!(!sealed.windows(8).any(|bytes| bytes == b"kvqzkvqz"), "nothing stands in clear");
    }
    let twice = [(); 2].map(|()| keys.seal(&settings(4), BEN, &phone(), &world).unwrap());
    assert_ne!(twice[0][5..17], twice[1][5..17], "a nonce of its own");
}

#[test]
fn quiet_hours_come_back_as_they_were_set() {
    let (keys, world) = (keys(1, &[]), TestWorld::new(6));
    for windows in 0..=QUIET_WINDOWS_MAX {
        for muted_until in [None, Some(UnixMillis(0)), Some(UnixMillis(u64::MAX))] {
            for calls_pass in [false, true] {
                let hours = vec![QuietHours::new(1439, 0).unwrap(); windows];
                let quiet = Quiet::new(hours, muted_until, calls_pass).unwrap();
                let set = PushSettings { targets: targets()[2..3].to_vec(), quiet };
                let sealed = keys.seal(&set, BEN, &phone(), &world).unwrap();
                assert_eq!(keys.open(&sealed, BEN, &phone()), Ok(set));
            }
        }
    }
}

#[test]
fn old_keys_still_open_and_strange_ones_do_not() {
    let (world, all) = (TestWorld::new(2), settings(4));
    let sealed = keys(1, &[]).seal(&all, BEN, &phone(), &world).unwrap();
    assert_eq!(keys(2, &[3, 1]).open(&sealed, BEN, &phone()), Ok(all.clone()));
    assert_eq!(keys(2, &[3]).open(&sealed, BEN, &phone()), Err(SealedError::UnknownKey));
    let fresh = keys(2, &[1]).seal(&all, BEN, &phone(), &world).unwrap();
    assert_eq!(
        keys(1, &[]).open(&fresh, BEN, &phone()),
        Err(SealedError::UnknownKey),
        "the current one seals"
    );
    assert_eq!(fresh[1..5], Sha256::digest(key(2))[..4], "its id is in clear");
}

#[test]
fn a_changed_bit_is_noticed() {
    let (keys, world) = (keys(1, &[2]), TestWorld::new(3));
    let sealed = keys.seal(&settings(4), BEN, &phone(), &world).unwrap();
    for bit in 0..sealed.len() * 8 {
        let mut bad = sealed.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        let expected = match bit / 8 {
            0 => SealedError::Version,
            1..=4 => SealedError::UnknownKey,
            _ => SealedError::Damaged,
        };
        assert_eq!(keys.open(&bad, BEN, &phone()), Err(expected), "bit {bit}");
    }
    for length in 0..sealed.len() {
        assert_eq!(keys.open(&sealed[..length], BEN, &phone()), Err(SealedError::Damaged), "{length} bytes");
    }
    assert_eq!(keys.open(&vec![VERSION; PUSH_BYTES_MAX + 1], BEN, &phone()), Err(SealedError::Damaged));
}

/// What is inside is checked again, though only a holder of the key can have written it.
#[test]
fn no_bytes_make_decoding_panic() {
    let whole = encode(&settings(4)).unwrap();
    assert_eq!(decode(&whole), Some(settings(4)));
    for length in 0..whole.len() {
        // At the end stand two windows of four bytes: fewer of them are settings too.
        let fewer = length + 8 >= whole.len() && (whole.len() - length).is_multiple_of(4);
        assert_eq!(decode(&whole[..length]).is_some(), fewer, "{length} bytes");
    }
    assert_eq!(decode(&[&whole[..], &[0, 1, 0, 2].repeat(3)].concat()), None, "more windows than may be");
    assert_eq!(decode(&[0, 4]), None, "a flag of a later form");
    assert_eq!(decode(&[&whole[..], &[0]].concat()), None, "trailing bytes");
    let one = PushSettings { targets: targets()[2..3].to_vec(), quiet: Quiet::default() };
    let one = encode(&one).unwrap();
    let five = [&[5][..], &one[1..one.len() - 1].repeat(5), &[0]].concat();
    assert_eq!(decode(&five), None, "more than a device may have");
    assert!(decode(&[&[4][..], &five[1..one.len() - 1].repeat(4), &[0]].concat()).is_some(), "four are good");
    let mut rng = Rng::new(4);
    let (mut good, mut random) = (0, |bound: u64| usize::try_from(rng.below(bound)).unwrap());
    for _ in 0..200_000 {
        let mut bytes = whole.to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len() as u64);
            bytes[at] = u8::try_from(random(256)).unwrap();
        }
        bytes.truncate(bytes.len() - random(4) * random(60));
        if let Some(PushSettings { targets, quiet }) = decode(&bytes) {
            assert!(quiet.hours().len() <= QUIET_WINDOWS_MAX, "bounded");
            assert!(targets.len() <= PUSH_TARGETS_MAX, "bounded");
            assert!(targets.iter().all(|target| target.address.check() == Ok(())), "checked again");
            good += 1;
        }
        let noise: Vec<u8> = (0..random(100)).map(|_| u8::try_from(random(256)).unwrap()).collect();
        decode(&noise);
    }
    assert!(good > 1000, "hardly any was read: {good}");
}

#[test]
fn what_is_too_much_is_refused() {
    let (keys, world) = (keys(1, &[]), TestWorld::new(5));
    let seal = |targets: &[PushTarget]| {
        let set = PushSettings { targets: targets.to_vec(), quiet: quiet() };
        keys.seal(&set, BEN, &phone(), &world).map(|sealed| sealed.len())
    };
    let fcm = |bytes| target(&"a".repeat(64), PushAddress::Fcm { token: "t".repeat(bytes) }, 1);
    assert_eq!(seal(&vec![fcm(10); 5]), Err(SealedError::TooMany));
    assert_eq!(seal(&vec![fcm(4096); 4]), Err(SealedError::TooMany), "more than the store takes");
    let most = seal(&vec![fcm(4000); 4]).unwrap();
    assert!((PUSH_BYTES_MAX - 100..=PUSH_BYTES_MAX).contains(&most), "{most} bytes");
    assert_eq!(seal(&[fcm(4097)]), Err(SealedError::Target));
}

#[test]
fn keys_do_not_print_themselves() {
    let shown = format!("{:?}", keys(0xAB, &[0xCD]));
    assert!(!shown.contains("ab, ab") && !shown.contains("171") && !shown.contains("cd, cd"), "{shown}");
    assert!(shown.len() < 200, "{shown}");
}
