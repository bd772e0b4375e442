//! Properties of the messages between nodes, over generated messages and over bytes that are none.
//! **Invariant:** every run sees the same cases: the seed is fixed.

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Sender, Slot, SlotBody, Urgency};
use chappe_protocol::id::{
    Bucket, ClusterId, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, Seq, SubmitId, TraceId, UserId,
};
use chappe_protocol::internode::{
    Announcement, Answer, Attached, DEVICES_MAX, DeviceNews, Doorbell, ENTRIES_MAX, EntryResult,
    EphemeralSubmit, InternodeError, LISTS_MAX, ListReply, MailboxNews, Outcome, Probe, ProbeReply, Refusal,
    Reply, Request, Ring, RouterState, Stamp, Submit, SubmitEntry, SubmitList, VERSION_MAJOR, VERSION_MINOR,
    WakeHint,
};
use chappe_protocol::time::{Millis, UnixMillis};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::sample::Index;
use proptest::test_runner::RngSeed;

const OURS: ClusterId = ClusterId([7; 16]);
const THEIRS: ClusterId = ClusterId([8; 16]);

/// The same cases in every run.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(21),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn id() -> impl Strategy<Value = [u8; 16]> {
    any::<[u8; 16]>()
}

fn payload() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn device() -> impl Strategy<Value = DeviceId> {
    "[A-Za-z0-9._:-]{1,64}".prop_map(|id| DeviceId::new(&id).unwrap())
}

fn sender() -> impl Strategy<Value = Sender> {
    ("[a-zäß漢 @.]{1,30}", device())
        .prop_map(|(user, device)| Sender { user: UserId::new(&user).unwrap(), device })
}

fn urgency() -> impl Strategy<Value = Urgency> {
    prop_oneof![Just(Urgency::Background), Just(Urgency::Message), Just(Urgency::Call)]
}

fn filter() -> impl Strategy<Value = DeviceFilter> {
    prop_oneof![
        Just(DeviceFilter::All),
        vec(device(), 0..8).prop_map(DeviceFilter::Only),
        vec(device(), 0..8).prop_map(DeviceFilter::AllBut),
    ]
}

fn entry(payloads: usize) -> impl Strategy<Value = SubmitEntry> {
    let parts = (id(), any::<u32>(), filter(), option::of(any::<u64>()));
    (parts, any::<Index>(), any::<u64>(), urgency()).prop_map(
        move |((submit, number, devices, device_set_version), at, ttl, urgency)| SubmitEntry {
            submit_id: SubmitId(submit),
            number,
            devices,
            device_set_version,
            payload: at.index(payloads),
            ttl: Millis(ttl),
            urgency,
        },
    )
}

fn submit() -> impl Strategy<Value = Submit> {
    (sender(), any::<u64>(), vec(payload(), 1..4)).prop_flat_map(|(sender, budget, payloads)| {
        let list = (id(), option::of(any::<u64>()), vec(entry(payloads.len()), 0..4));
        vec(list, 0..4).prop_map(move |lists| Submit {
            sender: sender.clone(),
            budget: Millis(budget),
            payloads: payloads.clone(),
            lists: lists
                .into_iter()
                .map(|(mailbox, base, entries)| SubmitList {
                    mailbox: MailboxId(mailbox),
                    base: base.map(Bucket),
                    entries,
                })
                .collect(),
        })
    })
}

fn ephemeral() -> impl Strategy<Value = EphemeralSubmit> {
    (sender(), vec(payload(), 1..4), urgency()).prop_flat_map(|(sender, payloads, urgency)| {
        let count = payloads.len();
        vec((id(), filter(), any::<Index>()), 0..4).prop_map(move |targets| EphemeralSubmit {
            sender: sender.clone(),
            targets: targets
                .into_iter()
                .map(|(mailbox, devices, at)| (MailboxId(mailbox), devices, at.index(count)))
                .collect(),
            payloads: payloads.clone(),
            urgency,
        })
    })
}

fn news() -> impl Strategy<Value = DeviceNews> {
    (device(), any::<u64>(), id(), any::<bool>()).prop_map(|(device, epoch, connection, revoked)| {
        DeviceNews { device, epoch: Epoch(epoch), connection: ConnectionId(connection), revoked }
    })
}

fn request() -> impl Strategy<Value = Request> {
    let probe =
        (option::of(any::<u64>()), vec((id(), any::<u64>()), 0..6)).prop_map(|(as_of, known)| Probe {
            as_of: as_of.map(UnixMillis),
            known: known.into_iter().map(|(mailbox, head)| (MailboxId(mailbox), Seq(head))).collect(),
        });
    prop_oneof![
        4 => submit().prop_map(Request::Submit),
        2 => ephemeral().prop_map(Request::Ephemeral),
        1 => probe.prop_map(Request::Probe),
        1 => id().prop_map(|mailbox| Request::Base(MailboxId(mailbox))),
        1 => (id(), news())
            .prop_map(|(mailbox, news)| Request::Attached(Attached { mailbox: MailboxId(mailbox), news })),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Accepted),
        Just(Outcome::UnknownUser),
        Just(Outcome::NoDevice),
        (any::<u64>(), vec(device(), 0..4))
            .prop_map(|(version, devices)| Outcome::DevicesChanged { version, devices }),
        Just(Outcome::Quota),
        Just(Outcome::Unavailable),
        Just(Outcome::NotAttempted),
        Just(Outcome::Unknown),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let result = (id(), outcome())
        .prop_map(|(envelope, outcome)| EntryResult { envelope_id: EnvelopeId(envelope), outcome });
    let list = (id(), option::of(any::<u64>()), vec(result, 0..4)).prop_map(|(mailbox, head, results)| {
        ListReply { mailbox: MailboxId(mailbox), head_bucket: head.map(Bucket), results }
    });
    let mailbox = (id(), any::<u64>(), vec(news(), 0..4), any::<bool>()).prop_map(
        |(mailbox, head, devices, erased)| MailboxNews {
            mailbox: MailboxId(mailbox),
            head: Seq(head),
            devices,
            erased,
        },
    );
    let probe = (any::<u64>(), vec(mailbox, 0..4))
        .prop_map(|(as_of, news)| Reply::Probe(ProbeReply { as_of: UnixMillis(as_of), news }));
    prop_oneof![
        4 => vec(list, 0..4).prop_map(|lists| Answer::Reply(Reply::Submit(lists))),
        2 => probe.prop_map(Answer::Reply),
        1 => Just(Answer::Reply(Reply::Ephemeral)),
        1 => any::<u64>().prop_map(|bucket| Answer::Reply(Reply::Base(Bucket(bucket)))),
        1 => Just(Answer::Reply(Reply::Attached)),
        1 => Just(Answer::Reply(Reply::Unavailable)),
        1 => Just(Answer::Refused(Refusal::Invalid)),
        1 => Just(Answer::Refused(Refusal::Draining)),
        1 => Just(Answer::Refused(Refusal::Stale)),
        1 => Just(Answer::Refused(Refusal::Foreign)),
        1 => Just(Answer::Refused(Refusal::Version)),
    ]
}

fn slot() -> impl Strategy<Value = Slot> {
    let body =
        prop_oneof![payload().prop_map(SlotBody::Present), Just(SlotBody::Expired), Just(SlotBody::Lost)];
    (any::<u64>(), id(), option::of(sender()), filter(), (any::<u64>(), any::<u64>()), urgency(), body)
        .prop_map(|(seq, envelope, sender, devices, (at, expires), urgency, body)| Slot {
            seq: Seq(seq),
            envelope_id: EnvelopeId(envelope),
            sender,
            devices,
            at: UnixMillis(at),
            expires_at: UnixMillis(expires),
            urgency,
            body,
        })
}

fn doorbell() -> impl Strategy<Value = Doorbell> {
    let ring = prop_oneof![
        any::<u64>().prop_map(|seq| Ring::Grew { seq: Seq(seq), slot: None }),
        slot().prop_map(|slot| Ring::Grew { seq: slot.seq, slot: Some(slot) }),
        news().prop_map(Ring::Session),
        (sender(), filter(), payload(), urgency()).prop_map(|(sender, devices, payload, urgency)| {
            Ring::Ephemeral { sender, devices, payload, urgency }
        }),
    ];
    (id(), ring).prop_map(|(mailbox, ring)| Doorbell { mailbox: MailboxId(mailbox), ring })
}

fn decode_request(bytes: Vec<u8>) -> Result<(Stamp, Request), InternodeError> {
    Request::decode(Bytes::from(bytes), OURS)
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn a_request_comes_back_with_its_stamp(request in request(), budget: u64, trace in id()) {
        let stamp = Stamp { budget: Millis(budget), trace: TraceId(trace) };
        let mut expected = request.clone();
        if let Request::Submit(submit) = &mut expected {
            submit.budget = stamp.budget;
        }
        let bytes = request.encode(OURS, stamp);
        prop_assert_eq!(decode_request(bytes.clone()).unwrap(), (stamp, expected));
        prop_assert_eq!(Request::decode(Bytes::from(bytes), THEIRS), Err(InternodeError::Foreign));
    }

    #[test]
    fn an_answer_comes_back(answer in answer()) {
        let bytes = Bytes::from(answer.encode(OURS));
        prop_assert_eq!(Answer::decode(bytes.clone(), OURS), Ok(answer));
        prop_assert_eq!(Answer::decode(bytes, THEIRS), Err(InternodeError::Foreign));
    }

    #[test]
    fn a_doorbell_comes_back(bell in doorbell()) {
        let bytes = Bytes::from(bell.encode(OURS));
        prop_assert_eq!(Doorbell::decode(bytes.clone(), OURS), Ok(bell));
        prop_assert_eq!(Doorbell::decode(bytes, THEIRS), Err(InternodeError::Foreign));
    }

    #[test]
    fn an_announcement_comes_back(router: u64, state in 0_usize..3) {
        let state = [RouterState::Live, RouterState::Draining, RouterState::Gone][state];
        let announcement = Announcement { router, state };
        let bytes = announcement.encode(OURS);
        prop_assert_eq!(Announcement::decode(&bytes, OURS), Ok(announcement));
        prop_assert_eq!(Announcement::decode(&bytes, THEIRS), Err(InternodeError::Foreign));
    }

    #[test]
    fn damaged_bytes_never_panic_and_what_decodes_encodes_again(
        request in request(),
        answer in answer(),
        bell in doorbell(),
        flips in vec((any::<Index>(), 1..=255_u8), 1..4),
        cut in any::<Index>(),
    ) {
        let stamp = Stamp { budget: Millis(5), trace: TraceId([1; 16]) };
        for mut bytes in [request.encode(OURS, stamp), answer.encode(OURS), bell.encode(OURS)] {
            for (at, by) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= by;
            }
            for bytes in [bytes.clone(), bytes[..cut.index(bytes.len())].to_vec()] {
                if let Ok((stamp, request)) = decode_request(bytes.clone()) {
                    prop_assert!(decode_request(request.encode(OURS, stamp)).is_ok());
                }
                if let Ok(answer) = Answer::decode(Bytes::from(bytes.clone()), OURS) {
                    prop_assert_eq!(Answer::decode(Bytes::from(answer.encode(OURS)), OURS), Ok(answer));
                }
                if let Ok(bell) = Doorbell::decode(Bytes::from(bytes.clone()), OURS) {
                    prop_assert_eq!(Doorbell::decode(Bytes::from(bell.encode(OURS)), OURS), Ok(bell));
                }
                let _ = Announcement::decode(&bytes, OURS);
            }
        }
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode_request(bytes.clone());
        let _ = Answer::decode(Bytes::from(bytes.clone()), OURS);
        let _ = Doorbell::decode(Bytes::from(bytes.clone()), OURS);
        let _ = Announcement::decode(&bytes, OURS);
    }
}

fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = varint(number << 3 | 2);
    out.extend(varint(u32::try_from(bytes.len()).unwrap()));
    out.extend_from_slice(bytes);
    out
}

fn number(field: u32, value: u32) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn varint(mut value: u32) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
    out
}

/// A request's head: major version, cluster.
fn head() -> Vec<u8> {
    [number(1, VERSION_MAJOR), number(2, VERSION_MINOR), field(3, &OURS.0)].concat()
}

#[test]
fn a_newer_minor_version_with_unknown_fields_is_read_and_another_major_is_not() {
    let newer = [
        number(1, VERSION_MAJOR),
        number(2, 99),
        field(3, &OURS.0),
        number(4, 70),
        field(11, &[5; 16]),
        field(200, b"from the future"),
    ]
    .concat();
    let stamp = Stamp { budget: Millis(70), trace: TraceId::default() };
    assert_eq!(decode_request(newer), Ok((stamp, Request::Base(MailboxId([5; 16])))));
    let other = [number(1, VERSION_MAJOR + 1), field(3, &OURS.0), field(11, &[5; 16])].concat();
    assert_eq!(decode_request(other), Err(InternodeError::Version(VERSION_MAJOR + 1)));
    let foreign = [number(1, VERSION_MAJOR + 1), field(3, &THEIRS.0)].concat();
    assert_eq!(decode_request(foreign), Err(InternodeError::Foreign), "the cluster comes first");
}

#[test]
fn every_bound_of_a_request_holds() {
    let submit = |inner: Vec<u8>| [head(), field(8, &inner)].concat();
    let sender = || field(1, &[field(1, b"ana"), field(2, b"phone")].concat());
    let entry = |payload| [field(1, &[1; 16]), number(6, payload)].concat();
    let list = |entry: &[u8]| field(3, &[field(1, &[2; 16]), field(3, entry)].concat());
    let good = submit([sender(), field(2, b"x"), list(&entry(0))].concat());
    assert!(decode_request(good).is_ok());
    let names = |count: usize| (0..count).flat_map(|_| field(1, b"d")).collect::<Vec<u8>>();
    let named = |count| [entry(0), field(3, &names(count))].concat();
    let full: Vec<u8> = (0..ENTRIES_MAX).flat_map(|_| field(3, &entry(0))).collect();
    let long = |extra: &[u8]| field(3, &[field(1, &[2; 16]), full.clone(), extra.to_vec()].concat());
    assert!(decode_request(submit([sender(), field(2, b"x"), list(&named(DEVICES_MAX))].concat())).is_ok());
    assert!(decode_request(submit([sender(), field(2, b"x"), long(&[])].concat())).is_ok());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("sender", submit([field(2, b"x"), list(&entry(0))].concat())),
        ("user", submit([field(1, &field(2, b"phone")), field(2, b"x")].concat())),
        ("device", submit(field(1, &[field(1, b"ana"), field(2, b"no spaces")].concat()))),
        ("payload", submit([sender(), field(2, b"x"), list(&entry(1))].concat())),
        ("submit_id", submit([sender(), field(2, b"x"), list(&field(1, &[1; 15]))].concat())),
        ("mailbox", submit([sender(), field(3, &field(1, &[2; 17]))].concat())),
        ("devices", submit([sender(), field(2, b"x"), list(&named(DEVICES_MAX + 1))].concat())),
        ("entries", submit([sender(), field(2, b"x"), long(&field(3, &entry(0)))].concat())),
        ("lists", submit((0..=LISTS_MAX).flat_map(|_| field(3, &[])).collect())),
        ("payloads", submit((0..=LISTS_MAX).flat_map(|_| field(2, &[])).collect())),
        ("submit", [submit(Vec::new()), field(8, &[])].concat()),
        ("trace", [head(), field(5, &[1; 15]), field(11, &[5; 16])].concat()),
        ("mailbox", [head(), field(11, &[5; 15])].concat()),
        (
            "known",
            [head(), field(10, &(0..=LISTS_MAX).flat_map(|_| field(2, &[])).collect::<Vec<_>>())].concat(),
        ),
        ("news", [head(), field(12, &field(1, &[1; 16]))].concat()),
        ("cluster", field(11, &[5; 16])),
    ];
    for (name, bytes) in cases {
        assert_eq!(decode_request(bytes), Err(InternodeError::Field(name)), "{name}");
    }
    assert_eq!(decode_request(head()), Err(InternodeError::UnknownKind));
    assert_eq!(decode_request(vec![0xff; 20]), Err(InternodeError::Garbage));
}

#[test]
fn a_doorbell_whose_slot_is_another_is_refused() {
    let slot = [number(1, 6), field(2, &[3; 16]), field(9, b"x")].concat();
    let bell = |seq| {
        let ring = field(8, &[number(1, seq), field(2, &slot)].concat());
        Bytes::from([head(), field(4, &[2; 16]), ring].concat())
    };
    assert!(Doorbell::decode(bell(6), OURS).is_ok());
    assert_eq!(Doorbell::decode(bell(5), OURS), Err(InternodeError::Field("slot")));
}

#[test]
fn an_outcome_of_a_newer_version_is_unknown() {
    let result = [field(1, &[3; 16]), number(2, 77)].concat();
    let list = field(1, &[field(1, &[2; 16]), field(3, &result)].concat());
    let answer = Answer::decode(Bytes::from([head(), field(8, &list)].concat()), OURS).unwrap();
    let Answer::Reply(Reply::Submit(lists)) = answer else { panic!("a submit's reply") };
    assert_eq!(lists[0].results[0].outcome, Outcome::Unknown);
}

#[test]
fn a_cluster_is_its_name_and_its_store() {
    let ours = ClusterId::of_store("chappe", [1; 16]);
    assert_eq!(ours, ClusterId::of_store("chappe", [1; 16]));
    assert_ne!(ours, ClusterId::of_store("chappe", [2; 16]), "a store of its own");
    assert_ne!(ours, ClusterId::of_store("chappe2", [1; 16]), "two clusters in one store");
}

fn wake_hint() -> impl Strategy<Value = WakeHint> {
    let spans = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
    (id(), spans, urgency()).prop_map(|(mailbox, (from, more, at, wait), urgency)| WakeHint {
        mailbox: MailboxId(mailbox),
        from: Seq(from.into()),
        upto: Seq(u64::from(from) + u64::from(more)),
        urgency,
        at: UnixMillis(at.into()),
        due: UnixMillis(u64::from(at) + u64::from(wait)),
    })
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn wake_hints_come_back_as_they_went(hint in wake_hint()) {
        let bytes = hint.encode(OURS);
        prop_assert_eq!(WakeHint::decode(&bytes, OURS), Ok(hint));
        prop_assert_eq!(WakeHint::decode(&bytes, THEIRS), Err(InternodeError::Foreign));
        prop_assert!(bytes.len() < 128, "the bounds of queue and stream count on it");
    }

    #[test]
    fn a_merged_hint_says_what_both_say(one in wake_hint(), other in wake_hint()) {
        let mut merged = one;
        merged.merge(&WakeHint { mailbox: one.mailbox, ..other });
        prop_assert!(merged.from <= one.from && merged.from <= other.from);
        prop_assert!(merged.upto >= one.upto && merged.upto >= other.upto);
        prop_assert!(merged.urgency >= one.urgency && merged.urgency >= other.urgency);
        prop_assert!(merged.at <= one.at && merged.at <= other.at);
        prop_assert!(merged.due <= one.due && merged.due <= other.due);
    }

    #[test]
    fn bytes_that_are_no_wake_hint_are_refused_and_nothing_panics(bytes in vec(any::<u8>(), 0..100)) {
        let _ = WakeHint::decode(&bytes, OURS);
    }
}

#[test]
fn a_wake_hint_with_its_ends_or_times_crossed_is_refused() {
    let hint = |from, upto, at, due| {
        let numbers = [number(8, from), number(9, upto), number(11, at), number(12, due)].concat();
        WakeHint::decode(&[head(), field(4, &[2; 16]), numbers].concat(), OURS)
    };
    assert!(hint(3, 3, 7, 7).is_ok());
    assert_eq!(hint(4, 3, 7, 7), Err(InternodeError::Field("upto")));
    assert_eq!(hint(3, 3, 8, 7), Err(InternodeError::Field("due")));
    let nowhere = WakeHint::decode(&[head(), field(4, &[2; 15])].concat(), OURS);
    assert_eq!(nowhere, Err(InternodeError::Field("mailbox")));
}
