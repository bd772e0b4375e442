//! Properties of the codec over generated frames and over bytes that are none.
//! **Invariant:** every run sees the same cases: the seed is fixed.

use bytes::Bytes;
use chappe_protocol::close::{ErrorFrame, ErrorScope};
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::frame::{
    ClientFrame, Cursor, Deliver, FrameError, GoAway, GoAwayClass, Hello, Limits, Reply, Request, Role,
    Secret, ServerFrame, Submit, SubmitResult, Target, TargetResult, TruncatedReason, Welcome,
};
use chappe_protocol::id::{ConnectionId, CursorTag, DeviceId, EnvelopeId, Epoch, Seq, SubmitId, UserId};
use chappe_protocol::internode::Outcome;
use chappe_protocol::push::{ApnsKind, AppName, PushAddress, PushSettings, PushTarget, Quiet, QuietHours};
use chappe_protocol::time::{Millis, UnixMillis};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::RngSeed;

/// The same cases in every run.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(20),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn payload() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn user() -> impl Strategy<Value = UserId> {
    "[a-zäß漢 @.]{1,30}".prop_map(|name| UserId::new(&name).unwrap())
}

fn device() -> impl Strategy<Value = DeviceId> {
    "[A-Za-z0-9._:-]{1,64}".prop_map(|id| DeviceId::new(&id).unwrap())
}

fn sender() -> impl Strategy<Value = Option<Sender>> {
    option::of((user(), device()).prop_map(|(user, device)| Sender { user, device }))
}

fn urgency() -> impl Strategy<Value = Urgency> {
    prop_oneof![Just(Urgency::Background), Just(Urgency::Message), Just(Urgency::Call)]
}

fn token() -> impl Strategy<Value = Secret> {
    "[A-Za-z0-9._-]{1,200}".prop_map(Secret)
}

fn filter() -> impl Strategy<Value = DeviceFilter> {
    prop_oneof![
        Just(DeviceFilter::All),
        vec(device(), 0..64).prop_map(DeviceFilter::Only),
        vec(device(), 0..64).prop_map(DeviceFilter::AllBut),
    ]
}

fn hello() -> impl Strategy<Value = Hello> {
    let cursor = option::of((any::<[u8; 16]>(), any::<u64>()));
    let role = prop_oneof![Just(Role::Main), Just(Role::Peek)];
    (token(), device(), vec(any::<u8>(), 0..=512), cursor, role).prop_map(
        |(token, device, resume, cursor, role)| {
            let cursor = cursor.map(|(tag, seq)| Cursor { tag: CursorTag(tag), seq: Seq(seq) });
            Hello { token, device, resume_token: Bytes::from(resume), cursor, role }
        },
    )
}

fn submit() -> impl Strategy<Value = Submit> {
    let target = (user(), filter(), option::of(any::<u64>()), any::<proptest::sample::Index>());
    let parts =
        (any::<[u8; 16]>(), 1..u32::MAX, vec(payload(), 1..4), vec(target, 1..6), any::<u64>(), urgency());
    (parts, any::<u32>(), any::<bool>()).prop_map(
        |((id, attempt, payloads, targets, ttl, urgency), first, ephemeral)| {
            let targets =
                (0_u32..).zip(targets).map(|(i, (user, devices, device_set_version, payload))| Target {
                    number: first.wrapping_add(i),
                    user,
                    devices,
                    device_set_version,
                    payload: payload.index(payloads.len()),
                });
            let targets = targets.collect();
            Submit {
                submit_id: SubmitId(id),
                attempt,
                payloads,
                targets,
                ttl: Millis(ttl),
                urgency,
                ephemeral,
            }
        },
    )
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    prop_oneof![
        hello().prop_map(ClientFrame::Hello),
        submit().prop_map(ClientFrame::Submit),
        any::<u64>().prop_map(|upto| ClientFrame::Ack { upto: Seq(upto) }),
        any::<u64>().prop_map(|nonce| ClientFrame::Ping { nonce }),
        token().prop_map(|token| ClientFrame::Refresh { token }),
        (any::<u64>(), push_settings())
            .prop_map(|(id, set)| ClientFrame::Request { id, request: Request::SetPush(set) }),
    ]
}

fn push_settings() -> impl Strategy<Value = PushSettings> {
    let kind = prop_oneof![Just(ApnsKind::Alert), Just(ApnsKind::Voip)];
    let address = prop_oneof![
        (vec(any::<u8>(), 1..=128), kind).prop_map(|(token, kind)| PushAddress::Apns { token, kind }),
        "[!-~]{1,200}".prop_map(|token| PushAddress::Fcm { token }),
        ("https://[a-z.]{1,40}(/[a-z0-9?=&]{0,80})?", any::<[u8; 32]>(), any::<[u8; 16]>()).prop_map(
            |(endpoint, half, auth)| {
                let mut p256dh = [4; 65];
                p256dh[1..33].copy_from_slice(&half);
                PushAddress::WebPush { endpoint, p256dh, auth }
            }
        ),
    ];
    let target = ("[a-z0-9._-]{1,64}", address).prop_map(|(app, address)| PushTarget {
        app: AppName::new(&app).unwrap(),
        address,
        registered_at: UnixMillis(0),
    });
    let window = (0_u16..1440, 1_u16..1440)
        .prop_map(|(from, length)| QuietHours::new(from, (from + length) % 1440).unwrap());
    let quiet = (vec(window, 0..=4), option::of(1_u64..), any::<bool>())
        .prop_map(|(hours, until, calls)| Quiet::new(hours, until.map(UnixMillis), calls).unwrap());
    (vec(target, 0..=4), quiet).prop_map(|(targets, quiet)| PushSettings { targets, quiet })
}

fn welcome() -> impl Strategy<Value = Welcome> {
    let ids = (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), any::<[u8; 16]>());
    let rest = (vec(any::<u8>(), 0..=512), any::<[u32; 10]>(), any::<u64>(), any::<bool>(), any::<u64>());
    (ids, rest).prop_map(|((session, epoch, from, tag), (resume, n, ttl_max, resumed, time))| Welcome {
        session: ConnectionId(session),
        epoch: Epoch(epoch),
        from: Seq(from),
        tag: CursorTag(tag),
        resume_token: Bytes::from(resume),
        limits: Limits {
            envelope_bytes_max: n[0],
            frame_bytes_max: n[1],
            targets_max: n[2],
            ttl_max: Millis(ttl_max),
            window_envelopes_max: n[3],
            window_bytes_max: n[4],
            frames_per_second_max: n[5],
            frames_burst_max: n[6],
            ping_every: Millis(u64::from(n[7])),
            submits_in_flight_max: n[8],
            ephemeral_bytes_max: n[9],
        },
        resumed,
        server_time: UnixMillis(time),
    })
}

fn deliver() -> impl Strategy<Value = Deliver> {
    let parts = (any::<u64>(), any::<u64>(), any::<[u8; 16]>(), sender(), any::<u64>(), any::<u64>());
    (parts, payload(), urgency()).prop_map(|((a, b, id, sender, at, expires_at), payload, urgency)| Deliver {
        seq: Seq(a.max(b).max(1)),
        prev: Seq(a.min(b).min(a.max(b).max(1) - 1)),
        envelope_id: EnvelopeId(id),
        sender,
        at: UnixMillis(at),
        expires_at: UnixMillis(expires_at),
        payload,
        urgency,
    })
}

fn submit_result() -> impl Strategy<Value = SubmitResult> {
    let outcome = prop_oneof![
        Just(Outcome::Accepted),
        Just(Outcome::UnknownUser),
        Just(Outcome::NoDevice),
        (any::<u64>(), vec(device(), 0..64))
            .prop_map(|(version, devices)| Outcome::DevicesChanged { version, devices }),
        Just(Outcome::Quota),
        Just(Outcome::Unavailable),
        Just(Outcome::NotAttempted),
        Just(Outcome::Unknown),
    ];
    let result = (any::<u32>(), outcome, option::of(any::<[u8; 16]>()))
        .prop_map(|(number, outcome, id)| TargetResult { number, outcome, envelope_id: id.map(EnvelopeId) });
    (any::<[u8; 16]>(), any::<u32>(), vec(result, 0..6)).prop_map(|(id, attempt, results)| SubmitResult {
        submit_id: SubmitId(id),
        attempt,
        results,
    })
}

fn go_away() -> impl Strategy<Value = GoAway> {
    let class = prop_oneof![
        Just(GoAwayClass::Drain),
        Just(GoAwayClass::Shed),
        Just(GoAwayClass::Rebalance),
        Just(GoAwayClass::Kick),
    ];
    (class, any::<u32>(), any::<u32>(), vec("[a-z:/.]{0,40}", 0..=16)).prop_map(
        |(class, after, jitter, endpoints)| GoAway {
            class,
            retry_after: Millis(u64::from(after)),
            jitter: Millis(u64::from(jitter)),
            endpoints,
        },
    )
}

fn error() -> impl Strategy<Value = ErrorFrame> {
    let scope = prop_oneof![Just(ErrorScope::Frame), Just(ErrorScope::Submit), Just(ErrorScope::Connection)];
    let words = ("[a-z_]{0,30}", "\\PC{0,80}", "[a-z_]{0,30}");
    (words, any::<bool>(), any::<u32>(), scope, option::of(any::<[u8; 16]>())).prop_map(
        |((code, message, limit_name), retryable, retry_after_ms, scope, id)| ErrorFrame {
            code,
            message,
            retryable,
            limit_name,
            retry_after_ms,
            scope,
            submit_id: id.map(SubmitId),
        },
    )
}

fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let why = prop_oneof![
        Just(TruncatedReason::Expired),
        Just(TruncatedReason::Trimmed),
        Just(TruncatedReason::Lost),
        Just(TruncatedReason::ForeignCursor),
    ];
    prop_oneof![
        welcome().prop_map(ServerFrame::Welcome),
        deliver().prop_map(ServerFrame::Deliver),
        any::<u64>().prop_map(|upto| ServerFrame::BacklogEnd { upto: Seq(upto) }),
        (any::<u64>(), any::<u64>(), why).prop_map(|(from, to, why)| ServerFrame::Truncated {
            from: Seq(from),
            to: Seq(to),
            why
        }),
        submit_result().prop_map(ServerFrame::SubmitResult),
        (sender(), payload(), urgency()).prop_map(|(sender, payload, urgency)| ServerFrame::Ephemeral {
            sender,
            payload,
            urgency
        }),
        go_away().prop_map(ServerFrame::GoAway),
        error().prop_map(ServerFrame::Error),
        (any::<u64>(), any::<u64>()).prop_map(|(nonce, upto)| ServerFrame::Pong { nonce, upto: Seq(upto) }),
        (any::<u64>(), option::of(error())).prop_map(|(id, error)| ServerFrame::Reply {
            id,
            reply: error.map_or(Reply::PushSet, Reply::Error),
        }),
    ]
}

/// Cuts, flips and doubles parts of a good frame.
fn damage(
    mut bytes: Vec<u8>,
    flips: &[(proptest::sample::Index, u8)],
    cut: Option<proptest::sample::Index>,
) -> Bytes {
    if !bytes.is_empty() {
        for (place, mask) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= mask;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
    }
    bytes.into()
}

/// Decodes both ways; what decodes must also survive being encoded and read again.
fn decode_both(bytes: &Bytes) {
    if let Ok(frame) = ClientFrame::decode(bytes.clone()) {
        assert_eq!(ClientFrame::decode(frame.encode().into()), Ok(frame));
    }
    if let Ok(frame) = ServerFrame::decode(bytes.clone()) {
        assert_eq!(frame.encode().len(), frame.encoded_len());
        assert_eq!(ServerFrame::decode(frame.encode().into()), Ok(frame));
    }
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn a_client_frame_survives_the_wire(frame in client_frame()) {
        prop_assert_eq!(ClientFrame::decode(frame.encode().into()), Ok(frame));
    }

    #[test]
    fn a_server_frame_survives_the_wire(frame in server_frame()) {
        let bytes = frame.encode();
        prop_assert_eq!(bytes.len(), frame.encoded_len());
        prop_assert_eq!(ServerFrame::decode(bytes.into()), Ok(frame));
    }

    #[test]
    fn encoding_into_a_buffer_appends_the_same_bytes(client in client_frame(), server in server_frame()) {
        let mut out = b"before".to_vec();
        client.encode_into(&mut out);
        server.encode_into(&mut out);
        prop_assert_eq!(out, [b"before".to_vec(), client.encode(), server.encode()].concat());
    }

    #[test]
    fn a_payload_is_a_slice_of_the_message(deliver in deliver()) {
        let bytes = Bytes::from(ServerFrame::Deliver(deliver.clone()).encode());
        let Ok(ServerFrame::Deliver(read)) = ServerFrame::decode(bytes.clone()) else { panic!("it was a Deliver") };
        if !read.payload.is_empty() {
            assert!(bytes.as_ptr_range().contains(&read.payload.as_ptr()), "a copy was made");
        }
    }

    #[test]
    fn damaged_frames_do_no_harm(
        client in client_frame(),
        server in server_frame(),
        flips in vec((any::<proptest::sample::Index>(), 1_u8..), 0..4),
        cut in option::of(any::<proptest::sample::Index>()),
    ) {
        decode_both(&damage(client.encode(), &flips, cut));
        decode_both(&damage(server.encode(), &flips, cut));
    }
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..200)) {
        decode_both(&Bytes::from(bytes));
    }
}

/// A key and a length: the head of a length-delimited field.
fn head(field: u8, length: usize) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    let mut rest = length;
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap());
    out
}

fn field(number: u8, content: &[u8]) -> Bytes {
    [head(number, content.len()), content.to_vec()].concat().into()
}

/// Elements of two bytes each must be counted before they become structures of a hundred bytes.
#[test]
fn many_tiny_elements_are_refused_before_they_are_allocated() {
    let many = |number: u8, count: usize| [number << 3 | 2, 0].repeat(count);
    let refused = |frame, name| assert_eq!(frame, Err(FrameError::Field(name)), "{name}");
    refused(ClientFrame::decode(field(2, &many(4, 65_537))).map(drop), "targets");
    refused(ClientFrame::decode(field(2, &many(3, 65_537))).map(drop), "payloads");
    refused(ClientFrame::decode(field(2, &field(4, &field(3, &many(1, 257))))).map(drop), "devices");
    refused(ClientFrame::decode(field(2, &field(4, &field(4, &many(1, 257))))).map(drop), "devices");
    refused(ClientFrame::decode(field(6, &field(2, &many(1, 65)))).map(drop), "targets");
    refused(ClientFrame::decode(field(6, &field(2, &field(2, &many(1, 65))))).map(drop), "windows");
    refused(ServerFrame::decode(field(5, &many(3, 65_537))).map(drop), "results");
    refused(ServerFrame::decode(field(5, &field(3, &many(5, 257)))).map(drop), "devices");
    refused(ServerFrame::decode(field(7, &many(4, 17))).map(drop), "endpoints");
}

/// Two halves of one message are merged by protobuf: the counts must not be fooled by that.
#[test]
fn a_message_in_two_parts_is_refused() {
    let half = field(2, &[4 << 3 | 2, 0].repeat(40_000));
    let twice = Bytes::from([half.clone(), half].concat());
    assert_eq!(ClientFrame::decode(twice).map(drop), Err(FrameError::Field("submit")));
    let list = field(3, &[1 << 3 | 2, 0].repeat(40));
    let target = field(2, &field(4, &[list.clone(), list].concat()));
    assert_eq!(ClientFrame::decode(target).map(drop), Err(FrameError::Field("only")));
    let half = field(6, &[]);
    let twice = Bytes::from([half.clone(), half].concat());
    assert_eq!(ClientFrame::decode(twice).map(drop), Err(FrameError::Field("request")));
}

#[test]
fn a_token_does_not_print_itself() {
    let frame = ClientFrame::Refresh { token: Secret("very-secret".into()) };
    assert!(!format!("{frame:?}").contains("very-secret"));
}

#[test]
fn a_push_token_does_not_print_itself() {
    let address = PushAddress::Fcm { token: "very-secret".into() };
    let app = AppName::new("app").unwrap();
    let target = PushTarget { app, address, registered_at: UnixMillis(0) };
    let set = PushSettings { targets: vec![target], quiet: Quiet::default() };
    let frame = ClientFrame::Request { id: 1, request: Request::SetPush(set) };
    assert!(!format!("{frame:?}").contains("very-secret"));
}
