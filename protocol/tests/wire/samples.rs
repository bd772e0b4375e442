//! Frames with fixed values: what the vectors show. **Invariant:** every kind of frame stands here at least once; `main.rs` checks.

use crate::vectors::From;
use bytes::Bytes;
use chappe_protocol::close::{CloseCode, ErrorFrame};
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::frame::{
    ClientFrame, Cursor, Deliver, FrameError, GoAway, GoAwayClass, Hello, Limits, Role, Secret, ServerFrame,
    Submit, SubmitResult, Target, TargetResult, TruncatedReason, Welcome,
};
use chappe_protocol::id::{
    ConnectionId, CursorTag, DeviceId, EnvelopeId, Epoch, MailboxId, Seq, SubmitId, UserId,
};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::{Millis, UnixMillis};

const SUBMIT: SubmitId = SubmitId(*b"submit-id-16-oct");
const MAILBOX: MailboxId = MailboxId(*b"mailbox-id-16-oc");
const TAG: CursorTag = CursorTag(*b"cursor-tag-16-oc");
const SESSION: ConnectionId = ConnectionId(*b"session-id-16-oc");

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn device(id: &str) -> DeviceId {
    DeviceId::new(id).unwrap()
}

fn sender() -> Sender {
    Sender { user: user("anna"), device: device("phone") }
}

fn target(number: u32, name: &str, devices: DeviceFilter, payload: usize) -> Target {
    Target { number, user: user(name), devices, device_set_version: None, payload }
}

fn result(number: u32, outcome: Outcome) -> TargetResult {
    TargetResult { number, outcome, envelope_id: None }
}

pub type Sample<F> = (&'static str, &'static str, F);

/// What a client sends.
pub fn client() -> Vec<Sample<ClientFrame>> {
    vec![
        (
            "client-hello-first",
            "The first Hello of a device: no resume token, no cursor.",
            ClientFrame::Hello(Hello {
                token: Secret("header.claims.signature".into()),
                device: device("phone"),
                resume_token: Bytes::new(),
                cursor: None,
                role: Role::Main,
            }),
        ),
        (
            "client-hello-resume",
            "A Hello with a resume token and the client's own cursor.",
            ClientFrame::Hello(Hello {
                token: Secret("header.claims.signature".into()),
                device: device("phone"),
                resume_token: Bytes::from_static(b"opaque"),
                cursor: Some(Cursor { tag: TAG, seq: Seq(300) }),
                role: Role::Main,
            }),
        ),
        (
            "client-hello-peek",
            "A glance beside the main session.",
            ClientFrame::Hello(Hello {
                token: Secret("header.claims.signature".into()),
                device: device("phone"),
                resume_token: Bytes::new(),
                cursor: Some(Cursor { tag: TAG, seq: Seq(0) }),
                role: Role::Peek,
            }),
        ),
        (
            "client-submit",
            "One payload for one user; the second attempt.",
            ClientFrame::Submit(Submit {
                submit_id: SUBMIT,
                attempt: 2,
                payloads: vec![Bytes::from_static(b"ciphertext")],
                targets: vec![target(0, "ben", DeviceFilter::All, 0)],
                ttl: Millis(0),
                urgency: Urgency::Message,
                ephemeral: false,
            }),
        ),
        (
            "client-submit-devices",
            "Two payloads; a device list of each sort; a stated device set.",
            ClientFrame::Submit(Submit {
                submit_id: SUBMIT,
                attempt: 1,
                payloads: vec![Bytes::from_static(b"for one device"), Bytes::from_static(b"for the others")],
                targets: vec![
                    Target {
                        device_set_version: Some(7),
                        ..target(1, "ben", DeviceFilter::Only(vec![device("laptop")]), 0)
                    },
                    Target {
                        device_set_version: Some(0),
                        ..target(2, "anna", DeviceFilter::AllBut(vec![device("phone"), device("tablet")]), 1)
                    },
                ],
                ttl: Millis(86_400_000),
                urgency: Urgency::Call,
                ephemeral: false,
            }),
        ),
        (
            "client-submit-ephemeral",
            "Never stored: an empty payload for whoever is attached.",
            ClientFrame::Submit(Submit {
                submit_id: SUBMIT,
                attempt: 1,
                payloads: vec![Bytes::new()],
                targets: vec![target(0, "ben", DeviceFilter::All, 0)],
                ttl: Millis(0),
                urgency: Urgency::Background,
                ephemeral: true,
            }),
        ),
        ("client-ack", "Everything up to 300 is persisted.", ClientFrame::Ack { upto: Seq(300) }),
        ("client-ping", "The greatest nonce.", ClientFrame::Ping { nonce: u64::MAX }),
        (
            "client-refresh",
            "A fresh token.",
            ClientFrame::Refresh { token: Secret("header.claims.signature".into()) },
        ),
    ]
}

/// What a server sends.
pub fn server() -> Vec<Sample<ServerFrame>> {
    let mut all = vec![
        (
            "server-welcome",
            "The default limits.",
            ServerFrame::Welcome(Welcome {
                session: SESSION,
                epoch: Epoch(3),
                from: Seq(300),
                tag: TAG,
                resume_token: Bytes::from_static(b"opaque"),
                limits: Limits::default(),
                resumed: true,
                server_time: UnixMillis(1_800_000_000_000),
            }),
        ),
        (
            "server-deliver",
            "An envelope; its id is derived from submit id, mailbox and entry number 0.",
            ServerFrame::Deliver(Deliver {
                seq: Seq(301),
                prev: Seq(300),
                envelope_id: EnvelopeId::derive(SUBMIT, MAILBOX, 0),
                sender: Some(sender()),
                at: UnixMillis(1_800_000_000_000),
                expires_at: UnixMillis(1_802_592_000_000),
                payload: Bytes::from_static(b"ciphertext"),
                urgency: Urgency::Message,
            }),
        ),
        (
            "server-deliver-first",
            "The first slot of a mailbox, with an empty payload and without a sender.",
            ServerFrame::Deliver(Deliver {
                seq: Seq(1),
                prev: Seq(0),
                envelope_id: EnvelopeId::derive(SUBMIT, MAILBOX, 1),
                sender: None,
                at: UnixMillis(0),
                expires_at: UnixMillis(0),
                payload: Bytes::new(),
                urgency: Urgency::Background,
            }),
        ),
        ("server-backlog-end", "Live from here.", ServerFrame::BacklogEnd { upto: Seq(305) }),
        ("server-pong", "The answer to a Ping.", ServerFrame::Pong { nonce: u64::MAX, upto: Seq(305) }),
        (
            "server-ephemeral",
            "An envelope that was never stored.",
            ServerFrame::Ephemeral {
                sender: Some(sender()),
                payload: Bytes::from_static(b"typing"),
                urgency: Urgency::Background,
            },
        ),
    ];
    all.extend(truncations());
    all.extend(answers());
    all.extend(partings());
    all
}

fn truncations() -> Vec<Sample<ServerFrame>> {
    let truncated = |why| ServerFrame::Truncated { from: Seq(10), to: Seq(255), why };
    vec![
        ("server-truncated-expired", "Past their time.", truncated(TruncatedReason::Expired)),
        ("server-truncated-trimmed", "Silent too long.", truncated(TruncatedReason::Trimmed)),
        ("server-truncated-lost", "The store lost them.", truncated(TruncatedReason::Lost)),
        ("server-truncated-foreign", "Another incarnation.", truncated(TruncatedReason::ForeignCursor)),
    ]
}

fn answers() -> Vec<Sample<ServerFrame>> {
    let accepted = |number| TargetResult {
        number,
        outcome: Outcome::Accepted,
        envelope_id: Some(EnvelopeId::derive(SUBMIT, MAILBOX, number)),
    };
    let changed = Outcome::DevicesChanged { version: 8, devices: vec![device("laptop"), device("phone")] };
    vec![
        (
            "server-submit-result",
            "One target, accepted.",
            ServerFrame::SubmitResult(SubmitResult {
                submit_id: SUBMIT,
                attempt: 2,
                results: vec![accepted(0)],
            }),
        ),
        (
            "server-submit-result-outcomes",
            "Every outcome there is.",
            ServerFrame::SubmitResult(SubmitResult {
                submit_id: SUBMIT,
                attempt: 1,
                results: vec![
                    accepted(1),
                    result(2, Outcome::UnknownUser),
                    result(3, Outcome::NoDevice),
                    result(4, changed),
                    result(5, Outcome::Quota),
                    result(6, Outcome::Unavailable),
                    result(7, Outcome::NotAttempted),
                    result(8, Outcome::Unknown),
                ],
            }),
        ),
    ]
}

fn partings() -> Vec<Sample<ServerFrame>> {
    let go_away = |class, endpoints| {
        ServerFrame::GoAway(GoAway { class, retry_after: Millis(500), jitter: Millis(8000), endpoints })
    };
    vec![
        (
            "server-go-away-drain",
            "The gateway ends; the same address.",
            go_away(GoAwayClass::Drain, Vec::new()),
        ),
        (
            "server-go-away-shed",
            "The gateway is too full; two others.",
            go_away(GoAwayClass::Shed, vec!["wss://b.example".into(), "wss://c.example".into()]),
        ),
        (
            "server-go-away-rebalance",
            "Another is emptier.",
            go_away(GoAwayClass::Rebalance, vec!["wss://b.example".into()]),
        ),
        ("server-go-away-kick", "An operator said so.", go_away(GoAwayClass::Kick, Vec::new())),
        (
            "server-error-connection",
            "The error before a close.",
            ServerFrame::Error(ErrorFrame::closing(
                CloseCode::TokenExpired,
                "the token ran out; reconnect with a fresh one",
            )),
        ),
        (
            "server-error-submit",
            "One submit is refused.",
            ServerFrame::Error(ErrorFrame::limit(
                "envelope_bytes_max",
                0,
                Some(SUBMIT),
                "a payload has more than 98304 bytes",
            )),
        ),
        (
            "server-error-frame",
            "One frame is refused, with a hint when to come back.",
            ServerFrame::Error(ErrorFrame::limit("frames_per_second_max", 1500, None, "send fewer frames")),
        ),
        (
            "server-error-refresh",
            "A Refresh was not taken.",
            ServerFrame::Error(ErrorFrame::refresh_refused("the token is not valid")),
        ),
    ]
}

pub type Unusual = (&'static str, &'static str, From, Vec<u8>, Result<(), FrameError>);

/// Bytes that our encoder does not write: good ones from newer or other peers, and bad ones.
pub fn unusual() -> Vec<Unusual> {
    let field = |name| Err(FrameError::Field(name));
    let submit = |change: fn(&mut Submit)| {
        let ClientFrame::Submit(mut submit) = client().remove(3).2 else {
            unreachable!("the fourth is a Submit")
        };
        change(&mut submit);
        ClientFrame::Submit(submit).encode()
    };
    let deliver = server().remove(1).2.encode();
    let mut long_token = vec![0x2a, 0x84, 0x40, 0x0a, 0x81, 0x40];
    long_token.extend([b'a'; 8193]);
    vec![
        (
            "odd-empty",
            "No bytes: no frame in it, ignored.",
            From::Client,
            vec![],
            Err(FrameError::UnknownFrame),
        ),
        (
            "odd-unknown-frame",
            "Field 100: a frame of a newer peer, ignored.",
            From::Client,
            vec![0xa2, 0x06, 0x02, 0x08, 0x01],
            Err(FrameError::UnknownFrame),
        ),
        (
            "odd-unknown-field",
            "An Ack with a field 15 of a newer peer, which is ignored.",
            From::Client,
            vec![0x1a, 0x05, 0x08, 0xac, 0x02, 0x78, 0x01],
            Ok(()),
        ),
        (
            "odd-unknown-enum",
            "Truncated with a reason 99 of a newer peer, read as expired.",
            From::Server,
            vec![0x22, 0x06, 0x08, 0x0a, 0x10, 0x0b, 0x18, 0x63],
            Ok(()),
        ),
        (
            "odd-default-written",
            "A Ping that writes its nonce 0 explicitly.",
            From::Client,
            vec![0x22, 0x02, 0x08, 0x00],
            Ok(()),
        ),
        ("bad-garbage", "Not protobuf.", From::Client, vec![0xff; 12], Err(FrameError::Garbage)),
        (
            "bad-cut-short",
            "A Deliver without its last byte.",
            From::Server,
            deliver[..deliver.len() - 1].to_vec(),
            Err(FrameError::Garbage),
        ),
        (
            "bad-length",
            "A Submit that claims 4 GiB.",
            From::Client,
            vec![0x12, 0xff, 0xff, 0xff, 0xff, 0x0f],
            Err(FrameError::Garbage),
        ),
        (
            "bad-group",
            "A group, which proto3 does not have.",
            From::Client,
            vec![0x7b, 0x7c],
            Err(FrameError::Garbage),
        ),
        (
            "bad-submit-id",
            "A submit id of no bytes.",
            From::Client,
            vec![0x12, 0x02, 0x10, 0x01],
            field("submit_id"),
        ),
        ("bad-attempt", "Attempts count from 1.", From::Client, submit(|s| s.attempt = 0), field("attempt")),
        ("bad-no-target", "No target.", From::Client, submit(|s| s.targets.clear()), field("targets")),
        (
            "bad-number-twice",
            "Two entries of one number.",
            From::Client,
            submit(|s| s.targets.push(s.targets[0].clone())),
            field("number"),
        ),
        (
            "bad-payload-index",
            "An index beyond the payloads.",
            From::Client,
            submit(|s| s.targets[0].payload = 1),
            field("payload"),
        ),
        (
            "bad-too-many-devices",
            "257 devices in one list.",
            From::Client,
            submit(|s| s.targets[0].devices = DeviceFilter::Only(vec![device("d"); 257])),
            field("devices"),
        ),
        (
            "bad-device",
            "A Hello whose device holds a space.",
            From::Client,
            vec![0x0a, 0x08, 0x0a, 0x01, b't', 0x12, 0x03, b'a', b' ', b'b'],
            field("device"),
        ),
        (
            "bad-tag",
            "A Hello whose cursor has a tag of one byte.",
            From::Client,
            vec![0x0a, 0x0b, 0x0a, 0x01, b't', 0x12, 0x01, b'd', 0x22, 0x03, 0x0a, 0x01, 0x00],
            field("tag"),
        ),
        ("bad-token", "A token of 8,193 bytes.", From::Client, long_token, field("token")),
        (
            "bad-prev",
            "A Deliver whose prev is not below its seq.",
            From::Server,
            vec![0x12, 0x04, 0x08, 0x05, 0x10, 0x05],
            field("prev"),
        ),
        (
            "bad-envelope-id",
            "A Deliver without an envelope id.",
            From::Server,
            vec![0x12, 0x02, 0x08, 0x05],
            field("envelope_id"),
        ),
    ]
}
